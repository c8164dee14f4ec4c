"""Webhooks of orgs, and the outbox of what is to be sent to them.

A delivery is written in the transaction that commits its alert, and its key is what makes it be written once.
The tables are new and empty, so the migration takes no time.
"""

from alembic import op

revision = "0025"
down_revision = "0024"

_TABLES = """
CREATE TABLE analytics.webhooks (
    webhook_id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    name text NOT NULL,
    format text NOT NULL,
    shown_url text NOT NULL,
    sealed bytea NOT NULL,
    enabled boolean NOT NULL,
    disabled_because text,
    failing_since timestamptz,
    last_success_at timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    idempotency_key text,
    CONSTRAINT webhooks_idempotency UNIQUE (org_id, idempotency_key),
    CONSTRAINT webhooks_name CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT webhooks_format CHECK (format IN ('standard', 'slack')),
    CONSTRAINT webhooks_disabled CHECK (
        enabled = (disabled_because IS NULL) AND COALESCE(disabled_because IN ('gone', 'asked'), true))
);
CREATE INDEX webhooks_of_org ON analytics.webhooks (org_id, webhook_id);

CREATE TABLE analytics.webhook_deliveries (
    delivery_id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    webhook_id uuid NOT NULL REFERENCES analytics.webhooks (webhook_id) ON DELETE CASCADE,
    alert_id uuid REFERENCES analytics.budget_alerts (alert_id),
    kind text NOT NULL,
    body text NOT NULL,
    status text NOT NULL,
    attempts integer NOT NULL,
    next_at timestamptz NOT NULL,
    claim uuid,
    lease_until timestamptz,
    last_status integer,
    last_error text,
    last_attempt_at timestamptz,
    delivered_at timestamptz,
    created_at timestamptz NOT NULL,
    CONSTRAINT webhook_deliveries_once UNIQUE (alert_id, kind, webhook_id),
    CONSTRAINT webhook_deliveries_kind CHECK (kind IN ('budget.alert', 'budget.resolved', 'webhook.test')),
    CONSTRAINT webhook_deliveries_status CHECK (status IN ('pending', 'delivered', 'failed')),
    CONSTRAINT webhook_deliveries_body CHECK (octet_length(body) <= 20000)
);
CREATE INDEX webhook_deliveries_of_webhook
    ON analytics.webhook_deliveries (webhook_id, created_at, delivery_id);
CREATE INDEX webhook_deliveries_due
    ON analytics.webhook_deliveries (webhook_id, next_at) WHERE status = 'pending';
CREATE INDEX webhook_deliveries_age ON analytics.webhook_deliveries (created_at);
"""


def upgrade() -> None:
    # Without parameters the driver leaves percent signs alone.
    op.get_bind().exec_driver_sql(_TABLES, execution_options={"no_parameters": True})
