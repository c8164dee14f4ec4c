"""What webhooks are sent: a JSON body by Standard Webhooks, or a text for Slack. And how it is signed.

A body is written when its alert is committed, so each attempt sends the same bytes.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from api.answering.answers import Answer, Time, encode
from api.answering.budgets import BudgetAlert
from api.answering.notices import ComparedDay, DayFigures, Notice, SummaryModel, UnusualHour
from api.webhooks.sealed import bytes_of
from pipeline.common.texts import counted

BODY_BYTES_MAX: Final = 20_000
ALERT: Final = "budget.alert"
RESOLVED: Final = "budget.resolved"
TEST: Final = "webhook.test"
STANDARD: Final = "standard"
SLACK: Final = "slack"
FORMATS: Final = (STANDARD, SLACK)
_SHOWN: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "*": "\u2217", "`": "'", "~": "\u223c", ":": "\ua789"}
)
"""What Slack would take for an entity, for bold, code or struck text, for an emoji or for a link."""
_EDGE: Final = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""A low line that is not inside a word: it begins or ends what is slanted."""
_DOT: Final = re.compile(r"\.(?=[^\W\d_])")
"""A full stop before a letter, as in ``example.com``, which Slack makes a link."""
_UNITS: Final = {"cost": "USD", "tokens": "tokens", "requests": "requests"}


class AlertData(Answer):
    org_id: UUID
    org_name: str | None
    alert: BudgetAlert


class NoticeData(Answer):
    org_id: UUID
    org_name: str | None
    notice: Notice


class TestData(Answer):
    org_id: UUID
    webhook_id: UUID


class Message(Answer):
    type: Literal["budget.alert", "budget.resolved", "webhook.test", "spend.unusual", "spend.daily"]
    timestamp: Time
    data: AlertData | NoticeData | TestData


def of_alert(
    form: str, kind: Any, at: datetime, org_id: UUID, org_name: str | None, alert: BudgetAlert
) -> str:
    """The body of a message about an alert."""
    if form == SLACK:
        return _slack(_told(kind, org_name or str(org_id), alert))
    data = AlertData(org_id=org_id, org_name=org_name, alert=alert)
    return _checked(encode(Message(type=kind, timestamp=at, data=data)))


def of_notice(form: str, notice: Notice, org_id: UUID, org_name: str | None) -> str:
    """The body of a message about an hour of unusual spend, or about a day."""
    if form == SLACK:
        return _slack(_noticed(org_name or str(org_id), notice))
    data = NoticeData(org_id=org_id, org_name=org_name, notice=notice)
    return _checked(encode(Message(type=notice.kind, timestamp=notice.noticed_at, data=data)))


def of_test(form: str, at: datetime, org_id: UUID, webhook_id: UUID) -> str:
    """The body of a message that tries a webhook."""
    if form == SLACK:
        return _slack("Spendstream: this is a test of the webhook.")
    data = TestData(org_id=org_id, webhook_id=webhook_id)
    return _checked(encode(Message(type=TEST, timestamp=at, data=data)))


def _told(kind: str, org: str, alert: BudgetAlert) -> str:
    """An alert in one line, for people."""
    unit = _UNITS[alert.metric]
    level = f"{alert.percent} %" if alert.percent is not None else f"{alert.amount} {unit}"
    figure = alert.spent if alert.on == "actual" else f"{alert.forecast} forecast"
    name = _escaped(alert.budget_name)
    if kind == RESOLVED:
        why = "the figure fell" if alert.resolved_because == "figure" else "the budget was changed"
        return f"Resolved: budget *{name}* of {_escaped(org)}, {level} ({why})."
    as_of = _as_of(alert.watermark, final=alert.final)
    return (
        f"Budget *{name}* of {_escaped(org)} has reached {level}: {figure} of {alert.budget_amount} {unit}"
        f" in the period from {alert.period_start:%Y-%m-%d %H:%M} UTC ({as_of})."
    )


def _as_of(watermark: datetime | None, *, final: bool) -> str:
    as_of = f", as of {watermark:%Y-%m-%d %H:%M:%S} UTC" if watermark else ""
    return f"{'final' if final else 'provisional'}{as_of}"


def _noticed(org: str, notice: Notice) -> str:
    """A notice in a few lines, for people."""
    as_of = _as_of(notice.watermark, final=notice.final)
    if notice.unusual_spend is not None:
        return _unusual(_escaped(org), notice, notice.unusual_spend, as_of)
    assert notice.daily_summary is not None
    return _summary(_escaped(org), notice.daily_summary, as_of)


def _unusual(org: str, notice: Notice, hour: UnusualHour, as_of: str) -> str:
    return (
        f"Unusual spend of {org}: {hour.spent} USD in the hour from {notice.period_start:%Y-%m-%d %H:%M} UTC."
        f" About this time of the week it was {hour.usual} USD at most in the {len(hour.weeks)} weeks before"
        f" ({as_of})."
    )


def _summary(org: str, day: DayFigures, as_of: str) -> str:
    error_rate = "" if day.error_rate is None else f", {100 * day.error_rate:.2f} % failed"
    tokens = counted(day.input_tokens, "input token"), counted(day.output_tokens, "output token")
    lines = [
        f"*{day.day}* ({day.time_zone}) of {org}: {_spent(day)} ({as_of})",
        f"The day before: {_compared(day.day_before)}. A week before: {_compared(day.week_before)}.",
        f"{counted(day.invocations, 'request')}{error_rate}; {' and '.join(tokens)}.",
    ]
    lines += [f"• {_named(model)}: {_spent(model)}" for model in day.top_models]
    if day.unpriced:
        models = ", ".join(map(_named, day.unpriced_models))
        more = day.unpriced_model_count - len(day.unpriced_models)
        others = f" and {counted(more, 'other model')}" if more else ""
        lines.append(f"Nobody knows the cost of {counted(day.unpriced, 'call')} of {models}{others}.")
    return "\n".join(lines)


def _spent(of: DayFigures | SummaryModel) -> str:
    return "cost unknown" if of.cost.amount is None else f"{of.cost.amount} USD"


def _compared(day: ComparedDay) -> str:
    return "unknown" if day.cost is None or day.cost.amount is None else f"{day.cost.amount} USD"


def _named(model: SummaryModel) -> str:
    name = "/".join(part for part in (model.provider, model.model_name) if part)
    return _escaped(name or str(model.model_id))


def _escaped(text: str) -> str:
    """A name as Slack shows it: as text, whatever markup is in it.

    A name calls no channel, is no link and no picture, and nothing in it is bold: signs of markup become
    signs that look like them. ``a_b`` and ``gpt-4.1`` stay as they are, because nothing there is markup.
    """
    text = _EDGE.sub("\uff3f", _DOT.sub("\u2024", text))
    return text.translate(_SHOWN)


def _slack(text: str) -> str:
    return _checked(msgspec.json.encode({"text": text}))


def _checked(body: bytes) -> str:
    assert len(body) <= BODY_BYTES_MAX, "names are bounded, so bodies are"
    return body.decode()


# --- signatures ---


def message_id(delivery_id: UUID) -> str:
    """The id of a message: the same in every attempt, so that a receiver can tell a repetition."""
    return f"msg_{delivery_id.hex}"


def headers(delivery_id: UUID, body: bytes, secrets: Iterable[str], now: int) -> Mapping[str, str]:
    """The headers of Standard Webhooks, with a signature for each secret."""
    name = message_id(delivery_id)
    signed = f"{name}.{now}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.digest(bytes_of(secret), signed, "sha256")).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": name,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
        "Content-Type": "application/json",
        "User-Agent": "Spendstream-Webhooks/1",
    }
