"""The questions of one view, and the view that is made of their answers.

`Orgs` shows all orgs, `OneOrg` one org by model, client or dimension. Both ask for the last hour and for the
day of UTC. The spend a minute is that of the newest whole minute: the one that ended last before the
watermark, so all its events are there, but for late ones. With a watermark of 12:34:45 that is 12:33.

How often which question is asked, for all orgs: the last hour, today and the newest minute each time, and an
earlier minute once. The 30 minutes of the trend are filled in over the first reads, four a read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import reduce
from http import HTTPStatus
from operator import add
from typing import Any, Final, Protocol

from pipeline.top import figures
from pipeline.top.client import Answer, Api, Refused
from pipeline.top.figures import NO_CALLS, NOTHING, Figures, Freshness, Row, Spend, View

CLIENT: Final = "client"
MODEL: Final = "model"
ORG: Final = "org"
ORGS_TREND_MINUTES: Final = 30
TREND_MINUTES: Final = 60
_FILLED_A_READ: Final = 4
_PAGE: Final = 1000
_PAGES_MAX: Final = 10
_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
Query = list[tuple[str, str]]


class Reading(Protocol):
    """The questions of one view."""

    @property
    def org_id(self) -> str | None:
        """The org whose live stream says that there is more to read; None: all orgs."""

    async def read(self) -> View:
        """Ask. Raises `client.Away` and `client.Refused`."""


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


# --- all orgs ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Orgs:
    """All orgs that the caller may see, at most 10,000."""

    api: Api
    clock: Callable[[], datetime] = now
    trend_minutes: int = ORGS_TREND_MINUTES
    org_id: str | None = field(default=None, init=False)
    _minutes: dict[datetime, dict[str, Figures]] = field(default_factory=dict, init=False)
    _settled: set[datetime] = field(default_factory=set, init=False)
    """Minutes that were read after the minute behind them was whole."""

    async def read(self) -> View:
        """Ask for all orgs."""
        at = self.clock()
        hour, items, more = await self._orgs([("last", "1h")])
        _, of_today, _ = await self._orgs(_range(*_today(at)))
        ages = {item["orgId"]: figures.freshness_of(item["freshness"], hour.read_s) for item in items}
        minute = _whole_minute(age.watermark for age in ages.values())
        await self._read_minutes(minute)
        today = {item["orgId"]: figures.figures_of(item) for item in of_today}
        starts = _starts(minute, self.trend_minutes)
        rows = tuple(
            Row(
                key=item["orgId"],
                name=str(item["orgName"] or item["orgId"]),
                minute=None if minute is None else self._minutes[minute].get(item["orgId"], NO_CALLS),
                hour=figures.figures_of(item),
                today=today.get(item["orgId"], NOTHING),
                trend=tuple(self._spend(start, item["orgId"]) for start in starts),
                freshness=ages[item["orgId"]],
            )
            for item in items
        )
        return View(
            title="all orgs",
            by=ORG,
            rows=rows,
            total=_total(rows, ages.values(), tuple(self._spend_of_all(start) for start in starts)),
            minute_start=minute,
            hour_words="last hour",
            trend_words=f"{self.trend_minutes} minutes",
            read_at=at,
            read_s=time.monotonic(),
            more_rows=more,
        )

    async def _orgs(self, query: Query) -> tuple[Answer, list[Any], bool]:
        return await self.api.pages("/orgs", [*query, ("limit", str(_PAGE))], "items", _PAGES_MAX)

    async def _read_minutes(self, newest: datetime | None) -> None:
        """Read the newest minute again, the one before it once more, and a few that are missing."""
        starts = _starts(newest, self.trend_minutes)
        for start in [start for start in self._minutes if start not in starts]:
            del self._minutes[start]
            self._settled.discard(start)
        wanted = [start for start in reversed(starts) if start not in self._settled]
        for start in wanted[: 1 + _FILLED_A_READ]:
            _, items, _ = await self._orgs(_range(start, start + _MINUTE))
            self._minutes[start] = {
                item["orgId"]: figures.figures_of(item) for item in items if item["invocations"]
            }
            if start != newest:
                self._settled.add(start)

    def _spend(self, start: datetime, org_id: str) -> Decimal | None:
        if start not in self._minutes:
            return None
        return self._minutes[start].get(org_id, NOTHING).spend.amount or Decimal(0)

    def _spend_of_all(self, start: datetime) -> Decimal | None:
        if start not in self._minutes:
            return None
        return reduce(add, (one.spend for one in self._minutes[start].values()), Spend()).amount or Decimal(0)


def _total(rows: Iterable[Row], ages: Iterable[Freshness], trend: tuple[Decimal | None, ...]) -> Row:
    """All rows together. They are as fresh as the one with the largest lag."""
    rows = list(rows)
    minutes = [row.minute for row in rows if row.minute is not None]
    return Row(
        key="",
        name="all",
        minute=reduce(add, minutes) if minutes else None,
        hour=reduce(add, (row.hour for row in rows), NOTHING),
        today=reduce(add, (row.today for row in rows), NOTHING),
        trend=trend,
        freshness=max(ages, key=lambda age: float("inf") if age.lag_s is None else age.lag_s, default=None),
    )


# --- one org -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class OneOrg:
    """One org by ``by``: model, client or a dimension. By client or dimension, figures are of whole hours."""

    api: Api
    org_id: str
    by: str
    clock: Callable[[], datetime] = now
    _reliability_refused: str = field(default="", init=False)

    async def read(self) -> View:
        """Ask for the org."""
        at = self.clock()
        by_minute = await self._series(
            "usage", [("last", "1h")], "minute", MODEL if self.by == MODEL else "none"
        )
        answer = by_minute[0]
        fresh = figures.freshness_of(answer.body["freshness"], answer.read_s)
        minute = _whole_minute([fresh.watermark])
        began = figures.time_of(answer.body["start"])
        if minute is not None and began is not None and minute < began:
            minute = None  # the watermark is so old that its minute is not in the answer
        day = await self.api.get(
            self._path("usage"), [*_range(*_today(at)), ("granularity", "day"), ("groupBy", "none")]
        )
        minutes = _starts(minute, TREND_MINUTES)
        split = MODEL if self.by == MODEL else "none"
        reliability, whole = await self._reliability([("last", "1h")], "month", split)
        notes: tuple[str, ...] = ()
        if self.by == MODEL:
            rows, more = await self._by_model(at, by_minute, minute, minutes, reliability)
            hour_words, trend_words = "last hour", f"{TREND_MINUTES} minutes"
        else:
            rows, more, notes = await self._by_value(at)
            hour_words, trend_words = "this hour", "hours of today"
        total = Row(
            key="",
            name="all",
            minute=_of_minute(by_minute[1], minute),
            hour=figures.with_reliability(figures.figures_of(answer.body["totals"]), whole),
            today=figures.figures_of(day.body["totals"]),
            trend=_trend_of_all(by_minute[1], minutes),
            freshness=fresh,
        )
        return View(
            title=str(answer.body["orgName"] or self.org_id),
            by=self.by,
            rows=rows,
            total=total,
            minute_start=minute,
            hour_words=hour_words,
            trend_words=trend_words,
            read_at=at,
            read_s=time.monotonic(),
            notes=(*notes, self._reliability_refused) if self._reliability_refused else notes,
            more_rows=more,
        )

    async def dimensions(self) -> list[str]:
        """What the org can be split by, the usual ones first."""
        answer = await self.api.get(self._path("dimensions"))
        return [MODEL, CLIENT, *(one["name"] for one in answer.body["items"] if one["name"] != CLIENT)]

    async def _by_model(
        self,
        at: datetime,
        by_minute: tuple[Answer, list[Any], bool],
        minute: datetime | None,
        minutes: list[datetime],
        reliability: Mapping[str, Any],
    ) -> tuple[tuple[Row, ...], bool]:
        _, points, more = by_minute
        _, of_today, more_today = await self._series("usage", _range(*_today(at)), "day", MODEL)
        newest = [point for point in points if minute and figures.time_of(point["bucketStart"]) == minute]
        of_minute = figures.summed(newest, MODEL)
        hour, today = figures.summed(points, MODEL), figures.summed(of_today, MODEL)
        trends = figures.trends(points, MODEL, minutes)
        none = (Decimal(0),) * len(minutes)
        return tuple(
            Row(
                key=key,
                name=name,
                minute=of_minute.get(key, NO_CALLS) if minute else None,
                hour=figures.with_reliability(hour.get(key, NO_CALLS), reliability.get(key)),
                today=today.get(key, NO_CALLS),
                trend=trends.get(key, none),
            )
            for key, name in _names([*of_today, *points], MODEL).items()
        ), more or more_today

    async def _by_value(self, at: datetime) -> tuple[tuple[Row, ...], bool, tuple[str, ...]]:
        hour_start = at.replace(minute=0, second=0, microsecond=0)
        first, points, more = await self._series("usage", _range(*_today(at)), "hour", self.by)
        notes = _since(first.body["dimension"], _today(at)[0])
        reliability, _ = await self._reliability(_range(hour_start, hour_start + _HOUR), "hour", self.by)
        this_hour = [point for point in points if figures.time_of(point["bucketStart"]) == hour_start]
        hour, today = figures.summed(this_hour, self.by), figures.summed(points, self.by)
        hours = [hour_start - _HOUR * back for back in range(hour_start.hour, -1, -1)]
        trends = figures.trends(points, self.by, hours)
        return (
            tuple(
                Row(
                    key=key,
                    name=name,
                    minute=None,
                    hour=figures.with_reliability(hour.get(key, NO_CALLS), reliability.get(key)),
                    today=today[key],
                    trend=trends[key],
                )
                for key, name in _names(points, self.by).items()
            ),
            more,
            notes,
        )

    def _path(self, route: str) -> str:
        return f"/orgs/{self.org_id}/{route}"

    async def _series(
        self, route: str, span: Query, granularity: str, by: str
    ) -> tuple[Answer, list[Any], bool]:
        query = [*span, ("granularity", granularity), ("groupBy", by), ("limit", str(_PAGE))]
        return await self.api.pages(self._path(route), query, "series", _PAGES_MAX)

    async def _reliability(
        self, span: Query, granularity: str, by: str
    ) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        """The points of the newest bucket by their row, and the totals. Nothing if the caller may not."""
        if self._reliability_refused:
            return {}, None
        query = [*span, ("granularity", granularity), ("groupBy", by), ("percentile", "p95")]
        try:
            first, points, _ = await self.api.pages(
                self._path("reliability"), [*query, ("limit", str(_PAGE))], "series", _PAGES_MAX
            )
        except Refused as refused:
            if refused.status != HTTPStatus.FORBIDDEN:
                raise
            self._reliability_refused = (
                "no errors and latencies: the role analytics:reliability:read is missing"
            )
            return {}, None
        return {figures.key_of(point, by): point for point in points}, first.body["totals"]


def _since(dimension: Mapping[str, Any] | None, today: datetime) -> tuple[str, ...]:
    """From when on rows by a dimension are counted, if that is not all of today."""
    if dimension is None:
        return ()
    since = figures.time_of(dimension["since"])
    if since is None:
        return (f"not all events are counted by {dimension['name']} yet",)
    return (f"by {dimension['name']} since {since:%H:%M} UTC",) if since > today else ()


def _of_minute(points: Iterable[Any], minute: datetime | None) -> Figures | None:
    """The figures of the newest whole minute, of all rows together."""
    if minute is None:
        return None
    found = [figures.figures_of(one) for one in points if figures.time_of(one["bucketStart"]) == minute]
    return reduce(add, found, NO_CALLS)


def _trend_of_all(points: Iterable[Any], minutes: list[datetime]) -> tuple[Decimal | None, ...]:
    sums = dict.fromkeys(minutes, Spend())
    for point in points:
        start = datetime.fromisoformat(point["bucketStart"])
        if start in sums:
            sums[start] += figures.spend_of(point)
    return tuple(spend.amount or Decimal(0) for spend in sums.values())


def _names(points: Iterable[Any], by: str) -> dict[str, str]:
    """Every row of the points, with its newest name."""
    return {figures.key_of(point, by): figures.name_of(point, by) for point in points}


# --- times -------------------------------------------------------------------------------------------


def _whole_minute(watermarks: Iterable[datetime | None]) -> datetime | None:
    """The start of the newest minute that a watermark has passed wholly."""
    known = [one for one in watermarks if one is not None]
    return max(known).replace(second=0, microsecond=0) - _MINUTE if known else None


def _starts(newest: datetime | None, count: int) -> list[datetime]:
    """The starts of ``count`` minutes, of which ``newest`` is the last."""
    return [] if newest is None else [newest - _MINUTE * back for back in range(count - 1, -1, -1)]


def _today(at: datetime) -> tuple[datetime, datetime]:
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return start, start + _DAY


def _range(start: datetime, end: datetime) -> Query:
    return [("start", _rfc3339(start)), ("end", _rfc3339(end))]


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def with_freshness(view: View, fresh: Freshness) -> View:
    """The same view with a newer freshness, as a live stream says it."""
    return replace(view, total=replace(view.total, freshness=fresh))
