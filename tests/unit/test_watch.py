"""Rules, dashboards and runbook: what they name exists, and what Grafana and Prometheus need is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from api import metrics as api_metrics
from pipeline.collector import doors
from pipeline.collector import metrics as collector_metrics
from pipeline.common.settings_table import SETTINGS
from tests.support import expositions, watch
from tests.support.watch import Expression

_VARIABLE = re.compile(r"\$\{?([a-zA-Z_]\w*)(?::\w+)?\}?")
_MACROS = ("__timeFilter", "__timeGroup", "__interval", "__rate_interval", "__timeFrom", "__timeTo", "__all")
_ALERT = [pytest.param(rule, id=f"{rule['alert']}-{rule['labels']['severity']}") for rule in watch.alerts()]


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of all series of our processes, those of Prometheus itself, and those that rules record."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", expositions.text(), re.MULTILINE):
        names |= {f"{name}{end}" for end in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return names | {"up"} | {rule["record"] for rule in watch.rules() if "record" in rule}


@pytest.mark.parametrize("expression", watch.expressions(), ids=str)
def test_every_expression_is_promql_and_asks_for_metrics_that_exist(
    expression: Expression, exposed: set[str]
) -> None:
    wanted = {watch.metric(selector) for selector in watch.selectors(expression.text)}
    assert wanted
    assert wanted <= exposed, f"no such metrics: {wanted - exposed}"


def test_the_walk_finds_every_selector_of_an_expression() -> None:
    text = 'sum(rate(a{b="c",d!~"e|f"}[5m])) / scalar(-max(g offset 1w)) > bool 2 * (h or quantile(0.5, i))'
    assert watch.selectors(text) == ['a{b="c",d!~"e|f"}', "g{}", "h{}", "i{}"]
    with pytest.raises(ValueError, match=r"."):
        watch.selectors("sum(rate(a[5m])")


@pytest.mark.parametrize("rule", _ALERT)
def test_every_alert_says_how_bad_it_is_and_its_runbook_page_has_the_heading(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    annotations = rule["annotations"]
    for name in ("summary", "description"):
        assert len(annotations[name]) > 10, name
    path, _, anchor = annotations["runbook_url"].partition("#")
    page = watch.ROOT / path
    assert page == watch.RUNBOOK / f"{rule['alert']}.md"
    assert page.exists()
    assert anchor in watch.anchors(page)


def test_the_runbook_has_a_page_for_each_alert_in_its_list_and_no_others() -> None:
    names = {rule["alert"] for rule in watch.alerts()}
    assert {page.stem for page in watch.RUNBOOK.glob("Spendstream*.md")} == names
    listed = dict(
        re.findall(
            r"^\| \[(\w+)\]\(\w+\.md\) \| ([a-z, ]+) \|", (watch.RUNBOOK / "README.md").read_text(), re.M
        )
    )
    severities: dict[str, set[str]] = {}
    for rule in watch.alerts():
        severities.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert {name: set(text.split(", ")) for name, text in listed.items()} == severities


@pytest.mark.parametrize("page", sorted(watch.RUNBOOK.glob("Spendstream*.md")), ids=lambda page: page.stem)
def test_a_page_of_the_runbook_says_what_how_and_an_example_with_numbers(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    wanted = {"what-it-means", "how-to-see", "example"}
    assert wanted <= watch.anchors(page)
    assert "```promql" in text
    assert len(re.findall(r"\d", text.partition("## Example")[2])) >= 4, "an example has numbers"


def test_the_issues_alerts_are_all_there() -> None:
    seed = "ServiceDown FreshnessLag DedupeConflicts RollupsStalled Memory Cpu ApiErrors ApiSlow ApiVerySlow"
    seed += " ApiErrorSpike ApiLatencySpike"
    more = "ExportsFail IngestLow DeadLetters PartitionUnowned ArchiveOutbox RetentionNear CollectorSpool"
    more += " FreshnessBudget ApiBudget HourIncomplete"
    names = {rule["alert"].removeprefix("Spendstream") for rule in watch.alerts()}
    assert {*seed.split(), *more.split()} <= names


def test_prometheus_scrapes_each_process_at_the_port_of_its_default() -> None:
    told = yaml.safe_load((watch.PROMETHEUS / "prometheus.yml").read_text())
    ports = {
        job["job_name"]: job["static_configs"][0]["targets"][0].partition(":")[2]
        for job in told["scrape_configs"]
    }
    defaults = {setting.name: setting.default for setting in SETTINGS}
    assert ports == {
        "spendstream-worker": defaults["METRICS_PORT"],
        "spendstream-api": defaults["HTTP_PORT"],
        "spendstream-exporter": "8087",
        "spendstream-alerts": "8088",
        "spendstream-collector": defaults["COLLECTOR_PORT"],
    }
    assert told["rule_files"] == [watch.RULES.name]


def test_every_job_that_an_expression_names_is_scraped() -> None:
    told = yaml.safe_load((watch.PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in told["scrape_configs"]}
    named = {
        (operator, value)
        for expression in watch.expressions()
        for selector in watch.selectors(expression.text)
        for operator, value in re.findall(r'[{,]job(=~?)"([^"]*)"', selector)
    }
    assert named
    for operator, value in named:
        found = {job for job in jobs if (re.fullmatch(value, job) if operator == "=~" else job == value)}
        assert found, value


def test_the_alerts_that_alertmanager_names_exist() -> None:
    told = yaml.safe_load((watch.PROMETHEUS / "alertmanager.yml").read_text())
    names = {rule["alert"] for rule in watch.alerts()}
    matchers = [
        matcher
        for rule in told["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    named = {name for matcher in matchers for name in re.findall(r"Spendstream\w+", matcher)}
    assert named
    assert named <= names


# --- series that exist before the first incident -------------------------------------------------------


def test_failures_refusals_and_ends_are_shown_at_0_from_the_start() -> None:
    api = api_metrics.Metrics()
    api.expect([("GET", "/analytics/v1/orgs")])
    collector = collector_metrics.Metrics()
    text = (api.exposition(api_metrics.Facts(), datetime.now(UTC)) + collector.exposition()).decode()
    for line in (
        'http_requests_total{method="GET",route="/analytics/v1/orgs",status="500"} 0.0',
        'http_requests_total{method="GET",route="/analytics/v1/orgs",status="503"} 0.0',
        'http_requests_total{method="POST",route="/v1/litellm",status="503"} 0.0',
        'analytics_auth_decisions_total{decision="refused",reason="role"} 0.0',
        'analytics_export_attempts_total{outcome="failed"} 0.0',
        'analytics_live_dropped_total{reason="slow"} 0.0',
        'analytics_collector_events_total{dialect="traces",outcome="refused"} 0.0',
    ):
        assert f"{line}\n" in text, line


def test_the_collectors_metrics_know_each_door() -> None:
    assert tuple(door.dialect for door in doors.DOORS) == collector_metrics.DIALECTS
    assert [door.path for door in doors.DOORS] == [f"/v1/{name}" for name in collector_metrics.DIALECTS]


def test_an_export_ends_in_one_of_the_ways_that_are_shown() -> None:
    registry = CollectorRegistry()
    exports = api_metrics.Exports(registry)
    exports.ended("repeated", 0.3)
    exports.ended("succeeded", 40)
    text = generate_latest(registry).decode()
    assert 'analytics_export_attempts_total{outcome="repeated"} 1.0' in text
    assert 'analytics_export_duration_seconds_bucket{le="30.0",outcome="succeeded"} 0.0' in text
    assert 'analytics_export_duration_seconds_bucket{le="60.0",outcome="succeeded"} 1.0' in text
    with pytest.raises(AssertionError, match="exploded"):
        exports.ended("exploded", 1)


# --- dashboards ------------------------------------------------------------------------------------


def _by_name(dashboard: Path) -> str:
    return dashboard.stem


dashboards = pytest.mark.parametrize("dashboard", watch.DASHBOARDS, ids=_by_name)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def test_there_are_the_four_dashboards() -> None:
    titles = {json.loads(path.read_text())["title"] for path in watch.DASHBOARDS}
    assert titles == {"Spend and usage", "Reliability", "Pipeline", "API"}
    uids = [json.loads(path.read_text())["uid"] for path in watch.DASHBOARDS]
    assert len(set(uids)) == len(uids)


@dashboards
def test_every_panel_has_a_title_a_unit_and_targets(dashboard: Path) -> None:
    panels = watch.panels(dashboard)
    assert len({panel["id"] for panel in panels}) == len(panels), "ids are unique"
    titles = [panel["title"] for panel in panels]
    for panel in panels:
        assert panel["title"].strip()
        assert titles.count(panel["title"]) == 1, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]
        for target in panel["targets"]:
            assert target.get("expr") or target.get("rawSql"), panel["title"]


@dashboards
def test_panels_lie_within_24_columns_and_do_not_overlap(dashboard: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in watch.panels(dashboard):
        place = panel["gridPos"]
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@dashboards
def test_a_dashboard_names_no_data_source_and_only_variables_that_it_has(dashboard: Path) -> None:
    told = json.loads(dashboard.read_text())
    variables = {one["name"]: one for one in told["templating"]["list"]}
    sources = {name for name, one in variables.items() if one["type"] == "datasource"}
    for owner in (*told["panels"], *told["templating"]["list"]):
        for holder in (owner, *owner.get("targets", ())):
            if "datasource" in holder:
                assert holder["datasource"]["uid"] in {f"${{{name}}}" for name in sources}
                kind = variables[holder["datasource"]["uid"][2:-1]]["query"]
                assert holder["datasource"]["type"] == kind
        if owner.get("type") not in ("row", "datasource"):
            assert "datasource" in owner, owner.get("title")
    used = {name for text in _strings(told) for name in _VARIABLE.findall(text)}
    assert used - set(_MACROS) <= set(variables), f"no such variables: {used - set(variables)}"
    assert set(variables) <= used, f"nothing uses {set(variables) - used}"


def test_spend_and_usage_has_the_variables_and_panels_that_people_know() -> None:
    path = next(path for path in watch.DASHBOARDS if path.stem == "spend-and-usage")
    names = {one["name"] for one in json.loads(path.read_text())["templating"]["list"]}
    assert {"database", "org", "model"} <= names
    titles = {panel["title"] for panel in watch.panels(path)}
    six = {"Spend over time", "Spend by model", "Tokens by kind", "Requests", "Error rate", "Latency"}
    assert six <= titles


def test_provisioning_brings_the_kinds_of_data_sources_that_the_dashboards_ask_for() -> None:
    told = yaml.safe_load((watch.GRAFANA / "provisioning/datasources/spendstream.yaml").read_text())
    kinds = {source["type"] for source in told["datasources"]}
    wanted = {
        one["query"]
        for path in watch.DASHBOARDS
        for one in json.loads(path.read_text())["templating"]["list"]
        if one["type"] == "datasource"
    }
    assert wanted == kinds
    for source in told["datasources"]:
        assert "uid" not in source, "a dashboard finds it by its kind"
