"""The rules of adjustments, without a database."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner

from api.adjustments import orders
from pipeline import cli
from pipeline.commands import adjustments as commands
from pipeline.common import adjustments
from pipeline.common.adjustments import Adjustment
from pipeline.common.problems import Problem
from pipeline.core import wire

START = datetime(2026, 11, 1, tzinfo=UTC)
CREDIT = Adjustment(
    org_id=uuid.UUID(int=1),
    kind="credit",
    amount=Decimal("-12.5"),
    period_start=START,
    period_end=START + timedelta(days=30),
    reason="outage",
)


@pytest.mark.parametrize(
    "text", ["-12.5", "0.000000000001", "-1000000000", "7", "-0", "1000000000.000000000000"]
)
def test_an_amount_is_read_exactly(text: str) -> None:
    assert adjustments.amount_of(text) == Decimal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+1",
        "1e3",
        ".5",
        "1.",
        "01",
        "1,5",
        "NaN",
        "Infinity",
        "0.0000000000001",
        "1000000000.1",
        "١",
        "1\n",
    ],
)
def test_a_text_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected US dollars"):
        adjustments.amount_of(text)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, []),
        ({"kind": "correction", "amount": Decimal(3)}, []),
        ({"kind": "gift"}, ["kind"]),
        ({"amount": Decimal(1)}, ["amount"]),
        ({"kind": "refund", "amount": Decimal(0)}, ["amount"]),
        ({"kind": "correction", "amount": Decimal(0)}, ["amount"]),
        ({"period_start": START + timedelta(minutes=30)}, ["period_start"]),
        ({"period_end": START}, ["period_end"]),
        ({"period_end": START + timedelta(microseconds=1)}, ["period_end"]),
        ({"period_start": datetime(1969, 12, 31, 23, tzinfo=UTC)}, ["period_start"]),
        ({"reason": "a\nb"}, []),
        ({"reason": ""}, ["reason"]),
        ({"reason": " \n"}, ["reason"]),
        ({"reason": "a\u202eb"}, ["reason"]),
        ({"reason": "a\u2028b"}, ["reason"]),
        ({"reason": "x" * 1001}, ["reason"]),
        ({"reason": "a\0"}, ["reason"]),
    ],
)
def test_each_broken_rule_is_named(change: dict[str, Any], fields: list[str]) -> None:
    assert [name for name, _ in adjustments.faults_of(replace(CREDIT, **change))] == fields


def test_every_fault_of_a_body_is_named_at_once() -> None:
    with pytest.raises(Problem) as raised:
        orders.adjustment(b'{"kind": "gift", "amount": -1, "periodEnd": "soon", "more": 1}', CREDIT.org_id)
    assert {fault.field for fault in raised.value.errors} == {
        "kind",
        "amount",
        "periodStart",
        "periodEnd",
        "reason",
        "more",
    }


def test_the_kinds_of_the_command_are_those_of_the_rules() -> None:
    assert commands.KINDS == adjustments.KINDS


def test_the_command_names_every_broken_rule_by_its_option() -> None:
    given = ["adjustments", "add", "--org", str(CREDIT.org_id), "--kind", "credit", "--amount", "1"]
    given += ["--from", "2026-11-01T00:30", "--to", "2026-11-01", "--reason", ""]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == 2
    for option in (
        "--amount must be below 0",
        "--from must be a whole hour",
        "--to must be after",
        "--reason",
    ):
        assert option in result.output, result.output


@pytest.mark.parametrize("cost", ["-0.5", -1])
def test_a_negative_cost_is_refused_with_the_way_to_record_a_credit(cost: Any) -> None:
    [fault] = [
        fault
        for fault in wire.check(json.dumps({"costEstimateCents": cost}).encode())
        if fault.field == "costEstimateCents"
    ]
    assert fault.message.startswith("must not be negative; a credit, refund or correction is an adjustment")
    assert "spendstream adjustments add" in fault.message
