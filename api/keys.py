"""API keys as the API sees them: it checks them, and notes within the hour that one was used.

A key that was found good is believed for API_KEY_CACHE, so that most requests cost no query; a revoked
key ends within that time. What was found bad is never remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from api import problems
from api.database import Database, Unavailable
from api.identity import Caller
from sql import keys
from sql.schema import api_keys

log = logging.getLogger(__name__)

CHALLENGE: Final = 'ApiKey realm="spendstream"'
_CACHED_MAX: Final = 10_000
_LAST_USED: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    digest: bytes
    org_id: UUID
    roles: frozenset[str]
    expires_at: datetime | None
    read_at: datetime


class Keys:
    """Turns a key into its caller."""

    def __init__(
        self, secret: bytes, *, database: Database, cache_s: float, clock: Callable[[], datetime]
    ) -> None:
        self._secret = secret
        self._database = database
        self._cache = timedelta(seconds=cache_s)
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def caller(self, key: str) -> Caller:
        """Who the key stands for. Raises `Problem` 401, the same for every fault, and `Unavailable`."""
        prefix = keys.prefix_of(key)
        if prefix is None:
            raise _refused()
        now = self._clock()
        known = self._known.get(prefix)
        if known is None or now - known.read_at >= self._cache:
            known = await self._read(prefix, now)
        if known is None or not keys.matches(key, self._secret, known.digest):
            raise _refused()
        if known.expires_at is not None and now >= known.expires_at:
            raise _refused()
        if self._known.get(prefix) is not known:
            await self._note_use(prefix, now)
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            self._known[prefix] = known
        roles = known.roles & frozenset(keys.ROLES)  # whatever a row says: a key never spans orgs
        return Caller(subject=f"key:{prefix}", roles=roles, orgs=frozenset((known.org_id,)))

    async def _read(self, prefix: str, now: datetime) -> _Known | None:
        query = select(api_keys).where(api_keys.c.prefix == prefix, api_keys.c.revoked_at.is_(None))

        async def read(connection: AsyncConnection) -> Any:
            return (await connection.execute(query)).one_or_none()

        row = await self._database.read(read)
        self._known.pop(prefix, None)
        if row is None:
            return None
        return _Known(
            digest=bytes(row.digest),
            org_id=row.org_id,
            roles=frozenset(row.roles),
            expires_at=row.expires_at,
            read_at=now,
        )

    async def _note_use(self, prefix: str, now: datetime) -> None:
        used = api_keys.c.last_used_at
        stale = or_(used.is_(None), used < now - _LAST_USED)
        statement = update(api_keys).where(api_keys.c.prefix == prefix, stale).values(last_used_at=now)

        async def note(connection: AsyncConnection) -> None:
            await connection.execute(statement)

        try:
            await self._database.write(note)
        except Unavailable as error:  # no reason to turn the caller away
            log.warning("key_use_not_noted", extra={"prefix": prefix, "error": str(error)})


def _refused() -> problems.Problem:
    return problems.unauthenticated("The API key is unknown, has ended or was revoked.", challenge=CHALLENGE)
