"""How a view becomes lines of text: the head, the columns that fit, the rows, and the last line.

The module is pure and draws nothing. A line is made of pieces, each with the name of a style, and has at most
as many cells as there are. Every text that a tenant may have chosen goes through `texts.safe` here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.common.texts import counted
from pipeline.top import texts
from pipeline.top.figures import Figures, Freshness, Row, View

WIDTH_MIN: Final = 60
_NAME_MIN: Final = 14
_NAME_WISHED: Final = 40
"""On a wide screen names get so much before the last columns get anything."""
_NAME_MAX: Final = 48
_GAP: Final = 2
_SHORT_HEIGHT: Final = 18
"""On a lower screen the head has only what matters most."""

Piece = tuple[str, str]
"""A text, and the name of its style: those of `pipeline.top.screen`, or none."""
Line = list[Piece]
STATUS_STYLES: Final = {"fresh": "good", "stale": "warn", "delayed": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its title, its width in cells, and the text of a row's cell at an instant."""

    name: str
    title: str
    cells: int
    text: Callable[[Row, float], str]


def _hour_column(name: str, title: str, cells: int, text: Callable[[Figures], str]) -> Column:
    return Column(name=name, title=title, cells=cells, text=lambda row, _: text(row.hour))


_COLUMNS: Final = (
    Column(name="minute", title="$/min", cells=9, text=lambda row, _: texts.spent(row.minute)),
    Column(name="hour", title="hour", cells=9, text=lambda row, _: texts.spent(row.hour)),
    Column(name="today", title="today", cells=10, text=lambda row, _: texts.spent(row.today)),
    _hour_column("errors", "err", 6, lambda one: texts.percent(one.error_share)),
    Column(name="trend", title="trend", cells=12, text=lambda row, _: texts.bars(row.trend, 12)),
    _hour_column("requests", "calls/h", 8, lambda one: texts.count(one.requests)),
    _hour_column("p95", "p95", 8, lambda one: texts.milliseconds(one.p95_ms)),
    Column(name="lag", title="lag", cells=7, text=lambda row, now_s: texts.lag(row.freshness, now_s)),
    _hour_column("in", "in/h", 7, lambda one: texts.count(one.tokens_in)),
    _hour_column("out", "out/h", 7, lambda one: texts.count(one.tokens_out)),
    _hour_column("cached", "cached/h", 8, lambda one: texts.count(one.cached)),
    _hour_column("unpriced", "unpriced", 8, lambda one: texts.count(one.spend.unpriced)),
    _hour_column("basis", "basis", 8, lambda one: one.spend.basis),
)
"""The first ones matter most: on a narrow screen the last ones are left out."""


def columns(view: View, width: int) -> list[Column]:
    """The columns for which there is room, and which some row has something for."""
    empty = {
        "minute": all(row.minute is None for row in view.rows),
        "trend": all(len(row.trend) < 2 for row in view.rows),
        "p95": view.total.hour.p95_ms is None and all(row.hour.p95_ms is None for row in view.rows),
        "errors": view.total.hour.error_share is None,
        "lag": all(row.freshness is None for row in view.rows),
        "cached": view.total.hour.cached is None,
        "unpriced": not view.total.hour.spend.unpriced,
    }
    room = width - 1 - min(_NAME_MIN + max(0, width - WIDTH_MIN) // 3, _NAME_WISHED)
    found = []
    for column in _COLUMNS:
        if empty.get(column.name) and view.rows:
            continue
        room -= column.cells + _GAP
        if room < 0:
            break
        found.append(column)
    return found


def _name_cells(shown: Sequence[Column], width: int) -> int:
    room = width - 1 - sum(column.cells + _GAP for column in shown)
    return max(1, min(_NAME_MAX, room))


def table_head(view: View, shown: Sequence[Column], width: int, sort: str) -> Line:
    """The titles of the columns ``shown``; the one that rows are sorted by is marked."""
    cells = [texts.fit((">" if sort == "name" else " ") + view.by, _name_cells(shown, width) + 1)]
    for column in shown:
        title = _title(column, view)
        marked = f"▾{title}" if column.name == sort else title
        cells.append(" " * _GAP + texts.fit(marked, column.cells, right=True))
    return [(texts.fit("".join(cells), width), "head")]


def _title(column: Column, view: View) -> str:
    return "this hour" if column.name == "hour" and view.hour_words == "this hour" else column.title


def table_row(shown: Sequence[Column], row: Row, width: int, now_s: float, *, chosen: bool = False) -> Line:
    """One row. Rows with old figures and cells with many errors have styles of their own."""
    status = "" if row.freshness is None else row.freshness.status
    style = "warn" if status in ("stale", "delayed") else ""
    mark = ">" if chosen else " "
    line: Line = [(mark + texts.fit(texts.safe(row.name), _name_cells(shown, width)), style)]
    for column in shown:
        text = " " * _GAP + texts.fit(column.text(row, now_s), column.cells, right=True)
        line.append((text, _cell_style(column, row, text) or style))
    if chosen:
        return [(texts.fit("".join(text for text, _ in line), width), "chosen")]
    return line


_MANY_ERRORS: Final = 0.05


def _cell_style(column: Column, row: Row, text: str) -> str:
    if column.name == "errors" and (row.hour.error_share or 0) >= _MANY_ERRORS:
        return "bad"
    if column.name == "trend":
        return "trend"
    return "warn" if text.strip() == "unpriced" else ""


# --- the head ----------------------------------------------------------------------------------------


def head(view: View, width: int, height: int, now: datetime, now_s: float) -> list[Line]:
    """The lines above the table."""
    total = view.total
    minute = total.minute
    of_minute = f" at {view.minute_start:%H:%M}" if view.minute_start else ""
    lines: list[Line] = [
        _edges(
            [("spendstream top", "title"), (f"  {texts.safe(view.title)}, by {view.by}", "")],
            f"{now:%H:%M:%S} UTC",
            width,
        ),
        _figures(
            "Spend",
            (
                (texts.spent(minute), f"/min{of_minute}"),
                (texts.spent(total.hour), " last hour"),
                (texts.spent(total.today), " today"),
            ),
        ),
    ]
    if height >= _SHORT_HEIGHT:
        latency = () if total.hour.p95_ms is None else ((texts.milliseconds(total.hour.p95_ms), " p95"),)
        errors = (
            () if total.hour.error_share is None else ((texts.percent(total.hour.error_share), " errors"),)
        )
        lines += [
            _figures(
                "Calls",
                (
                    (texts.count(None if minute is None else minute.requests), "/min"),
                    (texts.count(total.hour.requests), " last hour"),
                    *errors,
                    *latency,
                ),
            ),
            _figures("Tokens", (*_tokens(total.hour), ("", "last hour"))),
        ]
    lines.append(_fresh(total.freshness, now_s))
    if height >= _SHORT_HEIGHT and len(total.trend) > 1:
        known = [one for one in total.trend if one is not None]
        top = f"  most {texts.dollars(max(known, default=Decimal(0)))}"
        cells = min(len(total.trend), width - 8 - len(top))
        lines.append([("$/min   ", "label"), (texts.bars(total.trend, cells), "trend"), (top, "dim")])
    return [clipped(line, width) for line in lines] + [clipped(line, width) for line in _notes(view)]


def _tokens(hour: Figures) -> list[tuple[str, str]]:
    found = [(texts.count(hour.tokens_in), " in"), (texts.count(hour.tokens_out), " out")]
    return found if hour.cached is None else [*found, (texts.count(hour.cached), " of them cached")]


def _figures(label: str, shown: Sequence[tuple[str, str]]) -> Line:
    line: Line = [(texts.fit(label, 8), "label")]
    for number, (figure, words) in enumerate(shown):
        line += [("  " if number else "", ""), (figure, "figure"), (words, "dim")]
    return line


def _fresh(fresh: Freshness | None, now_s: float) -> Line:
    line: Line = [(texts.fit("Fresh", 8), "label")]
    if fresh is None or fresh.watermark is None:
        return [*line, ("no figures yet", "dim")]
    style = STATUS_STYLES.get(fresh.status, "")
    line += [(fresh.status, style), ("  lag ", "dim"), (texts.lag(fresh, now_s), style)]
    if fresh.counted_through is not None:
        line.append((f"  counted to {fresh.counted_through:%H:%M:%S}", "dim"))
    return [*line, (f"  complete to {fresh.watermark:%H:%M:%S}", "dim")]


def _notes(view: View) -> list[Line]:
    """What must be known beside the figures: calls without a price, estimates, what is left out."""
    spend = view.total.hour.spend
    notes = []
    if spend.unpriced:
        notes.append(f"{counted(spend.unpriced, 'call')} of the last hour without a price, not in its spend")
    if spend.basis == "estimate":
        notes.append("~ the producers' estimates")
    elif spend.basis == "mixed":
        notes.append("~ in part the producers' estimates")
    if view.more_rows:
        notes.append("not all rows are shown")
    notes += view.notes
    return [[(texts.fit("Note", 8), "label"), (texts.safe(note), "warn")] for note in notes]


def _edges(left: Line, right: str, width: int) -> Line:
    used = sum(texts.width(text) for text, _ in left)
    return [*left, (" " * max(1, width - used - len(right)) + right, "dim")] if used < width else left


def clipped(line: Line, width: int) -> Line:
    """The line in at most ``width`` cells."""
    found: Line = []
    for text, style in line:
        room = width - sum(texts.width(one) for one, _ in found)
        if texts.width(text) > room:
            found.append((texts.fit(text, max(0, room)), style))
            break
        found.append((text, style))
    return found


# --- without a screen --------------------------------------------------------------------------------


def plain(view: View, sort: str, rows: Sequence[Row], width: int) -> str:
    """One snapshot as plain text."""
    lines = head(view, width, 1000, view.read_at, view.read_s)
    shown = columns(view, width)
    lines += [[], table_head(view, shown, width, sort)]
    lines += [table_row(shown, row, width, view.read_s) for row in rows]
    if not rows:
        lines.append([("no events yet", "")])
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)
