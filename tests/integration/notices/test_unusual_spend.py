"""``spendstream alerts``: an org is told of an hour of unusual spend, once, whatever dies or runs twice."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import api.config
from api.alerts import service
from api.notices.judge import Found
from sql import migrate, roles
from tests.support import older_schema
from tests.support.access import login_of
from tests.support.alerts_world import ORG, OTHER, OTHER_MODEL, START, Crash, Crashes, call
from tests.support.notices_world import DAY, HOUR, NINE, WEEK, NoticesWorld, busy, weeks
from tests.support.price_books import price, write
from tests.support.processes import wait_for

if TYPE_CHECKING:
    pass


def test_an_hour_far_above_the_weeks_before_is_told_with_what_it_was_judged_by(world: NoticesWorld) -> None:
    world.ask()
    world.ask(OTHER)
    world.count(
        [
            *weeks(5, 4, 6, 5),
            *weeks(5, 4, 6, 5, org=OTHER),
            call(NINE, 10),
            call(NINE + timedelta(minutes=59), 9),
            call(NINE, 18, org=OTHER),
        ],
        watermark=NINE + HOUR,
    )
    assert world.notice().hours == 1
    (told,) = world.notices()
    assert (told["org_id"], told["kind"], told["period"]) == (ORG, "spend.unusual", "2026-11-02T09:00Z")
    assert (told["period_start"], told["period_end"]) == (NINE, NINE + HOUR)
    assert (told["watermark"], told["final"], told["price_version"]) == (NINE + HOUR, False, 0)
    figures = told["figures"]
    assert (figures["spent"], figures["usual"], figures["factor"]) == ("19.00", "6.00", "3")
    assert [week["spent"] for week in figures["weeks"]] == ["5.00", "4.00", "6.00", "5.00"]
    assert figures["weeks"][0]["hourStart"] == "2026-10-26T09:00:00Z"
    assert world.notice().hours == 0


def test_an_hour_is_judged_when_the_watermark_has_passed_it(world: NoticesWorld) -> None:
    world.ask()
    events = [*weeks(1, 1, 1, 1), call(NINE, 100)]
    world.count(events, watermark=NINE + HOUR - timedelta(seconds=1))
    assert world.notice().hours == 0
    world.count([], watermark=NINE + HOUR)
    assert world.notice().hours == 1


def test_an_org_that_does_not_ask_is_not_told(world: NoticesWorld) -> None:
    world.ask(unusual_enabled=False)
    world.ask(OTHER, unusual_since=NINE + HOUR)
    world.count([*weeks(1, 1), call(NINE, 99), call(NINE, 99, org=OTHER)], watermark=NINE + 3 * HOUR)
    assert world.notice() == Found()


def test_late_events_have_an_hour_judged_again_for_a_day(world: NoticesWorld) -> None:
    world.ask()
    world.count([*weeks(1, 1, 1, 1), call(NINE, 9)], watermark=NINE + HOUR)
    assert world.notice().hours == 0
    world.count([call(NINE, 9)], watermark=NINE + 24 * HOUR)
    assert world.notice().hours == 1
    world.count([call(NINE - HOUR, 99)], watermark=NINE + 25 * HOUR)
    assert world.notice().hours == 0
    assert world.told() == ["2026-11-02T09:00Z"]


def test_a_corrected_price_has_hours_judged_again_and_what_was_told_stays(world: NoticesWorld) -> None:
    world.ask()
    labelled: dict[str, Any] = {"label": ("p", "m"), "microcents": None, "output_tokens": 0}
    world.count(
        [
            *weeks(1, 1, 1, 1, **labelled),
            call(NINE, input_tokens=10**6, **labelled),
            call(NINE, 0, model=OTHER_MODEL, microcents=None),
        ],
        watermark=NINE + HOUR,
    )

    async def looks() -> list[int]:
        async with world.noticing() as watch:
            found = [(await watch.look()).hours]
            for rate in (90, 9):
                with psycopg.connect(world.url) as connection:
                    given = {"rate": Decimal(rate), "valid_from": START - 9 * WEEK}
                    write(connection, [[price(**given), price(kind="output", **given)]])
                found.append((await watch.look()).hours)
        return found

    assert asyncio.run(looks()) == [0, 1, 0]
    (told,) = world.notices()
    assert told["figures"]["spent"] == "90.00"
    assert told["figures"]["unpriced"] == 1


def test_only_an_hour_that_ends_has_anything_read(world: NoticesWorld) -> None:
    world.ask()
    world.ask(OTHER, summary_enabled=True, summary_zone="Asia/Kolkata")
    looks: list[set[uuid.UUID]] = []

    async def look() -> None:
        async with world.noticing() as watch:
            judged: set[uuid.UUID] = set()
            inner = watch._judged

            async def noted(org_id: uuid.UUID) -> Found:
                judged.add(org_id)
                return await inner(org_id)

            watch._judged = noted  # type: ignore[method-assign]
            events = [call(START, 1), call(START, 1, org=OTHER)]
            for minutes in (1, 2, 14, 16, 59, 60, 61):
                world.count(events, watermark=START + timedelta(minutes=minutes))
                events = []
                judged.clear()
                await watch.look()
                looks.append(set(judged))

    asyncio.run(look())
    # The days of India begin at half past, so that org is looked at each quarter of an hour.
    assert looks == [{ORG, OTHER}, set(), set(), {OTHER}, {OTHER}, {ORG, OTHER}, set()]


def test_what_was_unusual_while_none_ran_is_told_once_and_at_most_of_a_week(world: NoticesWorld) -> None:
    world.ask()
    days = [NINE - 10 * DAY, NINE - 6 * DAY, NINE - 2 * DAY, NINE]
    history = [event for day in days for event in weeks(1, 1, 1, 1, at=day)]
    world.count([*history, call(days[0], 1)], watermark=days[0] + HOUR)
    assert world.notice().hours == 0
    world.count([call(day, 99) for day in days], watermark=NINE + HOUR)
    assert world.notice().hours == 3
    assert world.told() == ["2026-10-27T09:00Z", "2026-10-31T09:00Z", "2026-11-02T09:00Z"]
    assert [row["final"] for row in world.notices()] == [True, True, False]
    assert world.notice().hours == 0


def test_the_process_of_alerts_looks_by_itself(world: NoticesWorld) -> None:
    world.ask(summary_enabled=True)
    world.webhook()
    world.count(busy([ORG]), watermark=START + DAY)
    config = api.config.load({"DATABASE_URL": world.url, "API_ALLOW_PRIVILEGED": "true"})

    async def run() -> int:
        process = asyncio.create_task(service.run(config, lambda: START + 9 * DAY))
        await asyncio.to_thread(wait_for, lambda: len(world.bodies()) == 2, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        return await process

    assert asyncio.run(run()) == 0
    assert world.told() == ["2026-11-02", "2026-11-02T09:00Z"]


# --- once, whatever happens ---


def test_a_crash_at_any_statement_loses_and_doubles_nothing(
    world: NoticesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask(summary_enabled=True)
    world.webhook()
    world.count(busy([ORG]), watermark=START + DAY)
    crashes = Crashes(monkeypatch)
    died = after_commit = 0
    for number in range(1000):
        crashes.left = number
        try:
            world.notice()
        except Crash:
            died += 1
            if world.notices():
                after_commit += 1
                assert len(world.notices()) == len(world.bodies()) == 2
                assert world.notice() == Found()
                world.execute("TRUNCATE analytics.notices_sent CASCADE")
                world.execute("UPDATE analytics.notices SET unusual_to = NULL, summary_to = NULL")
            assert world.bodies() == []
        else:
            break
    crashes.left = None
    assert died > 15
    assert after_commit == 1
    world.notice()
    assert world.told() == ["2026-11-02", "2026-11-02T09:00Z"]
    assert len(world.bodies()) == 2


def test_two_at_once_tell_each_org_once(world: NoticesWorld) -> None:
    orgs = [ORG, OTHER, *(uuid.UUID(int=number) for number in range(20, 26))]
    for org in orgs:
        world.ask(org, summary_enabled=True)
        world.webhook(org=org)

    async def both() -> Found:
        async with world.noticing() as one, world.noticing() as other:
            found = await asyncio.gather(one.look(), other.look())
        found[0].add(found[1])
        return found[0]

    world.count(busy(orgs), watermark=START + DAY)
    found = asyncio.run(both())
    assert (found.hours, found.days) == (len(orgs), len(orgs))
    assert len(world.notices()) == len(world.bodies()) == 2 * len(orgs)


def test_what_an_org_asks_for_while_it_is_looked_at_holds(
    world: NoticesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask()
    world.count(busy([ORG]), watermark=START + DAY)
    crashes = Crashes(monkeypatch, [("FOR UPDATE", lambda: world.ask(unusual_factor=100))])
    assert world.notice() == Found()
    assert not crashes.hooks
    assert world.told() == []


def test_an_org_that_cannot_be_looked_at_stops_no_other(world: NoticesWorld) -> None:
    world.ask(OTHER, summary_enabled=True, summary_zone="Mars/Olympus")
    world.ask()
    world.count(busy([OTHER, ORG]), watermark=START + DAY)
    assert world.notice().hours == 1
    assert [row["org_id"] for row in world.notices()] == [ORG]


def test_its_role_may_tell_and_forget_and_change_nothing_else(world: NoticesWorld) -> None:
    for url in login_of(world.url, roles.ALERTER):
        world.ask(summary_enabled=True)
        world.webhook()
        world.count(busy([ORG]), watermark=START + DAY)
        assert world.notice(url=url) == Found(hours=1, days=1)
        world.execute("UPDATE analytics.notices_sent SET noticed_at = now() - interval '401 days'")

        async def forget(url: str = url) -> None:
            async with world.noticing(url=url) as watch:
                await watch._forget()

        asyncio.run(forget())
        assert world.notices() == world.bodies() == []
        for statement in (
            "UPDATE analytics.notices SET unusual_factor = 2",
            "INSERT INTO analytics.notices (org_id) VALUES (gen_random_uuid())",
            "UPDATE analytics.notices_sent SET final = true",
        ):
            with psycopg.connect(url) as refused, pytest.raises(psycopg.errors.InsufficientPrivilege):
                refused.execute(statement)


def test_the_migration_keeps_alerts_and_deliveries_as_they_are(embedded_postgres_url: str) -> None:
    older_schema.make(embedded_postgres_url, "0025")
    world = NoticesWorld(embedded_postgres_url)
    budget = world.budget(definition=None)
    world.webhook()
    world.execute(
        "WITH alert AS (INSERT INTO analytics.budget_alerts (alert_id, org_id, budget_id, period_start,"
        " basis, level, period_end, state, budget_version, price_version, threshold, amount, spent, unpriced,"
        " final, crossed_at, judged_at) VALUES (gen_random_uuid(), %(org)s, %(budget)s, %(at)s, 'actual', 80,"
        " %(at)s + interval '1 day', 'alarm', 1, 0, '{}', 100, 90, 0, false, %(at)s, %(at)s)"
        " RETURNING alert_id, org_id)"
        " INSERT INTO analytics.webhook_deliveries (delivery_id, org_id, webhook_id, alert_id, kind, body,"
        " status, attempts, next_at, created_at) SELECT gen_random_uuid(), org_id, webhook_id, alert_id,"
        " 'budget.alert', '{}', 'pending', 3, now(), now() FROM alert JOIN analytics.webhooks USING (org_id)",
        {"org": ORG, "budget": budget, "at": START},
    )
    tables = ("budgets", "budget_alerts", "webhooks", "webhook_deliveries")
    before = {table: world.rows(f"SELECT * FROM analytics.{table}") for table in tables}
    migrate.upgrade(embedded_postgres_url)
    after = {table: world.rows(f"SELECT * FROM analytics.{table}") for table in tables}
    assert [delivery["notice_id"] for delivery in after["webhook_deliveries"]] == [None]
    for table, rows in before.items():  # there may be more columns
        assert [{name: row[name] for name in rows[0]} for row in after[table]] == rows, table
    assert all(map(len, before.values()))
