"""The rule that finds a price, in SQL, against a naive resolver; and the book that only ever grows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.commands.prices import parameters
from pipeline.core.wire import SERVICE_TIERS
from pipeline.prices import price as prices
from pipeline.prices.price import TOKEN_KINDS
from tests.support.naive_prices import KINDS, Call, rates_of
from tests.support.price_books import PRICE, START, price, retraction, write

ORGS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
PROVIDERS = "p", "q"
MODELS = "m", "m-mini"
TIERS = "standard", "batch"
CONTEXTS = 0, 200_000, 200_001
HOURS = 8


def at(hour: int) -> datetime:
    return START + timedelta(hours=hour)


spans = st.tuples(st.just(0) | st.integers(0, HOURS - 1), st.none() | st.integers(1, HOURS)).map(
    lambda span: {
        "valid_from": at(span[0]),
        "valid_to": None if span[1] is None else at(max(span[1], span[0] + 1)),
    }
)
keys = st.fixed_dictionaries(
    {
        "provider": st.sampled_from(("p", "p", "p", "q")),
        "model_name": st.sampled_from(("m", "m", "m", "m-mini")),
        "service_tier": st.sampled_from(("standard", "standard", "standard", "batch")),
        "context_from": st.sampled_from(CONTEXTS),
        "org_id": st.sampled_from((None, None, *ORGS)),
    }
)
kinds = st.just(("input", "output")) | st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True)
amounts = st.integers(0, 40).map(lambda n: Decimal(n) / 8)
rates = st.builds(
    lambda key, span, kinds, amounts: [
        price(**key, **span, kind=kind, rate=amount) for kind, amount in zip(kinds, amounts, strict=False)
    ],
    keys,
    spans,
    kinds,
    st.lists(amounts, min_size=4, max_size=4),
)
"""Prices of some kinds that begin and end together. Without input and output, nothing has a price."""
discounts = st.builds(
    price,
    provider=st.sampled_from(("", *PROVIDERS)),
    model_name=st.sampled_from(("", *MODELS)),
    service_tier=st.just(""),
    kind=st.just("discount"),
    rate=st.sampled_from((Decimal(0), Decimal("12.5"), Decimal("33.333333"), Decimal(100))),
    org_id=st.sampled_from(ORGS),
)
reduced = st.builds(lambda discount, span: [discount | span], discounts, spans)
parts = rates | rates | rates | reduced | st.integers(0, 30).map(lambda place: [place])
books = st.lists(
    st.lists(parts, min_size=1, max_size=4).map(lambda parts: [row for part in parts for row in part]),
    min_size=1,
    max_size=6,
)
"""Statements of rows. A number retracts the price with that place, if there is one."""


def sheets(connection: psycopg.Connection[Any], source: str, *given: Any) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {source}", given).fetchall()


def found(stored: Sequence[tuple[Any, ...]], call: Call) -> tuple[Decimal, ...] | None:
    """The rates of the one sheet that covers the call. Fails if there are two."""
    org = None if call.org_id is None else UUID(call.org_id)
    of_model = [one for one in stored if one[1:3] == (call.provider, call.model_name)]
    own = [one for one in of_model if org is not None and one[0] == org]
    covering = [
        one
        for one in own or [one for one in of_model if one[0] is None]
        if one[3] == call.service_tier
        and one[4] <= call.context
        and (one[5] is None or call.context < one[5])
        and one[6] <= call.hour
        and (one[7] is None or call.hour < one[7])
    ]
    assert len(covering) <= 1, covering
    return covering[0][8:] if covering else None


CALLS = [
    Call(org_id=org, provider=provider, model_name=model, service_tier=tier, context=context, hour=at(hour))
    for org in (None, *ORGS)
    for provider in PROVIDERS
    for model in MODELS
    for tier in TIERS
    for context in (0, 199_999, 200_000, 200_001)
    for hour in range(-1, HOURS + 1)
]


@given(statements=books, back=st.integers(0, 12))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_sheet_says_what_a_naive_reading_of_the_book_says(
    connection: psycopg.Connection[Any], statements: list[list[Any]], back: int
) -> None:
    with connection.transaction(force_rollback=True):
        book = write(connection, statements)
        newest = book[-1].id if book else 0
        table = sheets(connection, "analytics.price_sheets")
        assert sorted(map(repr, table)) == sorted(
            map(repr, sheets(connection, "analytics.price_sheets_at(%s)", newest))
        )
        version = max(newest - back, 0)
        then = sheets(connection, "analytics.price_sheets_at(%s)", version)
        for call in CALLS:
            assert found(table, call) == rates_of(book, newest, call), call
            assert found(then, call) == rates_of(book, version, call), call
        for org, _, _, _, first, last, start, end, *_ in table:
            assert last is None or first < last
            assert end is None or start < end
            assert org is None or str(org) in ORGS
        narrow = sheets(
            connection,
            "analytics.price_sheets_at(%s, %s, %s, %s::uuid[])",
            version,
            ["p", "q"],
            ["m", "m-mini"],
            [ORGS[0]],
        )
        kept = [
            one
            for one in then
            if one[1:3] in (("p", "m"), ("q", "m-mini")) and one[0] in (None, UUID(ORGS[0]))
        ]
        assert sorted(map(repr, narrow)) == sorted(map(repr, kept))


def test_a_contract_price_is_not_discounted_and_everyones_is(connection: psycopg.Connection[Any]) -> None:
    write(
        connection,
        [
            [
                price(rate=Decimal(3)),
                price(kind="output", rate=Decimal(15)),
                price(kind="discount", service_tier="", rate=Decimal("12.5"), org_id=ORGS[0], model_name=""),
                price(kind="output", rate=Decimal(11), org_id=ORGS[0]),
            ]
        ],
    )
    call = Call(org_id=ORGS[0], provider="p", model_name="m", service_tier="standard", context=5, hour=at(1))
    rates = found(sheets(connection, "analytics.price_sheets"), call)
    assert rates is not None
    assert dict(zip(KINDS, map(str, rates), strict=True)) == {
        "input": "2.625",
        "output": "11",
        "cache_read": "2.625",
        "cache_write": "2.625",
        "cache_write_1h": "2.625",
        "reasoning": "11",
        "request": "0",
    }


def test_sheets_with_the_same_rates_are_one_unless_another_lies_between(
    connection: psycopg.Connection[Any],
) -> None:
    rates = {0: 1, 100: 1, 200: 2, 300: 1}
    write(
        connection,
        [
            [
                price(kind=kind, context_from=context, rate=Decimal(rate))
                for context, rate in rates.items()
                for kind in ("input", "output")
            ],
            [price(kind=kind, context_from=0, valid_from=at(3)) for kind in ("input", "output")],
        ],
    )
    found = connection.execute(
        "SELECT context_from, context_to, valid_from, valid_to, input FROM analytics.price_sheets ORDER BY 1"
    ).fetchall()
    assert found == [
        (0, 200, START, None, Decimal(1)),
        (200, 300, START, None, Decimal(2)),
        (300, None, START, None, Decimal(1)),
    ]


def test_the_book_only_grows(connection: psycopg.Connection[Any]) -> None:
    book = write(connection, [[price()]])
    for statement in (
        "UPDATE analytics.prices SET rate = 2",
        "DELETE FROM analytics.prices",
        "TRUNCATE analytics.prices CASCADE",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
            connection.execute(statement)
    write(connection, [[retraction(book[0].id)]])
    again = {**retraction(book[0].id)}
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(PRICE, again)
    for number in (book[0].id + 1, 10**6):  # a retraction, and a row that is not there
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(PRICE, retraction(number))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": Decimal("-0.000001")},
        {"rate": Decimal("NaN")},
        {"rate": Decimal("Infinity")},
        {"rate": Decimal("0.1000000001")},
        {"rate": None},
        {"kind": "audio"},
        {"service_tier": "slow"},
        {"service_tier": ""},
        {"context_from": -1},
        {"provider": ""},
        {"model_name": ""},
        {"model_name": "m" * 129},
        {"valid_from": START + timedelta(minutes=30)},
        {"valid_to": START + timedelta(hours=1, microseconds=1)},
        {"valid_to": START},
        {"valid_from": "infinity"},
        {"valid_from": "-infinity"},
        {"valid_to": "infinity"},
        {"kind": "discount", "service_tier": ""},
        {"kind": "discount", "service_tier": "", "org_id": ORGS[0], "rate": Decimal(101)},
        {"kind": "discount", "service_tier": "standard", "org_id": ORGS[0]},
    ],
)
def test_the_table_takes_no_row_that_is_not_a_price(
    connection: psycopg.Connection[Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.IntegrityError):
        connection.execute(PRICE, price(**wrong))


def test_a_change_rewrites_only_the_sheets_that_it_changes(connection: psycopg.Connection[Any]) -> None:
    def versions() -> dict[tuple[str, str], str]:
        rows = connection.execute(
            "SELECT model_name, service_tier, xmin::text FROM analytics.price_sheets"
        ).fetchall()
        return {(model, tier): xmin for model, tier, xmin in rows}

    every = [
        price(kind=kind, model_name=model, service_tier=tier)
        for kind in ("input", "output")
        for model in MODELS
        for tier in TIERS
    ]
    write(connection, [every])
    before = versions()
    assert len(before) == 4
    write(connection, [[price(rate=Decimal(7), model_name="m", service_tier="batch")]])
    after = versions()
    assert {key for key in before if before[key] != after[key]} == {("m", "batch")}


def test_two_writers_take_turns(database_url: str) -> None:
    with psycopg.connect(database_url) as first, psycopg.connect(database_url) as second:
        first.execute(PRICE, price())
        second.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            second.execute(PRICE, price(model_name="another"))
        second.rollback()
        first.rollback()


def test_every_tier_and_kind_that_the_code_knows_can_have_a_price(
    connection: psycopg.Connection[Any],
) -> None:
    for tier in SERVICE_TIERS:
        for kind in TOKEN_KINDS:
            connection.execute(PRICE, price(service_tier=tier, kind=kind))
    assert (*TOKEN_KINDS, "request") == KINDS
    assert (*KINDS, "discount") == prices.KINDS == parameters.KINDS
