"""API keys: a server checks them, and notes at most once an hour that a key was used.

A key carries a tag that only we can make (`pipeline.common.keys`), so a made-up key costs no query. A key
with a good tag is looked up by its prefix. A row that was found is believed for API_KEY_CACHE. That there is
no row is believed as long, but for a second at least.

Keys of version 0.1.0 have no tag. All of them that are still good are read together, at most once in
API_KEY_CACHE and at most once in a second, however many such keys are sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row

from pipeline.common import keys, problems
from pipeline.common.access.caller import Caller
from pipeline.common.access.database import Database
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable
from sql import queries

log = logging.getLogger(__name__)

SQL: Final = queries.load("access")
CHALLENGE: Final = 'ApiKey realm="spendstream"'
_CACHED_MAX: Final = 10_000
_LAST_USED: Final = timedelta(hours=1)
_NOTE_AGAIN: Final = timedelta(minutes=1)
_PAUSE: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A key that is not revoked, as the database has it."""

    prefix: str
    digest: bytes
    org_id: UUID
    roles: Sequence[str]
    expires_at: datetime | None
    last_used_at: datetime | None


class Keys:
    """Turns a key into its caller."""

    def __init__(
        self,
        secret: bytes,
        *,
        database: Database,
        cache_s: float,
        clock: Callable[[], datetime],
        grace_s: float = 0.0,
    ) -> None:
        """``grace_s``: how long a key that the database has confirmed is believed while the database is away.

        A key that is revoked in that time is found out when the database is back. A key's own end holds at
        once.
        """
        self._secret = secret
        self._database = database
        self._cache = timedelta(seconds=cache_s)
        self._grace = timedelta(seconds=grace_s)
        self._clock = clock
        self._tagged: dict[str, tuple[datetime, _Row | None]] = {}
        """By prefix: when the key was read, and its row. Only keys that we made are in here."""
        self._untagged: Mapping[str, _Row] | None = {}
        """All good keys of 0.1.0; None while the database cannot say which these are."""
        self._untagged_at: datetime | None = None
        self._untagged_lock = asyncio.Lock()
        self._noted: dict[str, datetime] = {}

    async def caller(self, key: str) -> Caller:
        """Who the key stands for.

        Raises:
            Problem: 401, with the same text for every fault of a key.
            Unavailable: the key cannot be looked up now.
        """
        prefix = keys.prefix_of(key)
        if prefix is None:
            raise _refused()
        now = self._clock()
        if keys.is_untagged(key):
            row = (await self._all_untagged(now)).get(prefix)
        elif keys.has_tag(key, self._secret):
            row = await self._one_tagged(prefix, now)
        else:
            raise _refused()
        if row is None or not keys.matches(key, self._secret, row.digest):
            raise _refused()
        if row.expires_at is not None and now >= row.expires_at:
            raise _refused()
        await self._note_use(prefix, row, now)
        roles = frozenset(row.roles) & frozenset(keys.ROLES)  # a key never spans orgs, whatever its row says
        return Caller(subject=f"key:{prefix}", roles=roles, orgs=frozenset((row.org_id,)))

    async def _one_tagged(self, prefix: str, now: datetime) -> _Row | None:
        read_at, row = self._tagged.get(prefix, (None, None))
        if read_at is not None and now - read_at < (self._cache if row else max(self._cache, _PAUSE)):
            return row
        try:
            found = await self._read("key_by_prefix", {"prefix": prefix})
        except Unavailable:
            if row is None or read_at is None or now - read_at >= self._grace:
                raise
            return row
        row = found.get(prefix)
        if len(self._tagged) >= _CACHED_MAX:
            self._tagged.clear()
        self._tagged[prefix] = (now, row)
        return row

    async def _all_untagged(self, now: datetime) -> Mapping[str, _Row]:
        async with self._untagged_lock:
            pause = max(self._cache, _PAUSE)
            if self._untagged_at is None or now - self._untagged_at >= pause:
                # Set before the answer comes, so that made-up keys do not each ask a database that is away.
                self._untagged_at, self._untagged = now, None
                self._untagged = await self._read("keys_by_length", {"chars": keys.UNTAGGED_PREFIX_CHARS})
        if self._untagged is None:
            raise Unavailable("The API keys cannot be read.")
        return self._untagged

    async def _read(self, name: str, values: Mapping[str, Any]) -> dict[str, _Row]:
        async def find(connection: AsyncConnection) -> list[_Row]:
            async with connection.cursor(row_factory=class_row(_Row)) as cursor:
                await cursor.execute(SQL[name], values)
                return await cursor.fetchall()

        return {row.prefix: row for row in await self._database.read(find)}

    async def _note_use(self, prefix: str, row: _Row, now: datetime) -> None:
        noted = max(filter(None, (row.last_used_at, self._noted.get(prefix))), default=None)
        if noted is not None and now - noted <= _LAST_USED:
            return
        if len(self._noted) >= _CACHED_MAX:
            self._noted.clear()
        self._noted[prefix] = now
        values = {"prefix": prefix, "now": now, "stale": now - _LAST_USED}

        async def note(connection: AsyncConnection) -> None:
            await connection.execute(SQL["note_use"], values)

        try:
            await self._database.write(note)
        except Unavailable as error:  # no reason to turn the caller away
            self._noted[prefix] = now - _LAST_USED + _NOTE_AGAIN
            log.warning("key_use_not_noted", extra={"prefix": prefix, "error": str(error)})


def _refused() -> problems.Problem:
    return problems.unauthenticated("The API key is unknown, has ended or was revoked.", challenge=CHALLENGE)
