"""The usage of `spend_rows` as the API has it, and what the API must say of it, by a naive count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import psycopg

from tests.support.api_facts import bucket_of, rfc3339
from tests.support.naive_prices import Call, Row, cost, rates_of
from tests.support.spend_rows import CLASSES, DAY, MODELS, ORGS, Usage, fill

NOW: Final = DAY + timedelta(days=4, hours=3)
WATERMARK: Final = DAY + timedelta(hours=65, minutes=17)
"""The minute of the newest calls."""
EVERYTHING: Final = {"start": rfc3339(DAY), "end": rfc3339(DAY + timedelta(days=3))}
_MINUTE: Final = timedelta(minutes=17)

Spent = tuple[Decimal | None, str, Decimal | None, int]
"""The amount of the cost, its basis, the amount of the estimate, and the number of unpriced calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Calls of one hour, model and rate class of an org, and what the API shows of them."""

    org: str
    hour: datetime
    model: str
    rate_class: int
    figures: Mapping[str, int]

    @property
    def client(self) -> str:
        return f"c{self.rate_class % 2}"

    @property
    def minute(self) -> datetime:
        return self.hour + _MINUTE


@dataclass(frozen=True, slots=True)
class World:
    """A book and the usage that it prices."""

    book: list[Row]
    usage: Usage

    def parts(self, org: str) -> Iterator[Part]:
        for (of, hour, model, number), figures in self.usage.items():
            if of == org:
                yield Part(org=of, hour=hour, model=model, rate_class=number, figures=figures)

    def spent(self, parts: Iterable[Part], version: int = 10**9, basis: str = "auto") -> Spent:
        """What some calls cost at a version of the book."""
        amounts: list[Decimal] = []
        estimates: list[Decimal] = []
        bases = set()
        unpriced = calls = 0
        for part in parts:
            figures = part.figures
            calls += figures["invocations"]
            estimate = None
            if figures["unestimated"] < figures["invocations"]:
                estimate = Decimal(figures["cost_microcents"]) / 10**8
                estimates.append(estimate)
            rates = None if basis == "estimate" else rates_of(self.book, version, _call(part))
            if rates is not None:
                amounts.append(cost(rates, dict(figures)))
                bases.add("book")
            elif basis == "book" or estimate is None:
                unpriced += figures["invocations"]
            else:
                amounts.append(estimate)
                bases.add("estimate")
                unpriced += figures["unestimated"]
        if not calls:
            return Decimal(0), "estimate", Decimal(0), 0
        return (
            sum(amounts, Decimal(0)) if amounts else None,
            "mixed" if len(bases) > 1 else bases.pop() if bases else "none",
            sum(estimates, Decimal(0)) if estimates else None,
            unpriced,
        )

    def series(
        self, parts: Iterable[Part], key: Callable[[Part], Any], version: int = 10**9, basis: str = "auto"
    ) -> dict[Any, Spent]:
        """What the calls of each point cost, in the order of the answer."""
        points: dict[Any, list[Part]] = defaultdict(list)
        for part in parts:
            points[key(part)].append(part)
        return {point: self.spent(points[point], version, basis) for point in sorted(points, key=str)}


def _call(part: Part) -> Call:
    tier, context, _ = CLASSES[part.rate_class]
    provider, name = MODELS[part.model]
    return Call(
        org_id=part.org,
        provider=provider,
        model_name=name,
        service_tier=tier,
        context=context,
        hour=part.hour,
    )


def key_of(granularity: str, zone: str, groups: Iterable[str]) -> Callable[[Part], tuple[str, str, str]]:
    """Says which point of a series a part belongs to: (bucket, model, client), empty where not grouped.

    The team of a call is its client.
    """
    groups = tuple(groups)

    def key(part: Part) -> tuple[str, str, str]:
        bucket = bucket_of(part.minute, granularity, zone)
        model, client = "model" in groups, bool({"client", "team"} & {*groups})
        return rfc3339(bucket), part.model if model else "", part.client if client else ""

    return key


def loaded(url: str) -> World:
    """Fill a migrated database with the book and the usage, also by minute and by client."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        world = World(*fill(connection))
        (columns,) = connection.execute(
            "SELECT string_agg(column_name, ', ') FROM information_schema.columns WHERE table_schema ="
            " 'analytics' AND table_name = 'usage_hour' AND column_name <> 'bucket_start'"
        ).fetchone() or ("",)
        for target, source, client, later in (
            ("usage_minute", "usage_hour", "", _MINUTE),
            ("client_hour", "usage_hour", "client_id, ", timedelta(0)),
            ("client_day", "usage_day", "client_id, ", timedelta(0)),
        ):
            value = "'c' || rate_class %% 2, " if client else ""
            connection.execute(
                f"INSERT INTO analytics.{target} ({client}bucket_start, {columns})"
                f" SELECT {value}bucket_start + %s, {columns} FROM analytics.{source}",
                (later,),
            )
        for partition in (0, 1):
            connection.execute(
                "INSERT INTO analytics.partitions (partition, stream, epoch, watermark, updated_at)"
                " VALUES (%s, %s, 1, %s, now())",
                (partition, f"s{partition}", WATERMARK),
            )
            for org in ORGS:
                connection.execute(
                    "INSERT INTO analytics.orgs_seen (org_id, partition, first_event_at, last_event_at,"
                    " last_rollup_at) VALUES (%s, %s, %s, %s, %s)",
                    (org, partition, DAY, WATERMARK, WATERMARK),
                )
    return world


def amount(text: str | None) -> Decimal | None:
    """An amount of an answer or of a file as a number."""
    return Decimal(text) if text else None


def shown(point: Mapping[str, Any]) -> Spent:
    """What a point or the totals of an answer say."""
    cost_ = point["cost"]
    assert cost_["currency"] == "USD"
    return (
        amount(cost_["amount"]),
        cost_["basis"],
        amount(point["estimate"]["amount"]),
        point["unpriced"]["invocations"],
    )
