"""The names of orgs that senders use in place of UUIDs: written into the database once each, as a label.

An orgId that was derived from a name says nothing to a reader, so the name is kept beside it, unless the org
has a name already. This is a service and no promise: the answer to a request does not wait for it, and a name
that does not fit or cannot be written is written when it comes again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from pipeline.collector.database import Database
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable
from pipeline.common.names import is_name
from sql import queries

log = logging.getLogger(__name__)

SQL: Final = queries.load("names")
KNOWN_MAX: Final = 100_000
"""So many orgs are remembered whose names were written. With one more, all are forgotten and written
again."""
WAITING_MAX: Final = 1000
_PAUSE_S: Final = 1.0
_AGAIN_S: Final = 30.0


class OrgNames:
    """Collects names, and writes those that are new once a second."""

    def __init__(self, database: Database, *, set_by: str) -> None:
        self._database = database
        self._set_by = set_by
        self._known: set[UUID] = set()
        self._connections = 0
        """The connections that the database had counted when ``_known`` was last looked at."""
        self._waiting: dict[UUID, str] = {}
        self._news = asyncio.Event()

    def note(self, names: Mapping[UUID, str]) -> None:
        """Have these names written soon.

        Names that were written over an earlier connection are written again: a failover may have lost them.
        """
        if self._connections != self._database.connections:
            self._connections = self._database.connections
            self._known.clear()
        for org_id, name in names.items():
            if org_id not in self._known and len(self._waiting) < WAITING_MAX and is_name(name):
                self._waiting[org_id] = name
                self._news.set()

    async def run(self) -> None:
        """Write names until cancelled."""
        said = None
        while True:
            await self._news.wait()
            self._news.clear()
            names, self._waiting = self._waiting, {}
            try:
                await self._write(names)
            except Unavailable as error:
                if said != str(error):
                    log.warning("org_names_not_written", extra={"names": len(names), "error": str(error)})
                said = str(error)
                await asyncio.sleep(_AGAIN_S)
            else:
                said = None
                if len(self._known) + len(names) > KNOWN_MAX:
                    self._known.clear()
                self._known.update(names)
                await asyncio.sleep(_PAUSE_S)

    async def _write(self, names: Mapping[UUID, str]) -> None:
        values = {"org_ids": list(names), "names": list(names.values()), "set_by": self._set_by}

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(SQL["register"], values)

        await self._database.write(write)
