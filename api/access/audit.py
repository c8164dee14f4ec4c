"""The audit log: what was decided about each caller, written before the caller learns of it.

Granted are written down: what reads across orgs or may change something, each in a row of its own. Denied is
written down always, but one caller cannot flood the log: its first attempt is a row at once, and all that
follow within a minute of the last row are one row when that minute is over, with their count and what they
were. Each process counts by itself; one that is killed loses the count of its last minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from api.errors import Unavailable
from api.reading.database import Database
from pipeline.common.connect import AsyncConnection
from sql import queries

log = logging.getLogger(__name__)

SQL: Final = queries.load("access")
WINDOW: Final = timedelta(minutes=1)
CALLERS_MAX: Final = 10_000
"""Callers whose attempts are counted at once; those of more are one row together."""
ATTEMPTS_MAX: Final = 20
"""Different attempts (route and org) that a row names; the rest is only counted."""
OTHERS: Final = "(other callers)"
_LOOK_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``asked`` is the query as far as we know its words; ``status`` None: not known beforehand."""

    actor: str
    action: str
    org_id: UUID | None
    status: int | None
    asked: str


@dataclass(slots=True)
class _Denied:
    """What one caller attempted since its last row."""

    since: datetime
    count: int = 0
    attempts: Counter[tuple[str, UUID | None]] = field(default_factory=Counter)

    def add(self, decision: Decision) -> None:
        self.count += 1
        attempt = (decision.action, decision.org_id)
        if attempt in self.attempts or len(self.attempts) < ATTEMPTS_MAX:
            self.attempts[attempt] += 1


class Audit:
    """Writes decisions. ``clock`` gives their times."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._denied: dict[str, _Denied] = {}

    async def granted(self, decision: Decision) -> None:
        """Raises `Unavailable`: what cannot be audited is not granted."""
        log.info("access_granted", extra=_facts(decision))
        detail = {"status": decision.status, "query": decision.asked}
        await self._write(self._row(decision.actor, decision.action, decision.org_id, "granted", detail))

    async def denied(self, decision: Decision) -> None:
        """Never raises: the caller is turned away all the same."""
        now = self._clock()
        actor = decision.actor
        if actor not in self._denied and len(self._denied) >= CALLERS_MAX:
            actor = OTHERS
        known = self._denied.get(actor)
        if known is not None and now - known.since < WINDOW:
            known.add(decision)
            return
        log.info("access_denied", extra=_facts(decision))
        self._denied[actor] = _Denied(now)
        if known is not None:
            await self._settle(actor, known)
        detail = {"status": decision.status, "query": decision.asked, "count": 1}
        await self._try(self._row(actor, decision.action, decision.org_id, "denied", detail))

    async def settle(self, *, all_: bool = False) -> None:
        """Write the rows of the minutes that are over, or of all."""
        now = self._clock()
        for actor, denied in list(self._denied.items()):
            if all_ or now - denied.since >= WINDOW:
                del self._denied[actor]
                if denied.count:  # it may go on: what comes within the next minute is one row again
                    self._denied[actor] = _Denied(now)
                await self._settle(actor, denied)

    async def run(self) -> None:
        """Settle what is due until cancelled; then settle all."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                await self.settle()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.settle(all_=True)

    async def _settle(self, actor: str, denied: _Denied) -> None:
        if not denied.count:
            return
        (action, org_id), _ = denied.attempts.most_common(1)[0]
        attempts = [
            {"action": action, "orgId": None if org_id is None else str(org_id), "count": count}
            for (action, org_id), count in denied.attempts.items()
        ]
        detail = {"count": denied.count, "since": denied.since.isoformat(), "attempts": attempts}
        await self._try(self._row(actor, action, org_id, "denied", detail))

    def _row(self, actor: str, action: str, org_id: UUID | None, outcome: str, detail: Any) -> dict[str, Any]:
        return {
            "at": self._clock(),
            "actor": actor,
            "action": action,
            "org_id": org_id,
            "outcome": outcome,
            "detail": detail,
        }

    async def _try(self, row: dict[str, Any]) -> None:
        try:
            await self._write(row)
        except Unavailable:
            facts = {"actor": row["actor"], "action": row["action"], "count": row["detail"]["count"]}
            log.error("audit_lost", extra=facts)

    async def _write(self, row: dict[str, Any]) -> None:
        async def add(connection: AsyncConnection) -> None:
            await connection.execute(SQL["audit"], {**row, "detail": Jsonb(row["detail"])})

        await self._database.write(add)


def _facts(decision: Decision) -> dict[str, str]:
    return {"actor": decision.actor, "action": decision.action, "org_id": str(decision.org_id)}
