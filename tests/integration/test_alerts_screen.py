"""The screen before judging, on rows that the pipeline wrote: whatever it lets pass had nothing to say.

One process looks all the time, and so judges only what its screen lets through. After each of its looks, one
that has just started judges everything, and must find nothing more.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.alerts.judge import Judged
from api.alerts.watch import Watch
from api.config import RangeConfig
from pipeline.archive import rebuild
from pipeline.archive.archiver import Archiver
from pipeline.archive.reconcile import Scope
from pipeline.archive.store import open_store
from pipeline.config import ArchiveConfig
from tests.support import oracle_events
from tests.support.alerts_world import AlertsWorld
from tests.support.archives import Partition
from tests.support.price_books import price, write

BEGIN = datetime(2026, 9, 19, 6, tzinfo=UTC)
"""A Saturday. The hours in which quarters are kept are known before the first week begins."""
END = BEGIN + timedelta(days=8)
HOUR = timedelta(hours=1)
EVERYTHING = Scope(start_us=0, end_us=int((END + timedelta(days=2)).timestamp()) * 10**6)
KOLKATA = "Asia/Kolkata"
RANGES = RangeConfig(day_zones=(KOLKATA,), retention_minute_s=1.0)
"""No minute row counts, so days of Kolkata are counted from rows of quarters."""
ORGS = tuple(uuid.UUID(int=number) for number in (1, 2))
MODELS = tuple(uuid.UUID(int=number) for number in (100, 101))
TEAMS = ("search", "ads", "")
DAMAGE = (
    "UPDATE analytics.{} SET cost_microcents = cost_microcents / 3, invocations = 1, input_tokens = 1",
    "DELETE FROM analytics.{}",
    "UPDATE analytics.{} SET cost_microcents = 9 * cost_microcents, input_tokens = 9 * input_tokens",
)
DAMAGED = ("usage_day", "usage_hour", "usage_quarter", "client_day", "breakdown_day", "breakdown_hour")


class Pipeline:
    """A partition with an archive, and the process that looks all the time."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.partition = Partition(url, [])
        self.world = AlertsWorld(url)
        self.config = ArchiveConfig(url=f"file://{folder}/archive", interval_s=3600)
        self.store = open_store(self.config)
        self.at = BEGIN
        self.screened = 0
        self.watch: Watch

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Pipeline]:
        async with self.world.watching(now=END, ranges=RANGES) as self.watch:
            yield self

    async def count(self, *events: dict[str, Any], at: datetime | None = None) -> None:
        """Count events as a worker does, whose broker has them at the newest time."""
        self.at = at or self.at
        for event in events:
            when = event.pop("when", self.at)
            self.partition.bodies.append(
                oracle_events.body(
                    len(self.partition.bodies) + 1,
                    int(when.timestamp()) * 10**6,
                    **{"orgId": str(ORGS[0]), "modelId": str(MODELS[0]), "costEstimateCents": "100"} | event,
                )
            )
        await self.partition.feed(len(self.partition.bodies), broker_us=int(self.at.timestamp()) * 10**6)

    def budget(self, amount: str, **given: Any) -> None:
        self.world.budget(amount, **{"org_id": ORGS[0], "judged_from": BEGIN} | given)

    async def archive(self) -> None:
        await Archiver(self.partition.url, self.store, self.config).round(everything=True)

    def damage(self, statement: str) -> None:
        self.world.execute(statement)

    def repair(self) -> int:
        """Repair all rows by the archive; how many were wrong."""
        return len(rebuild.rebuild(self.partition.url, self.store, EVERYTHING).differences)

    async def look(self) -> Judged:
        found = await self.watch.look()
        self.screened += found.budgets - found.read
        return found

    async def look_afresh(self) -> Judged:
        async with self.world.watching(now=END, ranges=RANGES) as watch:
            return await watch.look()

    async def check(self) -> None:
        await self.look()
        fresh = await self.look_afresh()
        assert (fresh.raised, fresh.resolved, fresh.faults) == (0, 0, 0)


@pytest.mark.parametrize(
    ("scope", "table"),
    [
        ({}, "usage_day"),
        ({"model_id": MODELS[0]}, "usage_day"),
        ({"dimension": "client", "value": "c"}, "client_day"),
        ({"dimension": "team", "value": "search"}, "breakdown_day"),
    ],
)
async def test_what_a_repair_has_set_right_is_seen_though_nothing_else_comes(
    scope: dict[str, Any], table: str, embedded_postgres_url: str, tmp_path: Path
) -> None:
    """The org may be quiet for long, so no flush of its own tells of the repair."""
    async with Pipeline(embedded_postgres_url, tmp_path, 0).looking() as here:
        event = {"clientId": "c", "metadata": {"team": "search"}}
        await here.count(event, at=BEGIN)  # from the next hour on, teams are counted
        here.budget("10", period="month", **scope)
        await here.count(*(dict(event) for _ in range(9)), at=BEGIN + 30 * HOUR)
        await here.count(event, at=BEGIN + 60 * HOUR)
        await here.archive()
        here.damage(f"UPDATE analytics.{table} SET cost_microcents = 0")
        assert (await here.look()).raised == 0
        assert here.repair() > 0
        assert (await here.look()).raised == 1
        assert (await here.look()).read == 0


async def test_a_repair_that_lowers_a_figure_resolves(embedded_postgres_url: str, tmp_path: Path) -> None:
    async with Pipeline(embedded_postgres_url, tmp_path, 0).looking() as here:
        here.budget("10", period="month")
        await here.count({}, at=BEGIN)
        await here.archive()
        here.damage("UPDATE analytics.usage_day SET cost_microcents = 10 * cost_microcents")
        assert (await here.look()).raised == 1
        assert here.repair() > 0
        assert (await here.look()).resolved == 1


async def test_a_value_of_a_dimension_is_read_only_when_it_may_reach_a_level(
    embedded_postgres_url: str, tmp_path: Path
) -> None:
    async with Pipeline(embedded_postgres_url, tmp_path, 0).looking() as here:
        await here.count({}, at=BEGIN)
        here.budget("10", period="month", dimension="team", value="search")
        here.budget("10", period="month", dimension="team", value="")
        await here.count({"metadata": {"team": "search"}}, at=BEGIN + 2 * HOUR)
        assert (await here.look()).read == 2
        for team, cents, found in (
            ("ads", 5000, (0, 0)),
            ("search", 690, (0, 0)),
            ("search", 10, (2, 1)),
            (None, 600, (0, 0)),  # and a dollar from before
            ("", 100, (2, 1)),
        ):
            metadata = {} if team is None else {"metadata": {"team": team}}
            await here.count({"costEstimateCents": str(cents), **metadata}, at=here.at + HOUR)
            judged = await here.look()
            assert (judged.read, judged.raised) == found, (team, cents)


async def test_days_off_the_hour_are_read_only_when_they_may_reach_a_level(
    embedded_postgres_url: str, tmp_path: Path
) -> None:
    async with Pipeline(embedded_postgres_url, tmp_path, 0).looking() as here:
        await here.count({}, at=BEGIN)
        here.budget("10", period="day", time_zone=KOLKATA, judged_from=BEGIN + 24 * HOUR)
        midnight = datetime(2026, 9, 20, 18, 30, tzinfo=UTC)
        await here.count({"costEstimateCents": "100"}, at=midnight - timedelta(minutes=1))
        assert ((await here.look()).faults, (await here.look()).read) == (0, 0)
        await here.count({"costEstimateCents": "90"}, at=midnight - timedelta(minutes=1))
        assert (await here.look()).read == 0
        for cents, minutes, found in ((700, 1, (1, 0)), (90, 2, (0, 0)), (10, 3, (1, 1)), (500, 4, (0, 0))):
            await here.count({"costEstimateCents": str(cents)}, at=midnight + timedelta(minutes=minutes))
            judged = await here.look()
            assert (judged.read, judged.raised, judged.faults) == (*found, 0), (cents, minutes)
        (alert,) = here.world.alerts()
        assert (alert["period_start"], alert["spent"]) == (midnight, 8)


@pytest.mark.parametrize("valid_from", [BEGIN - 24 * HOUR, BEGIN + 40 * HOUR])
async def test_a_price_that_is_corrected_has_all_judged_and_screened_by_it(
    valid_from: datetime, embedded_postgres_url: str, tmp_path: Path
) -> None:
    call = {"provider": "p", "modelName": "m", "inputTokens": 1_000_000, "outputTokens": 0}
    async with Pipeline(embedded_postgres_url, tmp_path, 0).looking() as here:
        here.budget("10", period="month")
        await here.count(dict(call), at=BEGIN)
        await here.count(dict(call), at=BEGIN + 47 * HOUR)
        record(embedded_postgres_url, Decimal(1), BEGIN - 24 * HOUR)
        judged = await here.look()
        assert (judged.read, judged.raised) == (1, 0)
        record(embedded_postgres_url, Decimal("4.5"), valid_from)  # 9 dollars, or 5.5 if from later on
        crossed = valid_from < BEGIN
        judged = await here.look()
        assert (judged.read, judged.raised) == (1, int(crossed))
        await here.count(dict(call), at=BEGIN + 48 * HOUR)
        judged = await here.look()
        assert (judged.read, judged.raised) == ((0, 0) if crossed else (1, 1))


def record(url: str, rate: Decimal, valid_from: datetime) -> None:
    given = {"rate": rate, "valid_from": valid_from}
    with psycopg.connect(url) as connection:
        write(connection, [[price(**given), price(kind="output", **given)]])


@pytest.mark.parametrize("seed", range(6))
async def test_one_that_looks_all_the_time_finds_what_one_that_judges_everything_finds(
    seed: int, embedded_postgres_url: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(embedded_postgres_url, tmp_path, seed)
    rng = pipeline.rng

    async def events() -> None:
        pipeline.at = min(pipeline.at + timedelta(minutes=rng.randrange(1, 600)), END)
        await pipeline.count(
            *(
                {
                    "when": max(BEGIN, pipeline.at - timedelta(minutes=rng.uniform(0, 1200))),
                    "orgId": str(rng.choice(ORGS)),
                    "modelId": str(rng.choice(MODELS)),
                    "clientId": rng.choice(("a", "b")),
                    "costEstimateCents": str(rng.randrange(1, 400)),
                    "inputTokens": rng.randrange(10**5),
                    **rng.choice(({}, {"provider": "p", "modelName": "m"})),
                    **rng.choice(({}, {"metadata": {"team": rng.choice(TEAMS)}})),
                }
                for _ in range(rng.randrange(1, 12))
            )
        )
        # The watermark moves for all orgs. A forecast that falls by that alone is seen later, by the sweep.
        pipeline.world.execute("UPDATE analytics.orgs_seen SET last_rollup_at = clock_timestamp()")

    async def budget() -> None:
        scope: dict[str, Any] = rng.choice(
            (
                {},
                {"model_id": rng.choice(MODELS)},
                {"dimension": "client", "value": rng.choice("ab")},
                {"dimension": "team", "value": rng.choice(TEAMS)},
            )
        )
        metric = rng.choice(("cost", "tokens", "requests"))
        off = "dimension" not in scope and rng.random() < 0.5
        most = {"cost": 300, "tokens": 10**7, "requests": 200}[metric]
        given = [{"percent": str(rng.randrange(1, 120)), "on": on} for on in ("actual", "actual", "forecast")]
        pipeline.world.budget(
            str(rng.randrange(most // 20, most)),
            *{json.dumps(one): one for one in given}.values(),
            org_id=rng.choice(ORGS),
            metric=metric,
            period=rng.choice(("day", "week") if off else ("day", "week", "month")),
            time_zone=KOLKATA if off else rng.choice(("UTC", "Europe/Berlin")),
            judged_from=BEGIN + 48 * HOUR if off else BEGIN,
            **scope,
        )

    async def correct_price() -> None:
        valid_from = BEGIN + HOUR * rng.choice((-24, 30, 100))
        record(embedded_postgres_url, Decimal(rng.randrange(1, 40)), valid_from)

    async def repair() -> None:
        await pipeline.archive()
        pipeline.damage(rng.choice(DAMAGE).format(rng.choice(DAMAGED)))
        if rng.random() < 0.5:
            await pipeline.look()
        if rng.random() < 0.3:
            await pipeline.look_afresh()
        pipeline.repair()
        if rng.random() < 0.5:
            await pipeline.check()
        await pipeline.partition.recover()

    async with pipeline.looking():
        await events()
        for _ in range(8):
            await budget()
        for _ in range(40):
            await rng.choices((events, budget, correct_price, repair), (12, 1, 1, 2))[0]()
            if rng.random() < 0.8:
                await pipeline.check()
        await pipeline.check()
    assert pipeline.screened > 20, "nothing was screened"
    assert len(pipeline.world.alerts()) > 10
