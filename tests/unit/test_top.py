"""The live view: figures of answers, their sums and order, how they are written, and what fits on a line."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.operator import OperatorError
from pipeline.top import figures, layout, reading, run, texts
from pipeline.top import watch as watching
from pipeline.top.client import ApiConfig, Away, Refused
from pipeline.top.figures import NO_CALLS, Figures, Freshness, Row, Spend, View, ordered

AT = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)


def spend(amount: str | None, unpriced: int = 0, basis: str = "book") -> Spend:
    return Spend(
        amount=None if amount is None else Decimal(amount),
        unpriced=unpriced,
        basis="none" if amount is None else basis,
    )


def row(name: str, hour: str = "1.00", **more: Any) -> Row:
    one = Figures(requests=10, tokens_in=1000, tokens_out=100, spend=spend(hour), error_share=0.0)
    figures = {"minute": one, "hour": one, "today": one}
    return Row(**{"key": name, "name": name, "trend": (Decimal(1),) * 30, **figures, **more})


def view(*rows: Row, **more: Any) -> View:
    fresh = Freshness(
        status="fresh", lag_s=10.8, watermark=AT - timedelta(seconds=11), counted_through=None, read_s=100.0
    )
    total = row("", freshness=fresh, trend=(Decimal(0), Decimal(1), Decimal(2)))
    return View(
        **{
            "title": "all orgs",
            "by": "org",
            "rows": rows,
            "total": total,
            "minute_start": AT.replace(second=0) - timedelta(minutes=1),
            "hour_words": "last hour",
            "trend_words": "30 minutes",
            "read_at": AT,
            "read_s": 100.0,
            **more,
        }
    )


def text_of(lines: list[layout.Line]) -> list[str]:
    return ["".join(piece for piece, _ in line) for line in lines]


# --- figures -----------------------------------------------------------------------------------------


def point(model: str, minute: int, amount: str | None, unpriced: int = 0) -> dict[str, Any]:
    return {
        "bucketStart": f"2026-11-10T12:{minute:02}:00Z",
        "modelId": model,
        "clientId": None,
        "value": None,
        "provider": "openai",
        "modelName": model,
        "invocations": 3,
        "inputTokens": 30,
        "outputTokens": 6,
        "cacheReadTokens": 10,
        "cost": {"amount": amount, "currency": "USD", "basis": "none" if amount is None else "book"},
        "unpriced": {"invocations": unpriced},
    }


def test_rows_of_a_series_add_up_exactly_over_their_buckets() -> None:
    tiny = "0.00000000000000000001"
    found = figures.summed(
        [point("a", 1, "99999999.10"), point("a", 2, tiny), point("b", 1, None, 3)], "model"
    )
    assert found["a"] == Figures(
        requests=6, tokens_in=60, tokens_out=12, cached=20, spend=spend("99999999.10000000000000000001")
    )
    assert found["b"].spend == spend(None, 3)


def test_a_sum_keeps_what_is_unknown_and_says_its_basis() -> None:
    assert spend("1.5") + spend(None, 4) == spend("1.5", 4)
    assert spend(None, 1) + spend(None, 2) == spend(None, 3)
    assert (spend("1") + spend("2", basis="estimate")).basis == "mixed"
    assert (spend("1", basis="estimate") + spend("2", basis="estimate")).basis == "estimate"


def test_the_error_share_of_a_sum_is_that_of_all_calls() -> None:
    both = Figures(requests=10, error_share=0.1) + Figures(requests=30, error_share=0.3)
    assert (both.errors, both.error_share) == (10, 0.25)
    assert (NO_CALLS + Figures(requests=4, error_share=0.5)).error_share == 0.5
    assert (NO_CALLS + NO_CALLS).error_share is None


def test_a_trend_has_a_place_for_each_bucket() -> None:
    starts = [datetime(2026, 11, 10, 12, minute, tzinfo=UTC) for minute in (1, 2, 3)]
    found = figures.trends([point("a", 1, "2"), point("a", 3, None, 1), point("a", 9, "7")], "model", starts)
    assert found == {"a": (Decimal(2), Decimal(0), Decimal(0))}


def test_names_say_what_a_row_is() -> None:
    one = {"modelId": "1f", "clientId": None, "value": None, "clientName": None, "valueName": None}
    assert figures.name_of({**one, "provider": "openai", "modelName": "gpt-4o"}, "model") == "openai/gpt-4o"
    assert figures.name_of({**one, "provider": None, "modelName": None}, "model") == "1f"
    assert figures.name_of(one, "client") == "(none)"
    assert figures.name_of({**one, "clientId": "x" * 129}, "client") == "(all others)"
    assert figures.name_of({**one, "value": "t-1", "valueName": "Search"}, "team") == "Search"


def test_the_lag_grows_while_nothing_comes() -> None:
    fresh = Freshness(status="fresh", lag_s=2.0, watermark=AT, counted_through=None, read_s=100.0)
    assert (fresh.lag_now_s(100.0), fresh.lag_now_s(130.0)) == (2.0, 32.0)
    assert replace(fresh, lag_s=None).lag_now_s(130.0) is None


def test_rows_are_sorted_with_the_largest_first_and_ties_by_name() -> None:
    rows = [row("b", "2"), row("a", "2"), row("c", "9"), replace(row("d"), hour=NO_CALLS)]
    assert [one.name for one in ordered(rows, "hour")] == ["c", "a", "b", "d"]
    assert [one.name for one in ordered(rows, "name")] == ["a", "b", "c", "d"]


def test_a_dimension_says_since_when_it_counts_if_that_is_not_all_day() -> None:
    today = AT.replace(hour=0, minute=0, second=0)
    assert reading._since(None, today) == ()
    assert reading._since({"name": "team", "since": "2026-11-09T10:00:00Z"}, today) == ()
    assert reading._since({"name": "team", "since": "2026-11-10T10:00:00Z"}, today) == (
        "by team since 10:00 UTC",
    )
    assert reading._since({"name": "team", "since": None}, today) == (
        "not all events are counted by team yet",
    )


def test_the_newest_whole_minute_ended_before_the_watermark() -> None:
    at = datetime(2026, 11, 10, 12, 34, 45, tzinfo=UTC)
    assert reading._whole_minute([None, at - timedelta(hours=2), at]) == datetime(
        2026, 11, 10, 12, 33, tzinfo=UTC
    )
    assert reading._whole_minute([None]) is None


# --- when questions are asked ------------------------------------------------------------------------


class Questions:
    """A view whose questions have these outcomes, one after another; then the watching ends."""

    org_id = None

    def __init__(self, *outcomes: View | Exception) -> None:
        self._outcomes = list(outcomes)

    async def read(self) -> View:
        outcome = self._outcomes.pop(0) if self._outcomes else Refused(403, "enough")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_failures_are_asked_again_more_seldom_and_retry_after_is_honoured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    told: list[Any] = []
    failing = [Away("gone")] * 7
    questions = Questions(view(), *failing, Away("too many", 45.0), view(), Away("gone"))
    with pytest.raises(Refused, match="enough"):
        await watching.watch(cast(Any, None), questions, 2.0, told.append)
    assert slept == [2.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 45.0, 2.0, 1.0]
    assert [type(one).__name__ for one in told] == ["View", *["Trouble"] * 8, "View", "Trouble"]
    assert told[1].text == "gone"


def test_without_textual_the_screen_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    options = run.TopOptions(org=None, by=None, interval_s=2.0, sort="today")
    with pytest.raises(OperatorError, match=r"pip install 'spendstream\[top\]'"):
        run.run(ApiConfig(), options)


# --- texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        (spend("0"), "$0.00"),
        (spend("0.00004"), "<$0.0001"),
        (spend("0.00456"), "$0.0046"),
        (spend("12.345"), "$12.34"),
        (spend("1234.5"), "$1,234.50"),
        (spend("2345678.9"), "$2.35M"),
        (spend("-3.5"), "-$3.50"),
        (spend("1.5", 2), "$1.50+"),
        (spend("1.5", basis="estimate"), "~$1.50"),
        (spend(None, 2), "unpriced"),
    ],
)
def test_money_says_what_is_known(given_: Spend, shown: str) -> None:
    assert texts.money(given_, 7) == shown


def test_without_calls_there_is_no_amount_and_nothing_unpriced() -> None:
    assert texts.spent(NO_CALLS) == "–"
    assert texts.spent(None) == "–"


def test_counts_shares_and_ages_are_short() -> None:
    numbers = (0, 9_999, 12_345, 999_499, 1_250_000, 3_100_000_000, 10**16)
    assert [texts.count(n) for n in numbers] == ["0", "9,999", "12.3k", "999k", "1.25M", "3.10G", "10000T"]
    assert [texts.percent(x) for x in (None, 0, 0.00001, 0.0004, 0.012, 1)] == [
        "–",
        "0%",
        "0.01%",
        "0.04%",
        "1.2%",
        "100%",
    ]
    assert [texts.age(x) for x in (None, 0.44, 12, 200, 10_000, 300_000)] == [
        "–",
        "0.4 s",
        "12 s",
        "3 min",
        "3 h",
        "3 d",
    ]
    assert [texts.milliseconds(x) for x in (None, 812.4, 12_345.0)] == ["–", "812ms", "12.3s"]


def test_bars_are_as_high_as_their_amounts_and_a_dot_is_unknown() -> None:
    line = [None, Decimal(0), Decimal("0.01"), Decimal(4), Decimal(8)]
    assert texts.bars(line, 5) == "· ▁▅█"
    assert texts.bars(line, 2) == "▅█"
    assert texts.bars(line, 7) == "  · ▁▅█"
    assert texts.bars([Decimal(0)] * 3, 3) == "   "
    assert texts.bars([], 3) == "   "


@given(st.text())
def test_no_text_reaches_the_terminal_with_a_character_that_it_would_obey(name: str) -> None:
    shown = texts.safe(name)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert not set(shown) & set("\u200b\u200e\u200f\u202a\u202e\u2066\u2069\u2028\ufeff")
    assert texts.safe("Größe 東京 plain") == "Größe 東京 plain"
    assert texts.safe("\x1b]0;x\x07") == "\\x1b]0;x\\x07"


def test_a_letter_has_a_few_marks_and_the_others_are_written_out() -> None:
    for mark in ("\u0301", "\u20dd"):  # an accent, and a circle around the letter
        shown = texts.safe(f"a{mark * 50}b{mark * 3}")
        assert shown == "a" + mark * 3 + f"\\u{ord(mark):04x}" * 47 + "b" + mark * 3
    for name in ("Vie\u0323\u0302t Nam", "ที่นี่", "שָׁלוֹם", "❤\ufe0f"):
        assert texts.safe(name) == name


@given(st.text(), st.integers(0, 40), st.booleans())
def test_a_fitted_text_has_exactly_its_cells(text: str, cells: int, right: bool) -> None:
    assert texts.width(texts.fit(texts.safe(text), cells, right=right)) == cells


# --- layout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 60, 80, 100, 132, 200])
@pytest.mark.parametrize("height", [10, 24, 50])
def test_every_line_fits_into_the_screen(width: int, height: int) -> None:
    rows = [row("東京" * 40), row("\x1b[31mred", "123456.78"), row("", "0.00001")]
    shown = view(*rows, title="\x1b[2J" * 30, notes=("a note \x1b[2J" * 40,))
    lines = layout.head(shown, width, height, AT, 100.0)
    columns = layout.columns(shown, width)
    lines += [layout.table_head(shown, columns, width, "hour")]
    lines += [layout.table_row(columns, one, width, 100.0, chosen=n == 0) for n, one in enumerate(rows)]
    assert all(texts.width(line) <= width for line in text_of(lines))
    assert "\x1b" not in "".join(text_of(lines))


def test_a_wider_screen_has_more_columns_and_a_narrow_one_those_that_matter_most() -> None:
    shown = view(row("a"))
    names = {width: [one.name for one in layout.columns(shown, width)] for width in (60, 80, 160)}
    assert names[60] == ["minute", "hour", "today", "errors"]
    assert names[80] == ["minute", "hour", "today", "errors", "trend"]
    assert names[160][:6] == ["minute", "hour", "today", "errors", "trend", "requests"]
    assert "in" in names[160]


def test_columns_that_no_row_has_anything_for_are_left_out() -> None:
    shown = view(replace(row("a"), minute=None, trend=()))
    assert {"minute", "trend", "p95", "lag", "unpriced"}.isdisjoint(
        one.name for one in layout.columns(shown, 200)
    )


def test_a_snapshot_says_all_in_words() -> None:
    hour = Figures(
        requests=3601,
        tokens_in=1_200_000,
        tokens_out=300_000,
        cached=10_000,
        spend=spend("71.2", 12, "mixed"),
        error_share=0.012,
        p95_ms=812.0,
    )
    shown = view(row("Acme", "70.00"))
    shown = replace(shown, total=replace(shown.total, hour=hour))
    *head, titles, acme = layout.plain(shown, "today", list(shown.rows), 100).splitlines()
    assert head == [
        "spendstream top  all orgs, by org" + " " * 55 + "12:34:56 UTC",
        "Spend   $1.00/min at 12:33  ~$71.20+ last hour  $1.00 today",
        "Calls   10/min  3,601 last hour  1.2% errors  812ms p95",
        "Tokens  1.20M in  300k out  10.0k of them cached  last hour",
        "Fresh   fresh  lag 11 s  complete to 12:34:45",
        "$/min    ▅█  most $2.00",
        "Note    12 calls of the last hour without a price, not in its spend",
        "Note    ~ in part the producers' estimates",
        "",
    ]
    assert titles.split() == ["org", "$/min", "hour", "▾today", "err", "trend", "calls/h"]
    assert acme.split() == ["Acme", "$70.00", "$70.00", "$70.00", "0%", "█" * 12, "10"]


def test_without_rows_a_snapshot_says_so() -> None:
    empty = Row(key="", name="all", minute=None, hour=NO_CALLS, today=NO_CALLS, trend=())
    text = layout.plain(view(total=empty, minute_start=None), "today", [], 80)
    assert "no figures yet" in text
    assert text.endswith("no events yet")
    assert "$" not in text.replace("$/min", "")
