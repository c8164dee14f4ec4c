"""`spendstream alerts` sends its spans under a name of its own, and each attempt of a delivery is one."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg

from api.webhooks.sealed import Endpoint, Sealer, Secret, new_secret
from deploy.local.ports import free_port
from tests.support import otlp_receiver
from tests.support.processes import Process, wait_for

KEY = "a key of webhooks with 32 characters"
NOBODY = f"http://127.0.0.1:{free_port()}/hush"


def due_delivery(url: str) -> tuple[uuid.UUID, uuid.UUID]:
    """A webhook to an address where nobody listens, and a delivery to it that is due; their ids."""
    webhook_id, delivery_id, org_id = (uuid.uuid4() for _ in range(3))
    sealed = Sealer([KEY]).seal(webhook_id, Endpoint(url=NOBODY, secrets=(Secret(text=new_secret()),)))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed, enabled,"
            " created_by, created_at, updated_at)"
            " VALUES (%s, %s, 'w', 'standard', 'x', %s, true, 'test', now(), now())",
            (webhook_id, org_id, sealed),
        )
        connection.execute(
            "INSERT INTO analytics.webhook_deliveries (delivery_id, org_id, webhook_id, kind, body, status,"
            " attempts, next_at, created_at) VALUES (%s, %s, %s, 'webhook.test', '{}', 'pending', 0, now(),"
            " now())",
            (delivery_id, org_id, webhook_id),
        )
    return webhook_id, delivery_id


def test_alerts_send_their_spans_under_a_name_of_their_own(migrated_timescale: str, tmp_path: Path) -> None:
    webhook_id, delivery_id = due_delivery(migrated_timescale)
    with otlp_receiver.over_http() as receiver:
        env = {
            "DATABASE_URL": migrated_timescale,
            "API_ALLOW_PRIVILEGED": "true",
            "WEBHOOK_KEY": KEY,
            "WEBHOOK_ALLOW_PRIVATE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        alerts = Process("api", ["alerts"], env=env, log=tmp_path / "alerts.log", ready="")
        try:
            alerts.start(wait=False)
            wait_for(lambda: receiver.named("deliver"), 120, alerts.log)
            with psycopg.connect(migrated_timescale) as connection:
                names = connection.execute("SELECT application_name FROM pg_stat_activity").fetchall()
            assert alerts.stop() == 0, alerts.log()
        finally:
            alerts.__exit__()
    (span, *_) = receiver.named("deliver")
    assert {one.service for one in receiver.spans} == {"spendstream-alerts"}
    assert span.failed
    assert span.attributes == {
        "spendstream.webhook_id": str(webhook_id),
        "spendstream.delivery_id": str(delivery_id),
        "spendstream.attempt": 1,
        "error.type": "not_delivered",
    }
    assert {one.name for one in receiver.below(span)} == {"database write"}
    assert ("spendstream-alerts",) in names
    assert {line["service"] for line in alerts.events()} == {"spendstream-alerts"}
