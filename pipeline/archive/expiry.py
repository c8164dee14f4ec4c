"""The archive's files past their retention: no longer trusted, then deleted, then no longer listed.

If the process dies after the first step, the hours count as not archived, and their files wait. If it dies
after the second, files are listed that are not there, of hours that nobody takes for archived. The next round
does the rest.
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
"""Of one round: deleting takes its time, and events wait to be archived."""


async def expire(connection: AsyncConnection, store: Store, *, before: datetime) -> int:
    """Let go of the files of hours before a time, the oldest first; how many went. Safe to repeat.

    Raises:
        psycopg.Error, StoreError: the rest is left to the next round.
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
