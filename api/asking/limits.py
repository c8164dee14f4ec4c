"""Limits: which ranges can be answered now, because the rows that they need are still kept.

REST and exports ask here, so a range that one of them refuses is refused by both, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from api.asking.buckets import (
    DAY,
    HOUR,
    Calendar,
    Granularity,
    Span,
    add_months,
    minute_edges,
    to_datetime,
)
from api.config import RangeConfig

Fault = Callable[[str, str], None]
"""Takes the parameter that is wrong (``start``, ``end``, ``granularity``, ``timeZone``), and what to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits at the minute ``now``."""

    ranges: RangeConfig
    now: int

    def span(self, fault: Fault, start: int, end: int, zone: ZoneInfo) -> Span | None:
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

    def check_rows(self, fault: Fault, span: Span, calendar: Calendar, *, split_by: str) -> None:
        """Minute rows are kept for a shorter time than the others, and not by client or dimension at all.

        ``split_by`` is the client or dimension that the figures are by; '' for neither.
        """
        oldest = self._oldest(self.ranges.retention_minute_s)
        named: set[str] = set()
        for name, part in minute_edges(span, calendar):
            if name in named or (not split_by and part.start >= oldest):
                continue
            named.add(name)
            texts = _NO_MINUTES if split_by else _TOO_OLD
            fault(name, texts[name].format(name=split_by, oldest=shown(oldest)))

    def check_months(self, fault: Fault, zone: ZoneInfo, *, split_by: str) -> None:
        """Can each whole month of the zone be answered once it is final?"""
        days = Calendar(Granularity.DAY, zone).edges(Span(self.now, self.now + 366 * DAY))
        if not any(day % HOUR for day in days):
            return
        if split_by:
            fault("timeZone", _NO_MINUTES["timeZone"].format(name=split_by))
        elif self.ranges.retention_minute_s < 60 * _MONTH_MAX + self.ranges.dedupe_window_s:
            kept = self.ranges.retention_minute_s / 86_400
            fault("timeZone", _MONTH_TOO_OLD.format(days=f"{kept:g}"))

    def _oldest(self, retention_s: float) -> int:
        """The first minute whose rows are kept for certain."""
        return self.now - int(retention_s // 60)


def shown(minute: int) -> str:
    return to_datetime(minute).strftime("%Y-%m-%dT%H:%MZ")


_MONTH_MAX: Final = 33 * DAY
"""The longest month, its longest day, and a day in which to make the file once the month is final."""
_NO_MINUTES: Final = {
    "start": "must be a whole hour, since figures by {name} exist from the hour grain up",
    "end": "must be a whole hour, since figures by {name} exist from the hour grain up",
    "timeZone": "its days do not begin on whole hours of UTC, and figures by {name} exist from the hour grain"
    " up",
}
_TOO_OLD: Final = {
    "granularity": "minute rows go back to {oldest} only; start later or take granularity=hour",
    "start": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "end": "minute rows go back to {oldest} only; before that it must be a whole hour of UTC",
    "timeZone": "its days do not begin on whole hours of UTC, which takes minute rows, and those go back to"
    " {oldest} only; start later or take another zone",
}
_MONTH_TOO_OLD: Final = (
    "its days do not begin on whole hours of UTC, which takes minute rows, and those are kept for {days} days"
    " only (RETENTION_MINUTE), which is too short for a file of a month; take another zone"
)
