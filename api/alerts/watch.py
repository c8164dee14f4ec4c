"""Which budgets must be judged, and when: those of the orgs that changed since they were judged last.

A flush of the worker sends a notification in its own transaction, so its figures can be read when the
notification arrives. The watch then reads the *mark* of each org that has budgets: how often its budgets were
changed, how far each of its partitions has come, and the version of the price book. It judges the orgs whose
mark is not the one they were judged by, but for those that the screen finds unmoved (`api.alerts.screen`).
Where there are no notifications (a pooler, a lost connection), it looks every few seconds all the same.

The marks are in memory alone. A process that starts knows none, so it judges all budgets once: what was
crossed while no process ran is found then. Periods that ended meanwhile are judged, too, because a budget
remembers up to when its periods are closed (`api.alerts.judge`). All budgets are judged again every few
minutes, some of them in each look.

Between two looks there is a pause of nine times what the look took, up to `PAUSE_MAX_S`. So short looks take
a tenth of the time, and long ones are not put off for long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.errors import ForeignKeyViolation, SerializationFailure
from psycopg.rows import tuple_row

from api.alerts import judge, screen
from api.alerts.judge import SQL, Judged, Judgement
from api.alerts.metrics import Metrics
from api.alerts.screen import Mark, Note
from api.asking.buckets import to_minute
from api.asking.limits import Limits
from api.config import RangeConfig
from api.reading import prices
from api.reading.database import NO_NOTIFICATIONS, Database, rows
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import ServiceError, Unavailable

log = logging.getLogger(__name__)

CHANNEL: Final = "spendstream_flush"
LOOK_S: Final = 2.0
"""The longest time without a look, but for the pause after a long one."""
PAUSE_MIN_S: Final = 0.25
PAUSE_MAX_S: Final = 1.25
SWEEP_S: Final = 200.0
"""After how long an org is judged though nothing has changed: in this look or one of the next `SWEEP_LOOKS`.
Forecasts fall and periods become final with time alone."""
SWEEP_LOOKS: Final = 20
ORGS_AT_ONCE: Final = 50
AGAIN_S: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""How long an org that could not be judged waits for the next try, after so many tries."""
_ATTEMPTS: Final = 5
_LISTEN_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class _Known:
    """An org that was judged: by which mark, what was noted, and when (monotonic)."""

    mark: Mark
    note: Note | None
    judged_at: float


@dataclass(slots=True)
class _Failing:
    """An org that could not be judged: by which mark, how many times, and when the next try is."""

    mark: Mark
    times: int
    again_at: float


class Watch:
    """Judges the budgets of orgs that changed, until its tasks are cancelled."""

    def __init__(
        self,
        database: Database,
        ranges: RangeConfig,
        clock: Callable[[], datetime],
        metrics: Metrics,
        committed: Callable[[], None] = lambda: None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """``committed`` is called when alerts were committed, so that they can be sent at once.

        ``seconds`` is a clock that never goes back.
        """
        self.error: str | None = "not looked yet"
        """Why nothing can be judged now; None while all is well."""
        self._database = database
        self._ranges = ranges
        self._clock = clock
        self._metrics = metrics
        self._committed = committed
        self._seconds = seconds
        self._known: dict[UUID, _Known] = {}
        self._failing: dict[UUID, _Failing] = {}
        self._moved = asyncio.Event()

    async def listen(self) -> None:
        """Wake `run` for each flush. Returns where a pooler passes no notifications on."""
        while True:
            try:
                await self._database.listen(CHANNEL, self._moved.set)
            except Unavailable as error:
                log.warning("alerts_not_notified", extra={"error": str(error)})
                if str(error) == NO_NOTIFICATIONS:
                    return
            await asyncio.sleep(_LISTEN_AGAIN_S)

    async def run(self) -> None:
        """Look again and again."""
        while True:
            self._moved.clear()
            started = time.monotonic()
            try:
                await self.look()
                self.error = None
            except Unavailable as error:
                self.error = str(error)
                log.warning("alerts_without_database", extra={"error": str(error)})
            except Exception as error:
                self.error = type(error).__name__
                log.exception("alerts_look_failed")
            took_s = time.monotonic() - started
            self._metrics.looked(took_s, succeeded=self.error is None)
            await asyncio.sleep(min(max(PAUSE_MIN_S, 9 * took_s), PAUSE_MAX_S))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._moved.wait()

    async def look(self) -> Judged:
        """Judge the orgs that have changed, and those whose turn it is. Raises `Unavailable`.

        An org that cannot be judged stops no other one: it is logged, and tried again after a while.
        """
        marks, unmoved = await self._database.read(self._screened)
        for gone in self._known.keys() - marks.keys():
            del self._known[gone]
        for gone in self._failing.keys() - marks.keys():
            del self._failing[gone]
        total = Judged()
        for org_id in unmoved:
            self._known[org_id].mark = marks[org_id]
            total.budgets += marks[org_id].budgets
        self._metrics.unmoved(total.budgets)
        due = self._due(marks)
        alone = [[org_id] for org_id in due if org_id in self._failing]
        others = [org_id for org_id in due if org_id not in self._failing]
        together = [others[begin : begin + ORGS_AT_ONCE] for begin in range(0, len(others), ORGS_AT_ONCE)]
        for some in (*together, *alone):
            for judged in await self._judged_each(some, marks):
                total.add(judged)
        return total

    async def _screened(self, connection: AsyncConnection) -> tuple[dict[UUID, Mark], list[UUID]]:
        """The marks of all orgs, and which of the changed ones need not be judged, of one snapshot."""
        marks = await _marks(connection)
        notes = [
            known.note
            for org_id, known in self._known.items()
            if (mark := marks.get(org_id)) is not None
            and known.note is not None
            and mark.judged_by != known.mark.judged_by
            and mark.screened_by == known.mark.screened_by
        ]
        newest = max((marks[one.org_id].newest or 0 for one in notes), default=0)
        recent = await screen.read(connection, notes, newest)
        found = zip(notes, recent, strict=True)
        return marks, [note.org_id for note, now in found if note.still(marks[note.org_id], now)]

    def _due(self, marks: Mapping[UUID, Mark]) -> list[UUID]:
        """The orgs to judge now: those that have changed, and some of those that were judged long ago."""
        now = self._seconds()
        due, old = [], []
        for org_id, mark in marks.items():
            known, failing = self._known.get(org_id), self._failing.get(org_id)
            if failing is not None:
                if now >= failing.again_at or mark.screened_by != failing.mark.screened_by:
                    due.append(org_id)
            elif known is None or known.mark.judged_by != mark.judged_by:
                due.append(org_id)
            elif now - known.judged_at >= SWEEP_S:
                old.append((known.judged_at, org_id))
        at_once = max(ORGS_AT_ONCE, -(-len(marks) // SWEEP_LOOKS))
        return due + [org_id for _, org_id in sorted(old)[:at_once]]

    async def _judged_each(self, org_ids: Sequence[UUID], marks: Mapping[UUID, Mark]) -> list[Judged]:
        """Judge the orgs together; where that fails, each by itself."""
        try:
            judgement = await self._judged(org_ids)
        except Unavailable:
            raise
        except Exception as error:
            if len(org_ids) == 1:
                self._failed(org_ids[0], marks[org_ids[0]], error)
                return []
            return [judged for org_id in org_ids for judged in await self._judged_each([org_id], marks)]
        for org_id in org_ids:
            self._known[org_id] = _Known(marks[org_id], judgement.notes.get(org_id), self._seconds())
            self._failing.pop(org_id, None)
        return [judgement.judged]

    def _failed(self, org_id: UUID, mark: Mark, error: Exception) -> None:
        """Note that an org could not be judged, and when it is tried again."""
        before = self._failing.get(org_id)
        times = 1 if before is None else before.times + 1
        wait_s = AGAIN_S[min(times, len(AGAIN_S)) - 1]
        self._known.pop(org_id, None)
        self._failing[org_id] = _Failing(mark, times, self._seconds() + wait_s)
        self._metrics.failed()
        facts = {"org_id": str(org_id), "error": str(error).partition("\n")[0], "again_s": wait_s}
        log.error("budgets_not_judged", extra=facts, exc_info=error)

    async def _judged(self, org_ids: Sequence[UUID]) -> Judgement:
        limits = Limits(ranges=self._ranges, now=to_minute(self._clock()))
        for attempt in range(_ATTEMPTS):
            try:
                judgement = await self._database.write(
                    lambda connection: judge.judge(connection, org_ids, limits), snapshot=True
                )
            except (SerializationFailure, ForeignKeyViolation):  # or a webhook was deleted
                log.info("budgets_changed_meanwhile", extra={"attempt": attempt + 1})
                await asyncio.sleep(0.02 * 2**attempt)
                continue
            judged = judgement.judged
            self._metrics.judged(judged)
            if judged.raised or judged.resolved:
                log.info("alerts_committed", extra={"raised": judged.raised, "resolved": judged.resolved})
                self._committed()
            return judgement
        raise _Contended("budgets were changed again and again while they were judged")


class _Contended(ServiceError):
    """Others change the same budgets all the time."""


async def _marks(connection: AsyncConnection) -> dict[UUID, Mark]:
    version = await prices.version(connection, None)
    return {
        org_id: Mark(
            changes=changes,
            price_version=version,
            places=places,
            basis=basis,
            budgets=budgets,
            newest=newest,
            watermark=watermark,
        )
        for org_id, changes, budgets, places, basis, newest, watermark in await rows(
            connection, SQL["marks"], {}, tuple_row
        )
        if budgets
    }
