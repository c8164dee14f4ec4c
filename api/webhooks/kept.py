"""Webhooks and deliveries as the database keeps them, and how answers show them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from psycopg.rows import dict_row

from api.answering.webhooks import Delivery, Webhook
from api.reading.database import rows
from api.webhooks.messages import message_id
from pipeline.common.connect import AsyncConnection
from sql import queries

_COLUMNS: Final = (
    "webhook_id, org_id, name, format, shown_url, sealed, enabled, disabled_because, failing_since,"
    " last_success_at, created_at, updated_at"
)
_DELIVERY_COLUMNS: Final = (
    "delivery_id, webhook_id, alert_id, notice_id, kind, status, attempts, next_at, last_status, last_error,"
    " last_attempt_at, delivered_at, created_at"
)
SQL: Final = {
    name: text.replace("{columns}", _COLUMNS).replace("{delivery_columns}", _DELIVERY_COLUMNS)
    for name, text in queries.load("webhooks").items()
}


async def found(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a query of `SQL` finds or writes."""
    return await rows(connection, SQL[name], values, dict_row)


def queued(webhook: Mapping[str, Any], kind: str, body: str, alert_id: UUID | None) -> dict[str, Any]:
    """The values of the query ``queue``: a delivery to a webhook."""
    return {
        "delivery_id": uuid.uuid4(),
        "org_id": webhook["org_id"],
        "webhook_id": webhook["webhook_id"],
        "alert_id": alert_id,
        "kind": kind,
        "body": body,
    }


def webhook_shown(row: Mapping[str, Any], *, secret: str | None = None) -> Webhook:
    same = ("webhook_id", "org_id", "name", "format", "enabled", "disabled_because", "failing_since")
    times = ("last_success_at", "created_at", "updated_at")
    return Webhook(url=row["shown_url"], secret=secret, **{name: row[name] for name in (*same, *times)})


def delivery_shown(row: Mapping[str, Any]) -> Delivery:
    same = ("delivery_id", "webhook_id", "alert_id", "notice_id", "kind", "status", "attempts", "last_status")
    more = ("last_error", "last_attempt_at", "delivered_at", "created_at")
    return Delivery(
        message_id=message_id(row["delivery_id"]),
        next_attempt_at=row["next_at"] if row["status"] == "pending" else None,
        **{name: row[name] for name in (*same, *more)},
    )


async def of_alerts(connection: AsyncConnection, alert_ids: Iterable[UUID]) -> dict[UUID, Sequence[Delivery]]:
    """The deliveries of some alerts, the oldest first."""
    values = {"alert_ids": list(alert_ids)}
    return _by("alert_id", await found(connection, "of_alerts", values))


async def of_notices(
    connection: AsyncConnection, notice_ids: Iterable[UUID]
) -> dict[UUID, Sequence[Delivery]]:
    """The deliveries of some notices, the oldest first."""
    values = {"notice_ids": list(notice_ids)}
    return _by("notice_id", await found(connection, "of_notices", values))


def _by(name: str, deliveries: Iterable[Mapping[str, Any]]) -> dict[UUID, Sequence[Delivery]]:
    by_id: dict[UUID, list[Delivery]] = {}
    for row in deliveries:
        by_id.setdefault(row[name], []).append(delivery_shown(row))
    return dict(by_id)
