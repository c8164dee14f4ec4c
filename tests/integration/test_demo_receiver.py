"""The demo's webhook receiver, against messages that the reference library signs; and the demo's budgets."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from pipeline.demo import budgets, names
from pipeline.demo.receiver import BODY_BYTES_MAX, Receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
ORG = "1f0c33aa-0000-4000-8000-000000000001"
ALERT = {
    "budgetName": "Today",
    "metric": "cost",
    "percent": "80",
    "amount": None,
    "on": "actual",
    "level": "12.00",
    "budgetAmount": "15.00",
    "spent": "12.0391",
    "forecast": "44.1",
    "watermark": "2026-11-30T14:30:52Z",
    "crossedAt": "2026-11-30T14:30:00Z",
    "final": False,
    "resolvedBecause": None,
}


def message(kind: str = "budget.alert", org: str | None = None, **alert: Any) -> bytes:
    about = {"orgId": ORG, "orgName": org, "alert": ALERT | alert}
    return json.dumps({"type": kind, "timestamp": "2026-11-30T14:30:53Z", "data": about}).encode()


def notice(**given: Any) -> bytes:
    of_notice = {"periodStart": "2026-11-30T14:00:00Z", "unusualSpend": None, "dailySummary": None} | given
    about = {"orgId": ORG, "orgName": "Acme", "notice": of_notice}
    return json.dumps({"type": "spend.daily", "timestamp": "2026-11-30T14:30:53Z", "data": about}).encode()


def headers(
    body: bytes, *, secret: str = SECRET, name: str = "msg_1", at: datetime | None = None
) -> dict[str, str]:
    when = at or datetime.now(UTC)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(when.timestamp())),
        "webhook-signature": "v1,AAAA " + Webhook(secret).sign(name, when, body.decode()),
    }


class Open:
    """A receiver, and the lines that it has told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.receiver = Receiver(self.lines.append)
        self.receiver.secret = SECRET

    def post(self, body: bytes, given: dict[str, str]) -> int:
        request = urllib.request.Request(self.receiver.url, data=body, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def opened() -> Iterator[Open]:
    found = Open()
    yield found
    found.receiver.close()


def test_a_message_with_a_good_signature_is_one_line_and_told_once(opened: Open) -> None:
    body = message()
    assert [opened.post(body, headers(body)) for _ in range(2)] == [204, 204]
    assert opened.lines == [
        'signature good: 1f0c33aa has reached 80 % of the budget "Today": $12.04 of $15.00, at 14:30 UTC;'
        " provisional, complete to 14:30:52"
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (message("budget.resolved", "Acme", resolvedBecause="budget"), "Acme is below 80 %"),
        (message(percent=None, amount="1000", metric="tokens", spent="1000"), "1,000 tokens of the budget"),
        (message(on="forecast", percent="100"), "$44.10 forecast of $15.00"),
        (message(final=True), "; final, complete"),
        (message("webhook.test"), "a test of the webhook of 1f0c33aa"),
        (
            notice(unusualSpend={"spent": "61.5", "usual": "9.00"}),
            "Acme has spent $61.50 in the hour from 14:00 UTC: about this time it was $9.00 at most",
        ),
        (
            notice(dailySummary={"day": "2026-11-30", "cost": {"amount": "1234.5"}, "invocations": 4321}),
            "Acme has spent $1,234.50 on 2026-11-30, with 4,321 requests",
        ),
        (
            notice(dailySummary={"day": "2026-11-30", "cost": {"amount": None}, "invocations": 1}),
            "Acme has spent an unknown amount on 2026-11-30",
        ),
        (message(org="\x1b]0;owned\x07"), "\\x1b]0;owned\\x07 has reached"),
        (message(budgetName="a\u202eb"), 'budget "a\\u202eb"'),
    ],
)
def test_each_message_says_what_it_is_and_no_terminal_obeys_it(opened: Open, given: bytes, says: str) -> None:
    assert opened.post(given, headers(given)) == 204
    (line,) = opened.lines
    assert says in line
    assert line.isprintable()


def test_what_nobody_has_signed_is_refused_and_not_shown(opened: Open) -> None:
    body = message(org="Mallory")
    other = "whsec_" + base64.b64encode(b"another secret that is as long!!").decode()
    old = datetime.now(UTC) - timedelta(minutes=6)
    for given in (headers(body, secret=other), headers(body, at=old), headers(body + b" "), {}):
        assert opened.post(body, given) == 401
    assert len(opened.lines) == 4
    assert not any("Mallory" in line for line in opened.lines)


def test_a_body_that_is_too_large_or_of_no_known_form_does_no_harm(opened: Open) -> None:
    assert opened.post(b" " * (BODY_BYTES_MAX + 1), {}) == 413
    for body in (b"{}", b"[]", b"not JSON", message(spent="much"), message("budget.alert", crossedAt=None)):
        assert opened.post(body, headers(body)) in (400, 401)
    body = message()
    assert opened.post(body, headers(body)) == 204


def test_without_a_secret_a_message_is_put_off(opened: Open) -> None:
    opened.receiver.secret = None
    body = message()
    assert opened.post(body, headers(body)) == 503
    assert opened.lines == []


def test_todays_budget_is_ahead_of_what_is_spent_by_45_seconds() -> None:
    spent = budgets.Spent(day=Decimal("3.00"), month=Decimal("40.00"), calls=900)
    today, month, calls = budgets.plans(spent, Decimal("0.20"), 75.0)
    assert (today["name"], today["amount"]) == ("Today", "15.00")
    assert Decimal(today["amount"]) * 80 / 100 == spent.day + 45 * Decimal("0.20")
    assert month["amount"] == "760.00"
    assert calls["amount"] == "45360000"


def test_an_org_that_spends_nothing_has_budgets_all_the_same() -> None:
    nothing = budgets.Spent(day=Decimal(0), month=Decimal(0), calls=0)
    assert [plan["amount"] for plan in budgets.plans(nothing, Decimal(0), 0.0)] == ["0.01", "0.36", "1000"]


def test_no_two_orgs_of_the_demo_have_one_name() -> None:
    found = list(names.invented(names.NAMED_MAX))
    assert len(set(found)) == len(found) == names.NAMED_MAX
    assert found[:2] == ["Alder Health", "Birch Freight"]
