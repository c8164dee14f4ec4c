"""The audit log: each decision about a caller that must be kept, written before the caller learns of it.

Each granted access that reads across orgs or may change something is a row of its own.

A denial is always written, but one caller cannot flood the log. A caller's first denied attempt is a row at
once. The attempts that follow within a minute of that row become one row when the minute is over, with their
count and what was attempted. Each process counts by itself, and a process that is killed loses the count of
its last minute.
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

from pipeline.common.access.database import Writes
from pipeline.common.connect import AsyncConnection
from pipeline.common.correlation import Correlation
from pipeline.common.errors import Unavailable
from sql import queries

log = logging.getLogger(__name__)

SQL: Final = queries.load("access")
WINDOW: Final = timedelta(minutes=1)
CALLERS_MAX: Final = 10_000
"""How many callers are counted one by one. The attempts of all further callers are counted together."""
ATTEMPTS_MAX: Final = 20
"""How many different attempts (a route and an org) a row names. Further attempts are only counted."""
OTHERS: Final = "(other callers)"
_LOOK_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One access that was granted or denied.

    ``asked`` is the query, without the values of parameters that no route knows. ``status`` is the status of
    the answer; None where the row is written before there is an answer. ``correlation`` is that of the
    request.
    """

    actor: str
    action: str
    org_id: UUID | None
    status: int | None
    asked: str
    correlation: Correlation


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
    """Writes decisions; ``clock`` gives their times."""

    def __init__(self, database: Writes, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._denied: dict[str, _Denied] = {}

    async def granted(self, decision: Decision) -> None:
        """Write a granted access down.

        Raises:
            Unavailable: the access cannot be audited, so it must not be granted.
        """
        log.info("access_granted", extra=_facts(decision))
        detail = _detail(decision)
        await self._write(self._row(decision.actor, decision.action, decision.org_id, "granted", detail))

    async def denied(self, decision: Decision) -> None:
        """Write or count a denied access. Never raises: the caller is turned away in any case."""
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
        detail = {**_detail(decision), "count": 1}
        await self._try(self._row(actor, decision.action, decision.org_id, "denied", detail))

    async def settle(self, *, all_: bool = False) -> None:
        """Write a row for each caller whose minute is over, or for all callers."""
        now = self._clock()
        for actor, denied in list(self._denied.items()):
            if all_ or now - denied.since >= WINDOW:
                del self._denied[actor]
                if denied.count:  # the caller may go on: the attempts of the next minute are one row again
                    self._denied[actor] = _Denied(now)
                await self._settle(actor, denied)

    async def run(self) -> None:
        """Settle the minutes that are over until cancelled, then settle all."""
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


def _detail(decision: Decision) -> dict[str, Any]:
    """What a row of one access says of its request. A row that counts many accesses has no request's id."""
    correlation = decision.correlation
    detail = {"status": decision.status, "query": decision.asked, "requestId": correlation.request_id}
    if correlation.traceparent is not None:
        detail["traceparent"] = correlation.traceparent
    return detail


def _facts(decision: Decision) -> dict[str, str]:
    return {"actor": decision.actor, "action": decision.action, "org_id": str(decision.org_id)}
