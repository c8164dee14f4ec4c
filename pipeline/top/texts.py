"""How one value is written in a terminal: money, counts, ages, names, a line of bars.

Names come from tenants. `safe` lets no character through that a terminal would obey or hide, and `fit` cuts
by the cells that characters take, not by their number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from pipeline.common.texts import VISIBLE
from pipeline.top.figures import Figures, Freshness, Spend

NAME_CHARS_MAX: Final = 200
MARKS_MAX: Final = 3
"""How many combining marks a letter may have: enough for Vietnamese, Thai and pointed Hebrew."""
UNKNOWN: Final = "–"
_UNSAFE: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_NO_CELL: Final = ("Mn", "Me")
_BARS: Final = "▁▂▃▄▅▆▇█"
_MISSING: Final = "·"


def safe(text: object) -> str:
    """A text that a terminal shows as it is: what it would obey or hide is written as an escape.

    So is the fourth mark on one letter: a hundred marks would be drawn over the lines above.
    """
    shown, marks = [], 0
    for character in str(text)[:NAME_CHARS_MAX].translate(VISIBLE):
        category = unicodedata.category(character)
        marks = marks + 1 if category in _NO_CELL else 0
        shown.append(_escape(character) if category in _UNSAFE or marks > MARKS_MAX else character)
    return "".join(shown)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return sum(_cells(c) for c in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in _NO_CELL:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, cells: int, *, right: bool = False) -> str:
    """The text in exactly ``cells`` cells: filled with spaces, or cut with an ellipsis."""
    if width(text) > cells:
        kept, used = [], 0
        for character in text:
            used += _cells(character)
            if used > cells - 1:
                break
            kept.append(character)
        text = "".join(kept) + "…" if cells else ""
    room = " " * (cells - width(text))
    return room + text if right else text + room


def dollars(amount: Decimal) -> str:
    """An amount with as many decimals as say something: $1,234.57, $12.35, $0.0046, $1.2M."""
    size = abs(amount)
    sign = "-" if amount < 0 else ""
    if size >= 1_000_000:
        return f"{sign}${size / 1_000_000:.2f}M"
    decimals = 2 if size >= 1 or size == 0 else 4
    step = Decimal(1).scaleb(-decimals)
    rounded = size.quantize(step, ROUND_HALF_EVEN)
    if rounded == 0 and size:
        return f"{sign}<${step}"
    return f"{sign}${rounded:,}"


def money(spend: Spend, requests: int) -> str:
    """A spend in a cell. ``~`` marks estimates of the producers, ``+`` calls without a price beside it.

    Calls of which none has a price are ``unpriced``, never $0.
    """
    if spend.amount is None:
        return "unpriced" if spend.unpriced or requests else UNKNOWN
    mark = "~" if spend.basis in ("estimate", "mixed") else ""
    return f"{mark}{dollars(spend.amount)}{'+' if spend.unpriced else ''}"


def spent(figures: Figures | None) -> str:
    """The spend of a stretch of time in a cell."""
    return UNKNOWN if figures is None else money(figures.spend, figures.requests)


def count(number: int | None) -> str:
    """A number in at most six characters: 812, 9,412, 18.2k, 1.25M, 3.10G."""
    if number is None:
        return UNKNOWN
    if abs(number) < 10_000:
        return f"{number:,}"
    for unit, size in (("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12)):
        scaled = number / size
        if abs(scaled) < 999.5 or unit == "T":
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"
    raise AssertionError


def percent(share: float | None) -> str:
    """A share of calls: 0 %, 0.04 %, 1.2 %, 100 %."""
    if share is None:
        return UNKNOWN
    hundredths = share * 100
    if 0 < hundredths < 0.1:
        return f"{max(hundredths, 0.01):.2f}%"
    return f"{hundredths:.1f}%" if 0 < hundredths < 100 else f"{hundredths:.0f}%"


def milliseconds(value: float | None) -> str:
    """A latency: 812 ms, 2.31 s."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}ms" if value < 9_999.5 else f"{value / 1000:.1f}s"


def age(seconds: float | None) -> str:
    """A stretch of time: 0.4 s, 12 s, 3 min, 2 h, 4 d."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, size, below in (("s", 1, 119.5), ("min", 60, 7170), ("h", 3600, 172_800)):
        if seconds < below:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def lag(freshness: Freshness | None, now_s: float) -> str:
    """The lag of figures now."""
    return UNKNOWN if freshness is None else age(freshness.lag_now_s(now_s))


def bars(amounts: Sequence[Decimal | None], cells: int) -> str:
    """The newest ``cells`` amounts as bars, of which the highest is full. A dot: not known."""
    shown = list(amounts[-cells:]) if cells else []
    top = max((one for one in shown if one is not None), default=Decimal(0))
    return "".join(_MISSING if one is None else _bar(one, top) for one in shown).rjust(cells)


def _bar(amount: Decimal, top: Decimal) -> str:
    if amount <= 0 or top <= 0:
        return " "
    return _BARS[min(len(_BARS) - 1, int(amount * len(_BARS) / top))]
