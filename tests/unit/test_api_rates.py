"""Rows that are priced outside of the database cost what a search through all sheets says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from api.answering.money import UNITS_PER_MICROCENT
from api.asking.params import CostBasis
from api.reading import rates
from api.reading.rates import StoredRow
from api.reading.rollups import STORED, USAGE
from api.reading.seen import Label

ORG, OTHER = UUID(int=1), UUID(int=2)
MODELS = [str(UUID(int=number)) for number in (10, 11, 12)]
LABELS = {MODELS[0]: Label("openai", "gpt"), MODELS[1]: Label("openai", "mini")}
"""The third model has no name."""
CLASSES = [(0, "standard", 0), (1, "standard", 200_000), (2, "batch", 0)]
KINDS = ("request", "input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning")
COUNTED = ("invocations", "input_tokens", "output_tokens", *STORED[4:8])
"""What each of the kinds is a price of, in their order."""


def at(hour: int) -> str:
    """An hour as PostgreSQL writes it in JSON."""
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour)).isoformat()


def minute(hour: int) -> int:
    return int(datetime.fromisoformat(at(hour)).timestamp()) // 60


def sheet(name: str, first: int, end: int | None, prices: Sequence[int], **more: Any) -> dict[str, Any]:
    """A sheet as the query ``book`` gives it, from one hour to another."""
    return {
        "org_id": None,
        "provider": "openai",
        "model_name": name,
        "service_tier": "standard",
        "context_from": 0,
        "context_to": 200_000,
        "valid_from": at(first),
        "valid_to": "infinity" if end is None else at(end),
        "excepted": [],
        **dict(zip(KINDS, prices, strict=True)),
        **more,
    }


PRICES = st.lists(st.integers(0, 10**24), min_size=7, max_size=7)
PERIODS = st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True).map(sorted)


@st.composite
def books(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Sheets that never overlap, with gaps in time, in sizes and in tiers."""
    sheets = []
    for name in ("gpt", "mini"):
        excepted = draw(st.booleans())
        for tier, low, high in (("standard", 0, 200_000), ("standard", 200_000, 2**63 - 1), ("batch", 0, 9)):
            for owner in [None, OTHER] + [ORG] * excepted:
                edges = draw(PERIODS)
                for first, end in zip(edges[::2], edges[1::2], strict=False):
                    more = {"service_tier": tier, "context_from": low, "context_to": high}
                    more |= {"org_id": owner and str(owner)}
                    more |= {"excepted": [str(ORG)] if excepted and owner is None else []}
                    sheets.append(sheet(name, first, end, draw(PRICES), **more))
    return draw(st.permutations(sheets))


ROWS = st.lists(
    st.tuples(
        st.integers(0, 42).map(minute),
        st.sampled_from(MODELS),
        st.none() | st.just("client"),
        st.sampled_from([0, 1, 2]),
        *[st.integers(0, 2**63)] * len(STORED),
    ),
    max_size=30,
)


def price_of(row: Any, sheets: Sequence[dict[str, Any]]) -> Sequence[int] | None:
    """The prices of the kinds for a row: those of the one sheet that fits."""
    bucket, model, _, rate_class, *_ = row
    _, tier, size = CLASSES[rate_class]
    label = LABELS.get(model)
    fitting = [
        [one[kind] for kind in KINDS]
        for one in sheets
        if label is not None
        and one["model_name"] == label.model_name
        and one["service_tier"] == tier
        and one["context_from"] <= size < one["context_to"]
        and one["org_id"] in (None, str(ORG))
        and str(ORG) not in one["excepted"]
        and datetime.fromisoformat(one["valid_from"]).timestamp() <= bucket * 60
        and (
            one["valid_to"] == "infinity" or bucket * 60 < datetime.fromisoformat(one["valid_to"]).timestamp()
        )
    ]
    assert len(fitting) <= 1
    return fitting[0] if fitting else None


def priced(rows: Sequence[StoredRow], sheets: Sequence[dict[str, Any]], basis: CostBasis) -> list[Any]:
    of_org = rates.sheets_of(json.dumps(sheets), ORG)
    return list(rates.priced(rows, sheets=of_org, basis=basis, labels=LABELS, classes=CLASSES))


@given(sheets=books(), rows=ROWS, in_order=st.booleans(), basis=st.sampled_from(list(CostBasis)))
def test_each_row_costs_what_the_one_sheet_that_fits_it_says(
    sheets: list[dict[str, Any]], rows: list[Any], in_order: bool, basis: CostBasis
) -> None:
    rows = sorted(rows, key=lambda row: row[0]) if in_order else rows
    found = priced(rows, sheets, basis)
    assert [one[:-3] for one in found] == [row[:3] + row[4:] for row in rows]
    for row, one in zip(rows, found, strict=True):
        measures = dict(zip(USAGE, one[3:], strict=True))
        prices = price_of(row, sheets)
        if prices is not None:
            amount = sum(measures[name] * price for name, price in zip(COUNTED, prices, strict=True))
            expected = (amount, measures["invocations"], 0)
        elif basis is CostBasis.BOOK:
            expected = (0, 0, measures["invocations"])
        else:
            expected = (measures["cost_microcents"] * UNITS_PER_MICROCENT, 0, measures["unestimated"])
        assert (measures["amount"], measures["booked"], measures["unpriced"]) == expected


def test_without_a_book_the_producers_estimate_is_the_cost_and_no_class_is_looked_up() -> None:
    row: StoredRow = (minute(0), MODELS[0], None, 99, 5, 100, 10, 7, 0, 0, 0, 0, 2)
    (found,) = rates.priced(
        [row], sheets=rates.sheets_of(None, ORG), basis=CostBasis.AUTO, labels=LABELS, classes=[]
    )
    _, _, _, *measures = found
    assert measures[-3:] == [7 * UNITS_PER_MICROCENT, 0, 2]


def test_a_price_holds_from_its_first_minute_to_the_last_before_its_end() -> None:
    sheets = [sheet("gpt", 3, 5, [0, 2, 0, 0, 0, 0, 0])]
    hours = [*range(2, 7)]
    rows: list[StoredRow] = [(minute(hour), MODELS[0], None, 0, 1, 10, 0, 0, 0, 0, 0, 0, 0) for hour in hours]
    assert [one[-3] for one in priced(rows, sheets, CostBasis.AUTO)] == [0, 20, 20, 0, 0]
