"""An import appends the difference between a source and the book, and nothing the second time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pipeline.prices.plan import plan
from pipeline.prices.price import EVER, Price

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


def test_a_price_that_vanished_is_said_and_stays() -> None:
    book = [price(1, 0), Price(provider="p", model_name="old", kind="input", rate=Decimal(2), source="s")]
    found = plan([price(1, 0)], book, now=NOW)
    assert ([one.model_name for one in found.vanished], found.append) == (["old"], ())
    other = Price(provider="q", model_name="old", kind="input", rate=Decimal(2), source="s")
    assert plan([price(1, 0)], [price(1, 0), other], now=NOW).vanished == ()


rows = st.lists(
    st.builds(
        lambda rate, start, length: price(rate, start, None if length is None else (start or 0) + length),
        st.integers(1, 3),
        st.integers(0, 9),
        st.none() | st.integers(1, 9),
    ),
    max_size=6,
)


def rate_at(prices: list[Price], hour: datetime) -> Decimal | None:
    for one in reversed(prices):
        if (one.valid_from or EVER) <= hour and (one.valid_to is None or hour < one.valid_to):
            return one.rate
    return None


@given(given=rows, book=rows)
def test_after_an_import_the_book_says_what_the_source_says_and_a_second_import_appends_nothing(
    given: list[Price], book: list[Price]
) -> None:
    after = book + list(plan(given, book, now=NOW).append)
    for number in range(-1, 20):
        hour = START + timedelta(hours=number)
        said = rate_at(given, hour)
        assert rate_at(after, hour) == (rate_at(book, hour) if said is None else said)
    assert plan(given, after, now=NOW).append == ()
    for one in plan(given, book, now=NOW).append:
        assert one.valid_from is not None
        assert rate_at(book, one.valid_from) != one.rate
