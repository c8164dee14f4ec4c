"""Notices of orgs: hours of unusual spend, and daily summaries.

``notices`` says what an org asks for, and ``notices_sent`` what was found, once an org, kind and period. A
delivery may be of a notice instead of an alert. The tables are new and empty, and the new column is null, so
no row is rewritten. The check of deliveries and their new index read the outbox once, which nobody else can
use meanwhile. It holds 30 days of messages: a million of them took 8 s on two cores with much other work.
"""

from alembic import op

revision = "0026"
down_revision = "0025"

_TABLES = """
CREATE TABLE analytics.notices (
    org_id uuid PRIMARY KEY,
    version integer NOT NULL,
    unusual_enabled boolean NOT NULL,
    unusual_factor numeric NOT NULL,
    unusual_minimum numeric NOT NULL,
    unusual_since timestamptz NOT NULL,
    unusual_to timestamptz,
    summary_enabled boolean NOT NULL,
    summary_zone text NOT NULL,
    summary_since timestamptz NOT NULL,
    summary_to timestamptz,
    set_by text NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT notices_version CHECK (version > 0),
    -- The bounds also turn NaN and Infinity away.
    CONSTRAINT notices_factor CHECK (unusual_factor > 1 AND unusual_factor <= 1000),
    CONSTRAINT notices_minimum CHECK (unusual_minimum > 0 AND unusual_minimum <= 1000000000000000)
);

CREATE TABLE analytics.notices_sent (
    notice_id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    kind text NOT NULL,
    period text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    watermark timestamptz NOT NULL,
    final boolean NOT NULL,
    price_version bigint NOT NULL,
    figures jsonb NOT NULL,
    noticed_at timestamptz NOT NULL,
    CONSTRAINT notices_sent_once UNIQUE (org_id, kind, period),
    CONSTRAINT notices_sent_kind CHECK (kind IN ('spend.unusual', 'spend.daily')),
    CONSTRAINT notices_sent_period CHECK (period_end > period_start)
);
CREATE INDEX notices_sent_of_org ON analytics.notices_sent (org_id, noticed_at, notice_id);
CREATE INDEX notices_sent_age ON analytics.notices_sent (noticed_at);

ALTER TABLE analytics.webhook_deliveries
    ADD COLUMN notice_id uuid REFERENCES analytics.notices_sent (notice_id) ON DELETE CASCADE,
    DROP CONSTRAINT webhook_deliveries_kind,
    ADD CONSTRAINT webhook_deliveries_kind CHECK (
        kind IN ('budget.alert', 'budget.resolved', 'webhook.test', 'spend.unusual', 'spend.daily')),
    ADD CONSTRAINT webhook_deliveries_notice UNIQUE (notice_id, webhook_id);
"""


def upgrade() -> None:
    # Without parameters the driver leaves percent signs alone.
    op.get_bind().exec_driver_sql(_TABLES, execution_options={"no_parameters": True})
