"""The answers about webhooks and their deliveries."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from api.answering.answers import Answer, Count, Time
from api.answering.budgets import BudgetAlert
from api.answering.notices import Notice

Format = Literal["standard", "slack"]


class Webhook(Answer):
    """Where alerts of the org are sent. ``url`` is shown without path and query, which may hold a token:
    ``https://example.com/…``. ``secret`` signs the messages; it is shown once, when it is made, and null
    after. ``disabledBecause``: the endpoint answered 410 (``gone``), or somebody ``asked``.
    ``failingSince``: no attempt has succeeded since then; null if the last one did."""

    webhook_id: UUID
    org_id: UUID
    name: str
    url: str
    format: Format
    enabled: bool
    disabled_because: Literal["gone", "asked"] | None
    failing_since: Time | None
    last_success_at: Time | None
    secret: str | None
    created_at: Time
    updated_at: Time


class Webhooks(Answer):
    """By id."""

    org_id: UUID
    org_name: str | None
    items: list[Webhook]
    next_cursor: str | None


class Delivery(Answer):
    """A message to one webhook. ``messageId`` is its ``webhook-id``, the same in every attempt. ``failed``:
    there are no more attempts, but for one that somebody asks for. A message is about an alert or about a
    notice, and about neither if it is a test."""

    delivery_id: UUID
    webhook_id: UUID
    message_id: str
    alert_id: UUID | None
    notice_id: UUID | None
    kind: Literal["budget.alert", "budget.resolved", "webhook.test", "spend.unusual", "spend.daily"]
    status: Literal["pending", "delivered", "failed"]
    attempts: Count
    last_status: int | None
    last_error: str | None
    last_attempt_at: Time | None
    next_attempt_at: Time | None
    delivered_at: Time | None
    created_at: Time


class Deliveries(Answer):
    """The newest first."""

    org_id: UUID
    webhook_id: UUID
    items: list[Delivery]
    next_cursor: str | None


class SentAlert(BudgetAlert):
    """An alert with its deliveries. Those that have ended are kept for 30 days."""

    deliveries: list[Delivery]


class SentAlerts(Answer):
    """The newest first."""

    org_id: UUID
    org_name: str | None
    items: list[SentAlert]
    next_cursor: str | None


class SentNotice(Notice):
    """A notice with its deliveries. Those that have ended are kept for 30 days."""

    deliveries: list[Delivery]


class SentNotices(Answer):
    """The newest first."""

    org_id: UUID
    org_name: str | None
    items: list[SentNotice]
    next_cursor: str | None
