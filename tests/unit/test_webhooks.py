"""Webhooks without a network: addresses, secrets, signatures, bodies and the schedule of attempts."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from standardwebhooks import Webhook

from api.alerts.deliver import SCHEDULE_S, again_s
from api.answering.budgets import BudgetAlert, BudgetScope
from api.webhooks import messages, orders
from api.webhooks.addresses import fault_of, is_public
from api.webhooks.sealed import Endpoint, Sealer, Secret, Unreadable, new_secret
from pipeline.common import settings
from pipeline.common.problems import Problem

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
KEY, OTHER_KEY = "k" * 32, "o" * 40
ENDPOINT = Endpoint(url="https://example.com/hook", secrets=(Secret(text=new_secret()),))
AT = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::8.8.8.8",
        "2002:7f00:1::",
        "2001:0:1::",
        "3fff::1",
        "5f00::1",
        "::ffff:0:8.8.8.8",
        "192.88.99.1",
        "192.0.0.192",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "100.100.100.200",
        "fd00:ec2::254",
        "no address",
    ],
)
def test_a_private_address_is_known_in_every_dress(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_address_is_let_through(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https://user:pw@example.com/",
        "https://example.com/#x",
        "https://127.0.0.1/",
        "https://[::ffff:10.0.0.1]/",
        "https://example.com:99999/",
        "https://example.com/a b",
        "https://exämple.com/",
        "https://[x/",
        "https://^K<e",
        "https://example.com/%zz",
        "https://example.com/\n",
        "https://a:b:1/",
        "https://example.com:0/",
        "https://a..example.com/",
        "https://.example.com/",
        "https://example.com../",
        "https://./",
        "https://2130706433/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://0x7f000001/",
        "https://example.0x7f/",
        "https://127.0.0.1./",
        "https://127.000.000.001/",
        "https://localhost/",
        "https://localhost./",
        "https://LOCALHOST:8080/",
        "https://a.localhost/",
        "https://printer.local/",
        "https://postgres/",
        "https://[::1]/",
        "https://[::ffff:1.2.3]/",
        "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 130 + "com/",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_an_address_that_breaks_a_rule_is_refused(url: str) -> None:
    assert fault_of(url, allow_private=False)


def test_private_addresses_and_http_are_let_through_where_allowed() -> None:
    for url in ("http://127.0.0.1:80/x", "https://example.com/x", "http://localhost/", "http://[::1]:80/"):
        assert fault_of(url, allow_private=True) is None
    for url in ("http://127.1/", "http://a..b/", "http://localhost:0/"):
        assert fault_of(url, allow_private=True)  # nobody could send there


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com.:8443/x",
        "https://1.a-b_c.example.com/",
        "https://8.8.8.8/",
    ],
)
def test_a_public_address_is_taken(url: str) -> None:
    assert fault_of(url, allow_private=False) is None


def test_what_is_sealed_is_opened_by_any_of_the_keys_and_for_one_webhook_alone() -> None:
    sealed = Sealer([KEY]).seal(ONE, ENDPOINT)
    assert b"example" not in sealed
    assert Sealer([KEY]).open(ONE, sealed) == ENDPOINT
    assert Sealer([OTHER_KEY, KEY]).open(ONE, sealed) == ENDPOINT
    with pytest.raises(Unreadable):
        Sealer([OTHER_KEY]).open(ONE, sealed)
    with pytest.raises(Unreadable):
        Sealer([KEY]).open(OTHER, sealed)
    with pytest.raises(Unreadable):
        Sealer([KEY]).open(ONE, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(Unreadable):
        Sealer([KEY]).open(ONE, b"")
    assert Sealer([KEY]).seal(ONE, ENDPOINT) != sealed


def test_the_first_key_seals() -> None:
    sealed = Sealer([OTHER_KEY, KEY]).seal(ONE, ENDPOINT)
    assert Sealer([OTHER_KEY]).open(ONE, sealed) == ENDPOINT


def test_the_keys_are_masked_in_logs_one_by_one() -> None:
    values = settings.read({"WEBHOOK_KEY": f"{KEY},{OTHER_KEY}"})
    assert values["WEBHOOK_KEY"] == (KEY, OTHER_KEY)
    assert {KEY, OTHER_KEY} <= set(values.secrets())
    with pytest.raises(settings.ConfigError):
        settings.read({"WEBHOOK_KEY": f"{KEY},short"})


def test_a_message_is_verified_with_each_secret_that_holds() -> None:
    old, new = new_secret(), new_secret()
    now = datetime.now(UTC).timestamp()
    endpoint = Endpoint(url="", secrets=(Secret(text=new), Secret(text=old, until=now + 60)))
    body = b'{"a": 1}'
    sent = dict(messages.headers(ONE, body, endpoint.signing(now), int(now)))
    for secret in (old, new):
        assert Webhook(secret).verify(body.decode(), sent) == {"a": 1}
    later = dict(messages.headers(ONE, body, endpoint.signing(now + 61), int(now)))
    Webhook(new).verify(body.decode(), later)
    for secret, text in ((old, body.decode()), (new, '{"a": 2}')):
        with pytest.raises(Exception, match="signature"):
            Webhook(secret).verify(text, later)


def test_the_schedule_is_that_of_standard_webhooks() -> None:
    assert [again_s(attempts, None, 0) for attempts in range(1, 10)] == [*map(float, SCHEDULE_S)]
    assert again_s(10, None, 0) is None
    assert again_s(1, None, -1) == 4
    assert again_s(1, None, 1) == 6
    assert again_s(1, 60, 0) == 60
    assert again_s(2, 60, 0) == 300
    assert again_s(1, 10**9, 0) == 86_400


def alert(**given: Any) -> BudgetAlert:
    fields: dict[str, Any] = {
        "alert_id": ONE,
        "budget_id": ONE,
        "budget_name": "<!channel> & *b*",
        "budget_version": 1,
        "scope": BudgetScope(model_id=None, dimension=None, value=None),
        "metric": "cost",
        "period": "day",
        "time_zone": "UTC",
        "period_start": AT,
        "period_end": AT + timedelta(days=1),
        "percent": "80",
        "amount": None,
        "on": "actual",
        "level": "80.00",
        "budget_amount": "100.00",
        "spent": "90.00",
        "forecast": None,
        "unpriced": 0,
        "state": "alarm",
        "watermark": AT,
        "final": False,
        "price_version": 1,
        "crossed_at": AT,
        "judged_at": AT,
        "resolved_at": None,
        "resolved_because": None,
        "resolved_spent": None,
        "resolved_watermark": None,
    }
    return BudgetAlert(**(fields | given))


def test_names_are_text_for_slack() -> None:
    body = messages.of_alert("slack", messages.ALERT, AT, ONE, "<@U1>", alert())
    text = json.loads(body)["text"]
    assert "<" not in text
    assert "&lt;!channel&gt; &amp; ∗b∗" in text
    assert "has reached 80 %: 90.00 of 100.00 USD" in text
    resolved = alert(state="resolved", resolved_because="budget", resolved_at=AT)
    assert "Resolved" in messages.of_alert("slack", messages.RESOLVED, AT, ONE, None, resolved)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_x_ and __x__", "＿x＿ and ＿＿x＿＿"),
        ("~x~", "∼x∼"),
        ("*x* `x`", "∗x∗ 'x'"),
        (":tada: 12:30", "꞉tada꞉ 12꞉30"),
        (":tada", "꞉tada"),  # a colon of ours may follow
        ("https://evil.example/a", "https꞉//evil․example/a"),
        ("www.evil.example", "www․evil․example"),
        ("me@evil.example", "me@evil․example"),
        ("<https://evil|x> & <!here>", "&lt;https꞉//evil|x&gt; &amp; &lt;!here&gt;"),
        ("my_model_v2 gpt-4.1 o3", "my_model_v2 gpt-4.1 o3"),
    ],
)
def test_no_name_is_markup_for_slack(name: str, shown: str) -> None:
    body = messages.of_alert("slack", messages.ALERT, AT, ONE, name, alert(budget_name=name))
    assert f"Budget *{shown}* of {shown} has reached" in json.loads(body)["text"]


def test_the_longest_message_has_room() -> None:
    long = alert(budget_name="\U0001f600" * 128, spent="9" * 40, forecast="9" * 40, level="9" * 40)
    for form in messages.FORMATS:
        body = messages.of_alert(form, messages.ALERT, AT, ONE, "\U0001f600" * 128, long)
        assert len(body.encode()) < messages.BODY_BYTES_MAX / 4


def test_a_message_says_what_the_list_of_alerts_says() -> None:
    body = json.loads(messages.of_alert("standard", messages.ALERT, AT, ONE, "Acme", alert()))
    assert (body["type"], body["timestamp"]) == ("budget.alert", "2026-11-30T12:00:00Z")
    assert body["data"]["alert"] == json.loads(msgspec.json.encode(alert()))
    assert (body["data"]["orgId"], body["data"]["orgName"]) == (str(ONE), "Acme")


def test_a_body_becomes_an_order() -> None:
    given = {"name": "ops", "url": "https://hooks.slack.com/services/T/B/x", "format": "slack"}
    order = orders.webhook(msgspec.json.encode(given), allow_private=False, changes=False)
    assert order.shown_url == "https://hooks.slack.com/…"
    secret = msgspec.json.encode(given | {"url": "https://example.com?token=x", "format": "standard"})
    assert orders.webhook(secret, allow_private=False, changes=False).shown_url == "https://example.com/…"
    assert order.enabled
    for more, fields in (
        ({"name": ""}, ["name"]),
        ({"url": "http://x/"}, ["url"]),
        ({"url": "https://postgres/"}, ["url"]),
        ({"url": "https://hooks.slack.com/…"}, ["url"]),
        ({"url": 1}, ["url"]),
        ({"format": "teams"}, ["format"]),
        ({"enabled": "yes"}, ["enabled"]),
        ({"rotateSecret": True}, ["rotateSecret"]),
    ):
        with pytest.raises(Problem) as caught:
            orders.webhook(msgspec.json.encode(given | more), allow_private=False, changes=False)
        assert [fault.field for fault in caught.value.errors] == fields
