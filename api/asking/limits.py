"""Limits: which ranges can be answered now, because the rows that they need are still kept.

REST and exports ask here, so a range that one of them refuses is refused by both, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from api.asking.buckets import (
    DAY,
    HOUR,
    NO_QUARTERS,
    Calendar,
    Granularity,
    Quarters,
    Span,
    add_months,
    minute_edges,
    to_datetime,
)
from api.config import RangeConfig
from pipeline.common.day_zones import split_hours
from pipeline.common.problems import Fault

Report = Callable[[str, str], None]
"""Takes the parameter that is wrong (``start``, ``end`` or ``timeZone``), and what to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits at the minute ``now``."""

    ranges: RangeConfig
    now: int

    def span(self, fault: Report, start: int, end: int, zone: ZoneInfo) -> Span | None:
        """The range, if it is neither empty, nor too long, nor too old."""
        months = self.ranges.months_max
        if end <= start:
            fault("end", "must be after start")
            return None
        try:
            latest = add_months(start, months, zone)
            add_months(latest, 2, zone)  # the last bucket has an end
        except (ValueError, OverflowError):
            fault("start", "is beyond the calendar")
            return None
        if end > latest:
            fault("end", f"must be at most {months} months after start")
            return None
        if start < (oldest := self._oldest(self.ranges.retention_rollup_s)):
            fault("start", f"hour and day rows go back to {shown(oldest)} only (RETENTION_ROLLUP)")
            return None
        return Span(start, end)

    def lacking(
        self, span: Span, calendar: Calendar, *, split_by: str, quarters: Quarters | None = None
    ) -> list[Fault]:
        """The faults of a range whose rows are not all there: of start, end, granularity or timeZone.

        Minute rows are kept for a shorter time than the others, and not by client or dimension at all.
        ``split_by`` is the client or dimension that the figures are by; '' for neither. Rows by the quarter
        can stand in for old minute rows. ``quarters`` are those that the database has. None: those that
        DAY_ZONES may have. Then, where `needs_quarters` says so, the database must be asked.
        """
        if split_by:
            quarters = NO_QUARTERS
        elif quarters is None:
            quarters = self._set_quarters
        oldest = self._oldest(self.ranges.retention_minute_s)
        lacking: dict[str, list[int | None]] = {}
        for name, part in minute_edges(span, calendar, quarters):
            if split_by or part.start < oldest:
                lacking.setdefault(name, []).append(quarters.kept_since(part))
        texts = _NO_MINUTES if split_by else _TOO_OLD
        return [
            Fault(name, texts[name].format(name=split_by, oldest=shown(oldest)) + _since(times))
            for name, times in lacking.items()
        ]

    def needs_quarters(self, span: Span, calendar: Calendar, *, split_by: str) -> bool:
        """Does the range need older rows than minute rows, so that those of DAY_ZONES must be looked for?"""
        oldest = self._oldest(self.ranges.retention_minute_s)
        if split_by or span.start >= oldest or not self._set_quarters.since:
            return False
        return any(part.start < oldest for _, part in minute_edges(span, calendar))

    @property
    def _set_quarters(self) -> Quarters:
        """The quarters that the database may have."""
        return Quarters(dict.fromkeys(split_hours(self.ranges.day_zones), 0))

    def check_months(self, fault: Report, zone: ZoneInfo, *, split_by: str) -> None:
        """Can each whole month of the zone be answered once it is final?"""
        days = Calendar(Granularity.DAY, zone).edges(Span(self.now, self.now + 366 * DAY))
        off = [day for day in days if day % HOUR]
        if not off:
            return
        if split_by:
            fault("timeZone", _NO_MINUTES["timeZone"].format(name=split_by))
        elif all(self._set_quarters.cover(Span(day, day)) for day in off):
            return  # the file of a month from before the rows of DAY_ZONES says from when they are
        elif self.ranges.retention_minute_s < 60 * _MONTH_MAX + self.ranges.dedupe_window_s:
            kept = self.ranges.retention_minute_s / 86_400
            fault("timeZone", _MONTH_TOO_OLD.format(days=f"{kept:g}"))

    def _oldest(self, retention_s: float) -> int:
        """The first minute whose rows are kept for certain."""
        return self.now - int(retention_s // 60)


def _since(times: Sequence[int | None]) -> str:
    """From when on there are rows of DAY_ZONES for all that is lacking; the end of a fault."""
    known = [since for since in times if since is not None]
    return f"; rows of DAY_ZONES are kept since {shown(max(known))}" if len(known) == len(times) else ""


def shown(minute: int) -> str:
    return to_datetime(minute).strftime("%Y-%m-%dT%H:%MZ")


_MONTH_MAX: Final = 33 * DAY
"""The longest month, its longest day, and a day in which to make the file once the month is final."""
_NO_MINUTES: Final = {
    "start": "must be a whole hour, since figures by {name} exist from the hour grain up",
    "end": "must be a whole hour, since figures by {name} exist from the hour grain up",
    "timeZone": "its days do not begin on whole hours of UTC, and figures by {name} exist from the hour grain"
    " up; take figures that are not by {name} (for an export groupBy=model)",
}
_TOO_OLD: Final = {
    "granularity": "minute rows go back to {oldest} only; start later or take granularity=hour",
    "start": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "end": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "timeZone": "its days do not begin on whole hours of UTC, which takes minute rows, and those go back to"
    " {oldest} only; start later, take another zone, or name this one in DAY_ZONES, which keeps rows for"
    " its days from then on",
}
_MONTH_TOO_OLD: Final = (
    "its days do not begin on whole hours of UTC, which takes minute rows, and those are kept for {days} days"
    " only (RETENTION_MINUTE), which is too short for a file of a month; take another zone, or name this one"
    " in DAY_ZONES"
)
