"""``spendstream audit`` lists what was done, the newest first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.common.actor import actor

ORG = "00000000-0000-4000-8000-00000000000a"


@pytest.fixture
def url(migrated_url: str) -> str:
    return migrated_url


def test_the_audit_log_is_listed_by_action_org_person_and_time(url: str) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": url})
        assert result.exit_code == 0, result.output
        return result.stdout

    def listed(*options: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in run("audit", "--json", *options).splitlines()]

    assert run("audit") == ""
    rate = ("--provider", "p", "--model", "m", "--kind", "input", "--rate", "1", "--from", "2026-01-01")
    run("prices", "set", *rate)
    run("prices", "set", *rate, "--org", ORG)
    run("prices", "retract", "1", "--reason", "wrong \x1b[1m")
    run("names", "set", "--org", ORG, "Acme")
    rows = listed()
    assert [row["action"] for row in rows] == ["names.set", "prices.retract", "prices.set", "prices.set"]
    assert {row["actor"] for row in rows} == {actor()}
    assert rows[1]["detail"]["reason"] == "wrong \x1b[1m"
    assert len(listed("--action", "prices")) == 3
    assert len(listed("--action", "prices.set")) == 2
    assert len(listed("--action", "price")) == 0
    assert [row["action"] for row in listed("--org", ORG)] == ["names.set", "prices.set"]
    assert listed("--actor", "somebody else") == listed("--since", "2999-01-01") == []
    assert len(listed("--since", rows[1]["at"])) == 2
    assert len(listed("--limit", "1")) == 1
    first, second, *_ = run("audit").splitlines()
    assert f" {actor()} names.set done, org {ORG} (Acme): {{" in first
    assert " prices.retract done: {" in second
    assert "\x1b" not in second
