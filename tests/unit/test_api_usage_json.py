"""The lean text of a series is what the types of the contract would have become."""

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from api.answering import answers
from api.answering.money import UNITS_PER_MICROCENT
from api.asking.buckets import Calendar, Granularity, to_datetime
from api.reading import usage_json
from api.reading.figures import Finality, usage_fields
from api.reading.freshness import Standing
from api.reading.rollups import USAGE
from api.reading.seen import NO_LABEL, Label

WATERMARK = datetime(2026, 11, 10, tzinfo=UTC)
FINAL = Finality(
    Calendar(Granularity.HOUR, ZoneInfo("UTC")),
    [Standing(partition=0, watermark=WATERMARK, last_event_at=WATERMARK, last_rollup_at=WATERMARK)],
    86_400,
)
COUNTS = st.integers(0, 2**70)


def possible(row: tuple[Any, ...]) -> Any:
    """The row with no more unpriced calls than calls, and with the producers' estimate if none is booked."""
    *key, invocations, into, out, cost, read, write, write_1h, reasoning, unestimated, amount, booked, _ = row
    unestimated = min(unestimated, invocations)
    booked = min(booked, invocations)
    cost *= unestimated < invocations
    unpriced = min(unestimated, invocations - booked)
    if not booked:
        amount = cost * UNITS_PER_MICROCENT
    spent = (unestimated, amount, booked, unpriced)
    return (*key, invocations, into, out, cost, read, write, write_1h, reasoning, *spent)


ROWS = st.tuples(
    st.integers(29_000_000, 29_900_000).map(lambda hour: hour - hour % 60),
    st.none() | st.uuids().map(str),
    st.none() | st.text(max_size=10),
    *[COUNTS] * len(USAGE),
).map(possible)


LABELS = st.builds(Label, *[st.none() | st.text(max_size=10)] * 2)


@given(rows=st.lists(ROWS, max_size=20), label=LABELS, by_value=st.booleans(), name=st.text(max_size=10))
def test_each_row_is_the_point_it_stands_for(
    rows: list[Any], label: Label, by_value: bool, name: str
) -> None:
    labels = {row[1]: label for row in rows[::2] if row[1]}
    names = {row[2]: name for row in rows[::3] if row[2]}
    written = usage_json.series(rows, final=FINAL, labels=labels, by_value=by_value, names=names)
    points = [
        answers.UsagePoint(
            bucket_start=to_datetime(bucket),
            model_id=UUID(model) if model else None,
            model_name=labels.get(model, NO_LABEL).model_name,
            provider=labels.get(model, NO_LABEL).provider,
            client_id=None if by_value else client or None,
            client_name=None if by_value else names.get(client),
            value=client or None if by_value else None,
            value_name=names.get(client) if by_value else None,
            final=FINAL(bucket),
            **usage_fields(dict(zip(USAGE, sums, strict=True))),
        )
        for bucket, model, client, *sums in rows
    ]
    # Numbers beyond 64 bits, which msgspec does not read, are compared as the text they are.
    if all(number < 2**63 for row in rows for number in row[3:]):
        assert msgspec.json.decode(bytes(written), type=list[answers.UsagePoint]) == points
        assert bytes(written) == msgspec.json.encode(points)
    totals = usage_json.totals(rows)
    measures = [sums for _, _, _, *sums in rows]
    assert list(totals.values()) == [sum(sums[i] for sums in measures) for i in range(len(USAGE))]
    amounts = [Fraction(point.cost.amount) * 10**20 for point in points if point.cost.amount is not None]
    assert sum(amounts) == totals["amount"]
