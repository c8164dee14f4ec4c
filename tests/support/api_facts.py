"""The facts that tests of the API load: two orgs, random events, and the rows that a worker would write.

The rows are counted from the events in plain Python. Only the sketches are made by our own code.
"""

import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql as pgsql

from pipeline.core import sketches, wire
from sql import schema

NOW = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
COUNTED_AFTER = timedelta(seconds=7)
"""How much later than its watermark a partition is counted, in the facts of `load`."""
WATERMARKS = {0: NOW - timedelta(seconds=20), 1: NOW - timedelta(seconds=90)}
ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")
NEIGHBOUR = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000002")
STRANGER = uuid.UUID("aaaaaaaa-0000-4000-8000-00000000ffff")
MODELS = tuple(uuid.UUID(f"{digit * 8}-0000-4000-8000-000000000000") for digit in "1af")
CLIENTS = ("", "Zeta", "alpha", "other", wire.OVERFLOW_CLIENT, "über")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAILURES = {1: "error", 2: "timeout", 3: "throttled"}

LABELS = (("", ""), ("openai", "gpt-4o"), ("openai", "gpt-4o-2024-08-06"), ("", 'o"1'), ("größe", ""))
KINDS = ("cacheReadTokens", "cacheWriteTokens", "cacheWrite1hTokens", "reasoningTokens")
Figures = tuple[Any, ...]
"""Invocations, tokens in, tokens out, the `KINDS`, unpriced invocations, and dollars (None: nobody knows)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One invocation that a worker accepted."""

    org: uuid.UUID
    model: uuid.UUID
    client: str
    at: datetime
    partition: int
    status: int
    error_code: str
    latency_ms: int
    input_tokens: int
    output_tokens: int
    microcents: int | None
    """None: not estimated."""
    kinds: tuple[int, ...]
    """The `KINDS` of tokens."""
    rate_class: int = 1
    label: tuple[str, str] = ("", "")
    """Provider and name of the model."""


def random_events(count: int, seed: int) -> list[Event]:
    """Random events: many in the last days and around changes of the clock, few over the year before."""
    rng = random.Random(seed)
    changes = [datetime(2026, 3, 8, 10, tzinfo=UTC), datetime(2026, 11, 1, 9, tzinfo=UTC)]
    events = []
    for _ in range(count):
        near, spread = rng.choice(
            [(NOW, 8 * 1440), (NOW, 180), (changes[0], 2000), (changes[1], 2000), (NOW, 390 * 1440)]
        )
        minutes = rng.uniform(0, spread) if near is NOW else rng.uniform(-spread, spread)
        status = rng.choices((0, 1, 2, 3), (80, 10, 5, 5))[0]
        input_tokens, output_tokens = rng.randrange(10**6), rng.randrange(10**4)
        events.append(
            Event(
                org=rng.choices((ORG, NEIGHBOUR), (4, 1))[0],
                model=rng.choice(MODELS),
                client=rng.choice(CLIENTS),
                at=near - timedelta(minutes=minutes),
                partition=rng.randrange(2),
                status=status,
                error_code=rng.choice(("", "E42", "overloaded")) if status else "",
                latency_ms=int(rng.lognormvariate(6, 2)),
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                microcents=rng.choice((None, 0, 1, 500_000, 1_500_000, rng.randrange(10**9))),
                kinds=(
                    *(rng.randrange(input_tokens // 3 + 1) for _ in range(3)),
                    rng.randrange(output_tokens + 1),
                ),
                rate_class=rng.choice((0, 1, 1, 1, 5, 16)),
                label=rng.choice(LABELS),
            )
        )
    return events


def floor(at: datetime, grain: str) -> datetime:
    """The start of the minute, hour or day of UTC."""
    at = at.replace(second=0, microsecond=0)
    if grain == "minute":
        return at
    at = at.replace(minute=0)
    return at if grain == "hour" else at.replace(hour=0)


def insert(url: str, table: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows. Their values are those of the table's first columns; other columns get their defaults."""
    columns = list(table.columns)[: len(rows[0]) if rows else 0]
    statement = pgsql.SQL("INSERT INTO analytics.{} ({}) VALUES ({})").format(
        pgsql.Identifier(table.name),
        pgsql.SQL(", ").join(pgsql.Identifier(column.name) for column in columns),
        pgsql.SQL(", ").join([pgsql.Placeholder()] * len(columns)),
    )
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def load(url: str, events: Sequence[Event], watermarks: Mapping[int, datetime | None]) -> None:
    """Load the rows that the worker would write, counted in plain Python."""
    for table, grain, by_client in (
        (schema.usage_minute, "minute", False),
        (schema.usage_hour, "hour", False),
        (schema.usage_day, "day", False),
        (schema.client_hour, "hour", True),
        (schema.client_day, "day", True),
    ):
        insert(url, table, rollup_rows(events, partial(floor, grain=grain), by_client=by_client))
    failures: dict[Any, int] = defaultdict(int)
    for e in events:
        if e.status:
            key = e.org, floor(e.at, "hour"), e.model, e.client, e.status, e.error_code, e.partition
            failures[key, e.rate_class] += 1
    insert(
        url,
        schema.usage_errors_hour,
        [(*key, count, rate_class) for (key, rate_class), count in failures.items()],
    )
    for table, key_of in (
        (schema.orgs_seen, lambda e: (e.org, e.partition)),
        (schema.models_seen, lambda e: (e.org, e.model, e.partition)),
        (schema.clients_seen, lambda e: (e.org, e.client, e.partition)),
    ):
        of_key = defaultdict(list)
        for e in events:
            of_key[key_of(e)].append(e)
        rows: list[tuple[Any, ...]] = []
        for seen_key, mine in of_key.items():
            times = [e.at for e in mine]
            label = newest_label(mine) if table is schema.models_seen else ()
            rows.append((*seen_key, min(times), max(times), NOW, *label))
        insert(url, table, rows)
    insert(
        url,
        schema.partitions,
        [
            (number, f"stream-{number}", 1, 10, watermark, watermark, watermark, 0, 0, 0, 0, True, NOW, 0)
            for number, watermark in watermarks.items()
        ],
    )
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE analytics.partitions SET counted_through = watermark + %s", [COUNTED_AFTER]
        )


def rollup_rows(
    events: Iterable[Event], start_of: Callable[[datetime], datetime], *, by_client: bool = False
) -> list[tuple[Any, ...]]:
    """The rollup rows of some events, if ``start_of`` gives the start of the bucket of an instant."""
    groups: dict[Any, list[Event]] = defaultdict(list)
    for e in events:
        client = (e.client,) if by_client else ()
        groups[(e.org, start_of(e.at), e.model, *client, e.partition), e.rate_class].append(e)
    return [
        (*key, *measures(group), 0, NOW, *details(group), rate_class)
        for (key, rate_class), group in groups.items()
    ]


def newest_label(events: Iterable[Event]) -> tuple[Any, ...]:
    """The label of the newest event that has one, and the time before it: (time, provider, name)."""
    labels = [(e.at, e.label[0].encode(), e.label[1].encode()) for e in events if any(e.label)]
    at, provider, name = max(labels, default=(EPOCH, b"", b""))
    return at, provider.decode(), name.decode()


def measures(events: Sequence[Event]) -> tuple[Any, ...]:
    """The measures of a rollup row, in the order of its columns."""
    return (
        len(events),
        *(sum(e.status == status for e in events) for status in range(4)),
        sum(e.input_tokens for e in events),
        sum(e.output_tokens for e in events),
        sum(e.microcents or 0 for e in events),
        sum(e.latency_ms for e in events),
        max(e.latency_ms for e in events),
        sketches.of([e.latency_ms for e in events]),
    )


def details(events: Sequence[Event]) -> tuple[int, ...]:
    """The kinds of tokens and the calls without an estimate, in the order of a rollup row's last columns."""
    unestimated = sum(e.microcents is None for e in events)
    return (*(sum(e.kinds[i] for e in events) for i in range(len(KINDS))), unestimated)


def expected(events: Sequence[Event]) -> Figures:
    """The right figures of these events."""
    estimates = [e.microcents for e in events if e.microcents is not None]
    return (
        len(events),
        sum(e.input_tokens for e in events),
        sum(e.output_tokens for e in events),
        *details(events),
        Decimal(sum(estimates)) / 10**8 if estimates or not events else None,
    )


@cache
def local_start(zone: str, year: int, month: int, day: int | None) -> datetime:
    """The first UTC minute of a local day (or month), found by trying one minute after the other."""
    at = datetime(year, month, day or 1, tzinfo=UTC) - timedelta(days=2)
    while True:
        local = at.astimezone(ZoneInfo(zone))
        if (local.year, local.month) == (year, month) and (day is None or local.day == day):
            return at
        at += timedelta(minutes=1)


def bucket_of(at: datetime, granularity: str, zone: str) -> datetime:
    """The start of the bucket that holds an instant, in the calendar of the zone."""
    if granularity in ("minute", "hour"):
        return floor(at, granularity)
    local = at.astimezone(ZoneInfo(zone))
    if granularity == "week":
        local -= timedelta(days=local.isoweekday() - 1)  # the same time of day on Monday
    return local_start(zone, local.year, local.month, None if granularity == "month" else local.day)


def rfc3339(at: datetime) -> str:
    """The instant as the API writes it."""
    return at.isoformat().replace("+00:00", "Z")


def figures(point: Mapping[str, Any]) -> Figures:
    """The figures of one point of an answer."""
    return (
        point["invocations"],
        point["inputTokens"],
        point["outputTokens"],
        *(point[kind] for kind in KINDS),
        point["unpriced"]["invocations"],
        None if point["cost"]["amount"] is None else Decimal(point["cost"]["amount"]),
    )


def summed(rows: Iterable[Figures]) -> Figures:
    """The sum of each figure over all rows. No rows: the figures of no events."""
    *counts, amounts = zip(*(list(rows) or [expected(())]), strict=True)
    known = [amount for amount in amounts if amount is not None]
    return (*map(sum, counts), sum(known) if known else None)
