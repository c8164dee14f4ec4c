"""The archive's files past their retention: first no longer trusted, then deleted, then no longer listed.

If the process dies after the first step, the hours count as not archived, and their files are still there. If
the process dies after the second step, the manifest lists files that are gone, but the hours of these files
already count as not archived. The next round does the rest.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Final

from pipeline.archive.store import Store
from pipeline.common.connect import AsyncConnection
from sql import queries

log = logging.getLogger(__name__)

BATCH_FILES: Final = 500
BATCHES_MAX: Final = 20
"""Batches of files that one round deletes at most, because new events wait to be archived meanwhile."""


async def expire(connection: AsyncConnection, store: Store, *, before: datetime) -> int:
    """Delete the files of the hours before a time, the oldest first; the number of deleted files.

    Safe to repeat.

    Raises:
        psycopg.Error, StoreError: some files may be left; the next round deletes them.
    """
    gone = 0
    hour = {"before": before.replace(minute=0, second=0, microsecond=0)}
    await connection.execute(_ARCHIVE["raise_floor"].encode(), hour)
    for _ in range(BATCHES_MAX):
        found = await connection.execute(_ARCHIVE["expired_files"].encode(), {**hour, "most": BATCH_FILES})
        paths = [path for (path,) in await found.fetchall()]
        if not paths:
            break
        await asyncio.to_thread(_delete, store, paths)
        await connection.execute(_ARCHIVE["forget_files"].encode(), {"paths": paths})
        gone += len(paths)
    await connection.execute(_ARCHIVE["forget_spans"].encode(), hour)
    if gone:
        log.info("archive_expired", extra={"files": gone, "before": hour["before"].isoformat()})
    return gone


def _delete(store: Store, paths: list[str]) -> None:
    for path in paths:
        store.delete(path)


_ARCHIVE: Final = queries.load("archive")
