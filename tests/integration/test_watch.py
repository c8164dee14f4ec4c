"""A real Prometheus scrapes our processes: expressions find their series, and panels in SQL their rows."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import psycopg.sql
import pytest

from deploy.local import Stack
from deploy.local.ports import free_port
from deploy.local.server import Server
from sql import roles
from tests.conftest import or_missing
from tests.support import migrated, processes, prometheus, streams, watch
from tests.support.api_server import BASE, Client
from tests.support.collectors import Collector, collector
from tests.support.exports import made
from tests.support.prometheus import Prometheus
from tests.support.usage_events import ORG, EventMill, array
from tests.support.watch import Expression

EVENTS: Final = 400


@dataclass(frozen=True, slots=True)
class World:
    """Processes at work, a Prometheus that scrapes them, and the database with what they have counted."""

    prometheus: Prometheus
    database_url: str


@pytest.fixture(scope="module")
def world(
    stack: Stack, up: Callable[[Server], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    for server in (stack.rabbitmq, stack.postgres):
        up(server)
    name = f"watch_{uuid.uuid4().hex}"
    url = stack.postgres.create_database(name)
    migrated.upgrade(url)
    folder = tmp_path_factory.mktemp("watch")
    env = {
        **stack.rabbitmq.env,
        "DATABASE_URL": url,
        "RABBITMQ_STREAM": f"watch.{uuid.uuid4().hex}",
        "FLUSH_INTERVAL": "200ms",
        "ARCHIVE_URL": f"file://{folder / 'archive'}",
        "EXPORT_DIR": str(folder / "exports"),
        "EXPORT_IN_API": "false",
        "API_ALLOW_PRIVILEGED": "true",
        "COLLECTOR_SPOOL": str(folder / "spool"),
    }
    with (
        processes.worker(env, folder) as worker,
        processes.Api(env, folder) as api,
        beside("exporter", "EXPORT_METRICS_PORT", env, folder) as exporting,
        beside("alerts", "ALERTS_METRICS_PORT", env, folder) as judging,
        collector(env, folder) as door,
    ):
        use(env, worker, door, Client(urlsplit(api.ready_url).port or 0))
        targets = {
            f"spendstream-{job}": [urlsplit(process.ready_url).netloc]
            for job, process in (
                ("worker", worker),
                ("api", api),
                ("exporter", exporting),
                ("alerts", judging),
                ("collector", door),
            )
        }
        with or_missing(), prometheus.running(targets, folder) as watching:
            wait_until_evaluated(watching)
            yield World(watching, url)
    up(stack.postgres)
    stack.postgres.drop_database(name)


def sent() -> list[bytes]:
    """The events that are sent: of every status, with every kind of token. Only their time differs."""
    events = [json.loads(event) for event in EventMill(seed=26).events(2 * EVENTS)]
    for number, event in enumerate(events[:40]):
        event["status"] = ("timeout", "throttled")[number % 2]
        event["inputTokens"], event["outputTokens"] = 1000 + number, 500
        event |= {"cacheReadTokens": 300, "cacheWriteTokens": 200, "cacheWrite1hTokens": 100}
        event["reasoningTokens"] = 250
    return [json.dumps(event).encode() for event in events]


def beside(command: str, setting: str, env: Mapping[str, str], folder: Path) -> processes.Process:
    """``spendstream exporter`` or ``alerts``, whose setting names the port of its metrics."""
    port = free_port()
    return processes.Process(
        "pipeline.cli",
        [command],
        env={**env, setting: str(port)},
        log=folder / f"{command}.log",
        ready=f"http://127.0.0.1:{port}/readyz",
    )


def use(env: dict[str, str], worker: processes.Process, door: Collector, api: Client) -> None:
    """Send events by both doors, ask the API, and have an export made. Nothing fails on the way."""
    events = sent()
    stream = env["RABBITMQ_STREAM"]
    asyncio.run(streams.publish(env["RABBITMQ_URL"], stream, events[:EVENTS], "raw", amqp_url=""))
    status, answer = door.post("/v1/events", array(events[EVENTS:]))
    assert (status, answer["accepted"]) == (200, EVENTS)
    streams.wait_committed(env["DATABASE_URL"], len(events), worker)
    now = datetime.now(UTC)
    day = {"start": f"{now - timedelta(days=1):%Y-%m-%dT%H:00:00Z}", "end": f"{now:%Y-%m-%dT%H:00:00Z}"}
    for _ in range(3):
        api.ok(f"{BASE}/orgs/{ORG}/usage", day)
    job = {"timeRange": day, "granularity": "hourly", "format": "csv"}
    assert made(api, job, f"{BASE}/orgs/{ORG}/exports")["status"] == "succeeded"


def wait_until_evaluated(watching: Prometheus) -> None:
    """Wait until every target was scraped, and every rule evaluated after that."""

    def scraped() -> bool:
        targets = watching.ask("targets")["activeTargets"]
        return len(targets) == 5 and all(target["health"] == "up" for target in targets)

    processes.wait_for(scraped, 120, lambda: str(watching.ask("targets")["activeTargets"])[:4000])
    # The last group of the file, and so each group, has been evaluated on what the first one recorded.
    processes.wait_for(
        lambda: all(watching.value(rule["record"]) for rule in watch.rules() if "record" in rule), 300
    )


def test_no_rule_fails_and_nothing_fires_while_all_is_well(world: World) -> None:
    groups = world.prometheus.ask("rules")["groups"]
    ran = [rule for group in groups for rule in group["rules"]]
    assert len(ran) == len(watch.rules())
    for rule in ran:
        assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))
    assert [rule["name"] for rule in ran if rule.get("state") == "firing"] == []


@pytest.mark.parametrize("expression", watch.expressions(), ids=str)
def test_every_expression_finds_its_series(world: World, expression: Expression) -> None:
    found = {one: world.prometheus.series(one) for one in watch.selectors(expression.text)}
    for selector, series in found.items():
        assert series, f"no series for {selector}"
    labels = {label for series in found.values() for one in series for label in one}
    assert grouped_by(expression.text) <= labels
    answer = world.prometheus.value(expression.text)
    # An alert is quiet, and half an hour ago there was nothing. All else has a value.
    assert answer or expression.may_be_empty


def grouped_by(text: str) -> set[str]:
    """The labels by which an expression aggregates or matches."""
    lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", text)
    return {label.strip() for one in lists for label in one.split(",")}


# --- the panels that ask the database ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """One SQL query of a dashboard: of a panel, or of a variable."""

    place: str
    text: str
    form: str
    """``time_series``, ``table``, or ``variable``."""

    def __str__(self) -> str:
        return self.place


def queries() -> list[Query]:
    found = []
    for dashboard in watch.DASHBOARDS:
        for variable in json.loads(dashboard.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                place = f"{dashboard.stem}: variable {variable['name']}"
                found.append(Query(place, variable["query"], "variable"))
        for panel in watch.panels(dashboard):
            for target in panel.get("targets", ()):
                if "rawSql" in target:
                    place = f"{dashboard.stem}: {panel['title']} {target['refId']}"
                    found.append(Query(place, target["rawSql"], target["format"]))
    return found


def expanded(text: str, *, start: datetime, end: datetime, lists: Mapping[str, list[str]]) -> str:
    """A query as Grafana sends it: its macros and variables written out, as for panels of an hour a point."""
    times = f"'{start:%Y-%m-%dT%H:%M:%SZ}'", f"'{end:%Y-%m-%dT%H:%M:%SZ}'"
    text = text.replace("$__interval", "'1h'")
    text = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {times[0]} AND {times[1]}", text)
    text = re.sub(r"\$__timeGroup\((\w+), '1h'\)", r"floor(extract(epoch from \1)/3600)*3600", text)
    text = text.replace("$__timeFrom()", times[0]).replace("$__timeTo()", times[1])
    for name, values in lists.items():
        text = text.replace(f"${{{name}:sqlstring}}", ",".join(f"'{value}'" for value in values))
    assert "$" not in text, text
    return text


@pytest.fixture(scope="module", params=[roles.BI, roles.READER])
def asked(world: World, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A session with one of the roles that may read the views, and with no other right."""
    with psycopg.connect(world.database_url, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(request.param)))
        yield connection


def test_the_roles_may_not_read_what_the_views_hide(asked: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked.execute("SELECT * FROM analytics.dead_letters")


def range_of(values: Mapping[str, list[str]]) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"start": now - timedelta(days=2), "end": now + timedelta(minutes=1), "lists": values}


@pytest.mark.parametrize("query", queries(), ids=str)
def test_every_query_of_a_dashboard_finds_rows(asked: psycopg.Connection[Any], query: Query) -> None:
    variables = {one.place.rpartition(" ")[2]: one.text for one in queries() if one.form == "variable"}
    values: dict[str, list[str]] = {}
    for name in ("org", "model"):  # the query for models asks for those of the orgs
        rows = asked.execute(expanded(variables[name], **range_of(values)).encode()).fetchall()
        values[name] = [value for _, value in rows]
    assert len(values["org"]) == 20
    assert len(values["model"]) == 10
    cursor = asked.execute(expanded(query.text, **range_of(values)).encode())
    names = [column.name for column in cursor.description or ()]
    rows = cursor.fetchall()
    assert rows
    if query.form == "variable":
        assert names == ["__text", "__value"]
    elif query.form == "time_series":
        assert names[0] == "time"
        assert all(row[0] > 1_700_000_000 for row in rows), "the time is seconds since 1970"
        measures = [name for name in names[1:] if name != "metric"]
        assert measures
        for row in rows:
            for name, value in zip(names, row, strict=True):
                assert name not in measures or value is None or isinstance(value, float), name
        for name in measures:
            assert any(row[names.index(name)] for row in rows), f"{name} is 0 all the time"
    else:
        assert "time" not in names


def test_the_dashboards_figures_are_those_of_the_events(asked: psycopg.Connection[Any]) -> None:
    panels = {query.place: query.text for query in queries()}
    orgs = asked.execute("SELECT DISTINCT org_id::text FROM analytics.spend_hour").fetchall()
    models = asked.execute("SELECT DISTINCT model_id::text FROM analytics.spend_hour").fetchall()
    values = {"org": [org for (org,) in orgs], "model": [model for (model,) in models]}

    def total(title: str) -> float:
        text = expanded(panels[f"spend-and-usage: {title} A"], **range_of(values))
        row = asked.execute(text.encode()).fetchone()
        assert row is not None
        return float(row[0])

    assert total("Total requests") == 2 * EVENTS
    events = [json.loads(event) for event in sent()]
    assert total("Total tokens") == sum(event["inputTokens"] + event["outputTokens"] for event in events)
    assert total("Total spend") == pytest.approx(sum(event["costEstimateCents"] for event in events) / 100)
