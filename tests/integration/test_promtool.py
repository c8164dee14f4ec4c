"""The tools of Prometheus and Alertmanager on our files: all are valid, and alerts fire when they should."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import or_missing
from tests.support import prometheus, watch


def run(*command: str) -> str:
    """Run a tool, which must exit with 0; what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def promtool() -> str:
    with or_missing():
        return prometheus.promtool()


def test_rules_and_configuration_are_valid(promtool: str) -> None:
    assert f"SUCCESS: {len(watch.rules())} rules found" in run(promtool, "check", "rules", str(watch.RULES))
    assert "SUCCESS" in run(promtool, "check", "config", str(watch.PROMETHEUS / "prometheus.yml"))


@pytest.mark.parametrize("file", watch.RULE_TESTS, ids=lambda file: file.stem)
def test_every_alert_fires_when_it_should_and_then_only(promtool: str, file: Path) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", str(file))


def test_the_case_of_the_page_fires_as_the_page_says(promtool: str, tmp_path: Path) -> None:
    page = (watch.ROOT / "docs/howto/watch.md").read_text()
    (case,) = re.findall(r"cat > mine_test.yml <<'EOF'\n(.*?)^EOF$", page, re.DOTALL | re.MULTILINE)
    file = tmp_path / "mine_test.yml"
    case = case.replace("deploy/prometheus/rules.yml", str(watch.RULES))
    file.write_text(case)
    assert "SUCCESS" in run(promtool, "test", "rules", str(file))
    file.write_text(case.replace("eval_time: 6m", "eval_time: 2m"))
    early = subprocess.run(
        (promtool, "test", "rules", str(file)), capture_output=True, text=True, check=False
    )
    assert early.returncode != 0
    assert "got: nil" in (early.stdout + early.stderr).lower()


def cases() -> Iterator[dict[str, Any]]:
    for file in watch.RULE_TESTS:
        for group in yaml.safe_load(file.read_text())["tests"]:
            yield from group["alert_rule_test"]


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    wanted = {(rule["alert"], rule["labels"]["severity"]) for rule in watch.alerts()}
    fires, quiet = set(), set()
    for case in cases():
        expected = {alert["exp_labels"]["severity"] for alert in case["exp_alerts"]}
        fires |= {(case["alertname"], severity) for severity in expected}
        quiet |= {one for one in wanted if one[0] == case["alertname"] and one[1] not in expected}
    assert fires == wanted
    assert quiet == wanted


def test_the_routes_of_alertmanager_are_valid() -> None:
    with or_missing():
        amtool = prometheus.amtool()
    example = str(watch.PROMETHEUS / "alertmanager.yml")
    assert "SUCCESS" in run(amtool, "check-config", example)
    route = "config", "routes", "test", f"--config.file={example}"
    assert run(amtool, *route, "alertname=SpendstreamFreshnessLag", "severity=critical").split()[0] == "pager"
    assert run(amtool, *route, "alertname=SpendstreamIngestLow", "severity=warning").split()[0] == "tickets"
