"""The screen: draws what `layout` makes of the newest view, and takes keys.

Everything is drawn by one widget from lines of text, so the screen holds nothing that `layout` has not made
safe. The bottom lines say what keys do, and in trouble why the figures are old.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget

from pipeline.top import layout, texts
from pipeline.top.client import Api, Away, Refused
from pipeline.top.figures import SORTS, Freshness, Row, View, ordered
from pipeline.top.layout import Line
from pipeline.top.reading import OneOrg, Orgs, with_freshness
from pipeline.top.watch import Told, Trouble, watch

_DRAWN_S: Final = 1.0
"""How often the clock and the ages are drawn anew. New figures and keys are drawn at once."""
_STYLES: Final = {
    "title": "bold cyan",
    "label": "cyan",
    "figure": "bold",
    "trend": "green",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
    "head": "reverse",
    "chosen": "bold reverse cyan",
}
_KEYS: Final = (
    ("↑ ↓  k j", "choose a row; also PgUp, PgDn, Home and End"),
    ("Enter", "go into the org: its models"),
    ("b  Esc", "back to all orgs"),
    ("s", "sort by the next column"),
    ("d", "split an org by the next: model, client, each dimension"),
    ("?", "this help"),
    ("q", "quit"),
)
_LEGEND: Final = (
    "$/min is the newest whole minute; today is the day of UTC.",
    "lag: how old the time is up to which the figures are complete.",
    "~ producers' estimates   + some calls have no price",
    "unpriced: nobody knows what the calls cost. It is not $0.",
)


class _Canvas(Widget):
    """Draws the lines of the application."""

    app: Top

    def render(self) -> Text:
        """The whole screen."""
        text = Text(no_wrap=True, overflow="crop", end="")
        for number, line in enumerate(self.app.lines(self.size.width, self.size.height)):
            if number:
                text.append("\n")
            for piece, style in line:
                text.append(piece, _STYLES.get(style, ""))
        return text


class Top(App[None]):
    """The live view. ``refused`` is why it ended by itself."""

    TITLE = "spendstream top"
    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { overflow: hidden; } _Canvas { width: 100%; height: 100%; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", priority=True),
        Binding("up,k", "choose(-1)"),
        Binding("down,j", "choose(1)"),
        Binding("pageup", "choose(-10)"),
        Binding("pagedown", "choose(10)"),
        Binding("home", "choose(-100000)"),
        Binding("end", "choose(100000)"),
        Binding("enter", "enter"),
        Binding("b,escape,backspace", "leave"),
        Binding("s", "sort"),
        Binding("d", "split"),
        Binding("question_mark,h", "explain"),
    ]

    def __init__(self, api: Api, reading: Orgs | OneOrg, *, interval_s: float, sort: str) -> None:
        super().__init__()
        self.refused: Refused | None = None
        self._api = api
        self._reading: Orgs | OneOrg = reading
        self._interval_s = interval_s
        self._sort_name = sort
        self._view: View | None = None
        self._rows: list[Row] = []
        self._trouble: Trouble | None = None
        self._chosen = ""
        self._first = 0
        self._helps = False
        self._said = ""
        self._orgs: tuple[Orgs, View | None, str] | None = None
        """What `action_leave` goes back to: all orgs, the last view of them, and the row that was chosen."""

    def compose(self) -> ComposeResult:
        yield _Canvas()

    def on_mount(self) -> None:
        self.set_interval(_DRAWN_S, self._draw)
        self._show(self._reading, None)

    # --- what comes in -----------------------------------------------------------------------------

    def _show(self, reading: Orgs | OneOrg, view: View | None) -> None:
        """Watch another reading in the place of the one before."""
        self._reading = reading
        self._trouble, self._said, self._first = None, "", 0
        self._take(view)
        self.run_worker(self._watch(reading), group="watch", exclusive=True)

    async def _watch(self, reading: Orgs | OneOrg) -> None:
        try:
            await watch(self._api, reading, self._interval_s, self._tell)
        except Refused as refused:
            if reading is not self._reading:
                return
            if refused.status in (400, 404) and self._view is not None:
                self._said = str(refused)
                return
            self.refused = refused
            self.exit(return_code=1)

    def _tell(self, told: Told) -> None:
        if isinstance(told, View):
            self._trouble = None
            self._take(told)
        elif isinstance(told, Freshness):
            if self._view is not None and self._trouble is None:
                self._view = with_freshness(self._view, told)
        else:
            self._trouble = told
        self._draw()

    def _take(self, view: View | None) -> None:
        self._view = view
        self._rows = [] if view is None else ordered(view.rows, self._sort_name)
        if self._rows and self._chosen not in (row.key for row in self._rows):
            self._chosen = self._rows[0].key

    def _draw(self) -> None:
        self.query_one(_Canvas).refresh()

    # --- keys --------------------------------------------------------------------------------------

    def action_choose(self, by: int) -> None:
        """Choose the row that is so many rows below."""
        if self._rows:
            place = min(max(self._place() + by, 0), len(self._rows) - 1)
            self._chosen = self._rows[place].key
        self._draw()

    def action_enter(self) -> None:
        """Show the chosen org by model."""
        if isinstance(self._reading, Orgs) and self._rows:
            self._orgs = (self._reading, self._view, self._chosen)
            org_id, self._chosen = self._chosen, ""
            self._show(OneOrg(self._api, org_id, "model"), None)
            self._draw()

    def action_leave(self) -> None:
        """Show all orgs again."""
        if self._helps:
            self._helps = False
        elif isinstance(self._reading, OneOrg) and self._orgs is not None:
            orgs, view, self._chosen = self._orgs
            self._show(orgs, view)
        self._draw()

    def action_sort(self) -> None:
        """Sort by the next column that the screen has."""
        if self._view is None:
            return
        shown = {column.name for column in layout.columns(self._view, self.size.width)} | {"name"}
        names = [name for name in SORTS if name in shown]
        place = names.index(self._sort_name) if self._sort_name in names else -1
        self._sort_name = names[(place + 1) % len(names)]
        self._take(self._view)
        self._draw()

    def action_split(self) -> None:
        """Split the org by the next of model, client and the dimensions."""
        if isinstance(self._reading, OneOrg):
            self.run_worker(self._split(self._reading), group="split", exclusive=True)
        else:
            self._said = "an org can be split by model, client or dimension: Enter goes into the chosen one"
            self._draw()

    async def _split(self, reading: OneOrg) -> None:
        try:
            names = await reading.dimensions()
        except (Away, Refused) as error:
            self._said = str(error)
            return
        if reading is self._reading:
            place = names.index(reading.by) if reading.by in names else -1
            self._chosen = ""
            self._show(OneOrg(self._api, reading.org_id, names[(place + 1) % len(names)]), None)

    def action_explain(self) -> None:
        """Show or hide the help."""
        self._helps = not self._helps
        self._draw()

    def _place(self) -> int:
        return next((n for n, row in enumerate(self._rows) if row.key == self._chosen), 0)

    # --- drawing -----------------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Line]:
        """All lines of the screen."""
        now_s = time.monotonic()
        bottom = self._bottom(width, now_s)
        if self._helps:
            body = _help()
        elif self._view is None:
            body = [[(f"asking {texts.safe(self._api.config.url)} …", "dim")]]
        else:
            body = self._body(self._view, width, height - len(bottom), now_s)
        body = [layout.clipped(line, width) for line in body[: max(0, height - len(bottom))]]
        return [*body, *([] for _ in range(height - len(bottom) - len(body))), *bottom]

    def _body(self, view: View, width: int, height: int, now_s: float) -> list[Line]:
        lines = layout.head(view, width, height, datetime.now(UTC), now_s)
        shown = layout.columns(view, width)
        lines.append(layout.table_head(view, shown, width, self._sort_name))
        if not self._rows:
            return [*lines, [("no events yet", "dim")]]
        room = max(1, height - len(lines))
        place = self._place()
        self._first = max(min(self._first, place, len(self._rows) - room), place - room + 1, 0)
        for row in self._rows[self._first : self._first + room]:
            lines.append(layout.table_row(shown, row, width, now_s, chosen=row.key == self._chosen))
        return lines

    def _bottom(self, width: int, now_s: float) -> list[Line]:
        keys = "q quit  ↑↓ choose  "
        keys += "Enter open  " if isinstance(self._reading, Orgs) else "d split  "
        keys += "b back  " if isinstance(self._reading, OneOrg) and self._orgs else ""
        place = f"  {self._place() + 1}/{len(self._rows)}" if self._rows else ""
        lines: list[Line] = [layout.clipped([(f"{keys}s sort  ? help{place}", "dim")], width)]
        if self._trouble is not None:
            old = "" if self._view is None else f"figures are {texts.age(now_s - self._view.read_s)} old; "
            again = texts.age(max(0.0, self._trouble.again_s - now_s))
            said = f"{old}again in {again}: {texts.safe(self._trouble.text)}"
            lines.insert(0, layout.clipped([(said, "bad")], width))
        elif self._said:
            lines.insert(0, layout.clipped([(texts.safe(self._said), "warn")], width))
        return lines


def _help() -> list[Line]:
    lines: list[Line] = [[("Keys", "title")], []]
    lines += [[(texts.fit(keys, 12), "figure"), (words, "")] for keys, words in _KEYS]
    return [*lines, [], *([(line, "dim")] for line in _LEGEND)]
