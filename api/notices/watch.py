"""Which orgs must be looked at for notices, and when: once an hour of theirs is over, and seldom else.

Every few seconds one small statement reads the *mark* of each org that asks for notices: what it asks for,
the hour up to which it is complete, and the version of the price book. An org is looked at when its mark has
changed. For an org whose days begin off the whole hour of UTC, a mark counts quarters of an hour. Most often
nothing has changed, so nothing else is read.

The marks are in memory alone. A process that starts looks at all orgs once, and finds what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from psycopg.errors import ForeignKeyViolation, SerializationFailure
from psycopg.rows import tuple_row

from api.asking.buckets import HOUR, QUARTER, to_minute
from api.asking.limits import Limits
from api.budgets import spending
from api.config import RangeConfig
from api.notices.judge import Found, judge
from api.notices.kept import SQL
from api.notices.metrics import NoticeMetrics
from api.reading import prices
from api.reading.database import Database, rows
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import ServiceError, Unavailable

log = logging.getLogger(__name__)

ROUND_S: Final = 5.0
"""The pause between two rounds."""
KEPT_DAYS: Final = 400
"""How long notices are listed."""
_FORGET_S: Final = 600.0
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """What an org was looked at by. ``complete_to``: an hour, or a quarter of one, in minutes."""

    version: int
    complete_to: int
    price_version: int


class NoticeWatch:
    """Looks at the orgs whose mark has changed, until its task is cancelled."""

    def __init__(
        self,
        database: Database,
        ranges: RangeConfig,
        clock: Callable[[], datetime],
        metrics: NoticeMetrics,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """``committed`` is called when notices were committed, so that they can be sent at once."""
        self.error: str | None = None
        """Why nothing can be found now; None while all is well."""
        self._database = database
        self._ranges = ranges
        self._clock = clock
        self._metrics = metrics
        self._committed = committed
        self._marks: dict[UUID, Mark] = {}
        self._forgot_at: float | None = None

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.look()
                await self._forget()
                self.error = None
            except Unavailable as error:
                self.error = str(error)
                log.warning("notices_without_database", extra={"error": str(error)})
            except Exception as error:
                self.error = type(error).__name__
                log.exception("notices_look_failed")
            await asyncio.sleep(ROUND_S)

    async def look(self) -> Found:
        """Look at the orgs whose mark has changed. Raises `Unavailable`.

        An org that cannot be looked at stops no other one: it is logged, and tried again with its next mark.
        """
        marks = await self._database.read(_marks)
        self._marks = {org_id: mark for org_id, mark in self._marks.items() if org_id in marks}
        total, failed = Found(), False
        for org_id, mark in marks.items():
            if self._marks.get(org_id) == mark:
                continue
            try:
                total.add(await self._judged(org_id))
            except Unavailable:
                raise
            except Exception as error:
                failed = True
                self._metrics.failed()
                facts = {"org_id": str(org_id), "error": str(error).partition("\n")[0]}
                log.exception("notices_not_judged", extra=facts)
            self._marks[org_id] = mark
        if not failed:
            self._metrics.up_to_date()
        return total

    async def _judged(self, org_id: UUID) -> Found:
        limits = Limits(ranges=self._ranges, now=to_minute(self._clock()))
        for attempt in range(_ATTEMPTS):
            try:
                found = await self._database.write(
                    lambda connection: judge(connection, org_id, limits), snapshot=True
                )
            except (SerializationFailure, ForeignKeyViolation):  # or a webhook was deleted
                log.info("notices_changed_meanwhile", extra={"attempt": attempt + 1})
                await asyncio.sleep(0.02 * 2**attempt)
                continue
            self._metrics.found(found)
            if found.faults:
                log.warning("summaries_without_rows", extra={"org_id": str(org_id), "days": found.faults})
            if found.hours or found.days:
                log.info("notices_committed", extra={"hours": found.hours, "days": found.days})
                self._committed()
            return found
        raise _Contended("others look at the same org all the time")

    async def _forget(self) -> None:
        """Delete old notices, every ten minutes."""
        if self._forgot_at is not None and time.monotonic() - self._forgot_at < _FORGET_S:
            return

        async def forget(connection: AsyncConnection) -> None:
            await connection.execute(SQL["forget"], {"kept": f"{KEPT_DAYS} days"})

        await self._database.write(forget)
        self._forgot_at = time.monotonic()


class _Contended(ServiceError):
    """Others change the same org all the time."""


async def _marks(connection: AsyncConnection) -> Mapping[UUID, Mark]:
    """The marks of the orgs that ask for something and are complete up to some time."""
    asking = await rows(connection, SQL["asked_for"], {}, tuple_row)
    if not asking:
        return {}
    price_version = await prices.version(connection, None)
    watermarks, _ = await spending.watermarks_of(connection, [org_id for org_id, _, _ in asking])
    found = {}
    for org_id, version, zone in asking:
        watermark = watermarks.get(org_id)
        if watermark is not None:
            minute = to_minute(watermark)
            found[org_id] = Mark(version, minute - minute % _step(zone, watermark), price_version)
    return found


def _step(zone: str | None, at: datetime) -> int:
    """How far the watermark moves between two looks: a quarter where days may begin off the whole hour."""
    try:
        offset = at.astimezone(ZoneInfo(zone or "UTC")).utcoffset()
    except (ZoneInfoNotFoundError, ValueError):  # the look at this org will say so
        return HOUR
    return QUARTER if offset and offset % timedelta(hours=1) else HOUR
