"""Budgets of orgs, and the alerts of their thresholds.

A budget is never deleted: ``deleted_at`` ends it, and every change raises its ``version``. So the sum of the
versions of an org's budgets grows with every change. An alert is the state of one threshold in one period,
and its key is what makes it be told once. The tables are new and empty, so the migration takes no time.
"""

from alembic import op

revision = "0024"
down_revision = "0023"

_TABLES = """
CREATE TABLE analytics.budgets (
    budget_id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    version integer NOT NULL,
    name text NOT NULL,
    model_id uuid,
    dimension text,
    value text,
    metric text NOT NULL,
    period text NOT NULL,
    time_zone text NOT NULL,
    amount numeric NOT NULL,
    thresholds jsonb NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    judged_from timestamptz NOT NULL,
    closed_to timestamptz,
    deleted_at timestamptz,
    idempotency_key text,
    CONSTRAINT budgets_idempotency UNIQUE (org_id, idempotency_key),
    CONSTRAINT budgets_version CHECK (version > 0),
    CONSTRAINT budgets_name CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT budgets_scope CHECK ((dimension IS NULL) = (value IS NULL)),
    CONSTRAINT budgets_metric CHECK (metric IN ('cost', 'tokens', 'requests')),
    CONSTRAINT budgets_period CHECK (period IN ('day', 'week', 'month', 'quarter', 'year')),
    -- The bounds also turn NaN and Infinity away.
    CONSTRAINT budgets_amount CHECK (amount > 0 AND amount <= 1000000000000000)
);
CREATE INDEX budgets_of_org ON analytics.budgets (org_id, budget_id);

CREATE TABLE analytics.budget_alerts (
    alert_id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    budget_id uuid NOT NULL REFERENCES analytics.budgets (budget_id),
    period_start timestamptz NOT NULL,
    basis text NOT NULL,
    level numeric NOT NULL,
    period_end timestamptz NOT NULL,
    state text NOT NULL,
    budget_version integer NOT NULL,
    price_version bigint NOT NULL,
    threshold jsonb NOT NULL,
    amount numeric NOT NULL,
    spent numeric NOT NULL,
    forecast numeric,
    unpriced bigint NOT NULL,
    watermark timestamptz,
    final boolean NOT NULL,
    crossed_at timestamptz NOT NULL,
    judged_at timestamptz NOT NULL,
    resolved_at timestamptz,
    resolved_because text,
    resolved_spent numeric,
    resolved_watermark timestamptz,
    CONSTRAINT budget_alerts_once UNIQUE (budget_id, period_start, basis, level),
    CONSTRAINT budget_alerts_basis CHECK (basis IN ('actual', 'forecast')),
    CONSTRAINT budget_alerts_state CHECK (state IN ('alarm', 'resolved')),
    CONSTRAINT budget_alerts_because CHECK (resolved_because IN ('figure', 'budget')),
    CONSTRAINT budget_alerts_period CHECK (period_end > period_start)
);
CREATE INDEX budget_alerts_of_org ON analytics.budget_alerts (org_id, judged_at, alert_id);
"""


def upgrade() -> None:
    # Without parameters the driver leaves percent signs alone.
    op.get_bind().exec_driver_sql(_TABLES, execution_options={"no_parameters": True})
