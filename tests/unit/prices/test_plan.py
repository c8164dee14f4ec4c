"""An import appends the difference between a source and the book, and nothing the second time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pipeline.prices.plan import plan
from pipeline.prices.price import EVER, PUBLIC, Price

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(hours=5, minutes=20)


def at(hour: int | None) -> datetime | None:
    return None if hour is None else START + timedelta(hours=hour)


def price(rate: int, start: int | None = None, end: int | None = None, source: str = "s") -> Price:
    return Price(
        provider="p",
        model_name="m",
        kind="input",
        rate=Decimal(rate),
        valid_from=at(start),
        valid_to=at(end),
        source=source,
    )


def appended(given: list[Price], book: list[Price]) -> list[tuple[int, datetime | None, datetime | None]]:
    found = plan(given, book, now=NOW).append
    return [(int(one.rate), one.valid_from, one.valid_to) for one in found]


def test_only_the_hours_that_differ_are_appended() -> None:
    # book      1111111122222222222
    # source    1111333333331111...
    book = [price(1, 0), price(2, 8)]
    given = [price(1, 0), price(3, 4, 12), price(1, 12)]
    assert appended(given, book) == [(3, at(4), at(12)), (1, at(12), None)]
    assert appended([price(1, 0, 8), price(2, 8)], book) == []


def test_a_price_without_a_beginning_holds_since_ever_or_from_this_hour_on() -> None:
    assert appended([price(3)], []) == [(3, EVER, None)]
    assert appended([price(4)], [price(3, -9)]) == [(4, at(5), None)]
    assert appended([price(3)], [price(3, -9)]) == []
    assert appended([price(4, None, 3)], [price(3, -9)]) == []


def test_a_rate_of_another_source_that_gives_way_is_said() -> None:
    found = plan([price(4, 0)], [price(3, 0, source="manual")], now=NOW)
    assert found.overrides == {"manual": 1}
    assert plan([price(4, 0)], [price(3, 0)], now=NOW).overrides == {}


def test_a_rate_that_people_decided_on_stays_unless_told_otherwise() -> None:
    # book      11111222223333333
    # source    44444444444444444
    book = [price(1, 0, source="genai-prices"), price(2, 5, 10, source="manual"), price(3, 10, source="csv")]
    public = [price(4, 0, source="litellm")]
    assert appended(public, book) == [(4, at(0), at(5))]
    found = plan(public, book, now=NOW)
    assert [int(one.rate) for one in found.kept] == [2, 3]
    assert found.overrides == {"genai-prices": 1}
    all_of_it = plan(public, book, now=NOW, overwrite=True)
    assert [(one.valid_from, one.valid_to) for one in all_of_it.append] == [(at(0), None)]
    assert all_of_it.kept == ()
    assert plan([price(2, 6, 9, source="litellm")], book, now=NOW).kept == ()
    assert appended([price(4, 0, source="csv")], book) == [(4, at(0), None)]


def test_an_edited_export_is_the_persons_price() -> None:
    book = [price(1, 0, source="litellm")]
    [row] = plan([price(2, 0, source="litellm")], book, now=NOW, edited=True).append
    assert (row.source, row.basis) == ("csv", "edited; it was litellm, ")
    assert plan([price(3, 0, source="litellm")], [*book, row], now=NOW).append == ()
    [restored] = plan([price(2, 0, source="litellm")], [], now=NOW, edited=True).append
    assert restored.source == "litellm"
    other = replace(price(5, 0, source="litellm"), model_name="other")
    assert plan([price(1, 0, source="litellm")], [*book, other], now=NOW, edited=True).vanished == ()


def test_the_order_within_a_source_says_nothing() -> None:
    expected = [(1, EVER, at(0)), (2, at(0), at(3)), (3, at(3), None)]
    for prices in ([price(3, 3), price(1), price(2, 0)], [price(1), price(2, 0), price(3, 3)]):
        assert appended(prices, []) == expected


def test_a_price_without_a_beginning_changes_no_call_that_has_a_price() -> None:
    def like(**fields: Any) -> Price:
        return replace(price(4), **fields)

    book, org = [price(3, -9)], UUID(int=1)
    now_on, ever = [(4, at(5), None)], [(4, EVER, None)]
    for one in (
        like(kind="cache_read"),
        like(context_from=200_001),
        like(org_id=org),
        like(kind="discount", service_tier="", provider="", model_name="", org_id=org),
        like(kind="discount", service_tier="", model_name="", org_id=org),
    ):
        assert appended([one], book) == now_on, one
        assert appended([one], []) == ever, one
    for one in (like(service_tier="batch"), like(model_name="n"), like(provider="q")):
        assert appended([one], book) == ever, one
    assert (
        appended([like(kind="discount", service_tier="", provider="q", model_name="", org_id=org)], book)
        == ever
    )


def test_a_price_that_ended_in_its_source_is_said() -> None:
    given = [price(1, 0, 8)]
    found = plan(given, [price(1, 0)], now=NOW)
    assert found.append == ()
    assert [(one.valid_from, one.valid_to) for one in found.vanished] == [(at(8), None)]
    assert plan(given, [price(1, 0, 8)], now=NOW).vanished == ()
    assert plan([price(1, 0, 4)], [price(1, 0, 5)], now=NOW).vanished == ()


def test_a_price_that_vanished_is_said_and_stays() -> None:
    book = [price(1, 0), Price(provider="p", model_name="old", kind="input", rate=Decimal(2), source="s")]
    found = plan([price(1, 0)], book, now=NOW)
    assert ([one.model_name for one in found.vanished], found.append) == (["old"], ())
    other = Price(provider="q", model_name="old", kind="input", rate=Decimal(2), source="s")
    assert plan([price(1, 0)], [price(1, 0), other], now=NOW).vanished == ()


rows = st.lists(
    st.builds(
        lambda rate, start, length, source: price(
            rate, start, None if length is None else (start or 0) + length, source
        ),
        st.integers(1, 3),
        st.integers(0, 9),
        st.none() | st.integers(1, 9),
        st.sampled_from(("manual", "litellm", "genai-prices")),
    ),
    max_size=6,
)


def price_at(prices: list[Price], hour: datetime) -> Price | None:
    for one in reversed(prices):
        if (one.valid_from or EVER) <= hour and (one.valid_to is None or hour < one.valid_to):
            return one
    return None


def rate_at(prices: list[Price], hour: datetime) -> Decimal | None:
    found = price_at(prices, hour)
    return None if found is None else found.rate


def by_beginning(prices: list[Price]) -> list[Price]:
    return sorted(prices, key=lambda one: one.valid_from or EVER)


@given(given=rows, book=rows)
def test_after_an_import_the_book_says_what_the_source_says_and_a_second_import_appends_nothing(
    given: list[Price], book: list[Price]
) -> None:
    after = book + list(plan(given, book, now=NOW, overwrite=True).append)
    for number in range(-1, 20):
        hour = START + timedelta(hours=number)
        said = rate_at(by_beginning(given), hour)
        assert rate_at(after, hour) == (rate_at(book, hour) if said is None else said)
    assert plan(given, after, now=NOW, overwrite=True).append == ()
    for one in plan(given, book, now=NOW, overwrite=True).append:
        assert one.valid_from is not None
        assert rate_at(book, one.valid_from) != one.rate


@given(given=rows, book=rows)
def test_a_public_source_takes_the_place_of_public_sources_only(
    given: list[Price], book: list[Price]
) -> None:
    planned = plan(given, book, now=NOW)
    after = book + list(planned.append)
    for number in range(-1, 20):
        hour = START + timedelta(hours=number)
        said, had = price_at(by_beginning(given), hour), price_at(book, hour)
        stays = had is not None and had.source not in PUBLIC
        if said is None or (stays and said.source in PUBLIC):
            assert rate_at(after, hour) == rate_at(book, hour)
        else:
            assert rate_at(after, hour) == said.rate
    assert plan(given, after, now=NOW).append == ()
