"""Adjustments: credits, refunds and corrections of an org, which are not usage.

``analytics.adjustments`` is append-only, as the price book is: a trigger makes every UPDATE, DELETE and
TRUNCATE fail. The view ``analytics.effective_adjustments`` has those that nothing retracts. The table is new
and empty, so the migration takes no time.
"""

from alembic import op

revision = "0017"
down_revision = "0016"

_TABLE = """
CREATE TABLE analytics.adjustments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id uuid NOT NULL,
    kind text NOT NULL,
    amount numeric,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    reason text NOT NULL,
    recorded_by text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    retracts bigint REFERENCES analytics.adjustments (id),
    idempotency_key text,
    CONSTRAINT adjustments_retracts UNIQUE (retracts),
    CONSTRAINT adjustments_idempotency UNIQUE (org_id, idempotency_key),
    CONSTRAINT adjustments_amount_or_retracts CHECK ((amount IS NULL) <> (retracts IS NULL)),
    CONSTRAINT adjustments_retracts_earlier CHECK (retracts < id),
    CONSTRAINT adjustments_kind CHECK (kind IN ('credit', 'refund', 'correction')),
    -- The bounds also turn NaN and Infinity away.
    CONSTRAINT adjustments_amount CHECK (
        amount <> 0 AND abs(amount) <= 1000000000 AND amount = round(amount, 12)
        AND (kind = 'correction' OR amount < 0)),
    CONSTRAINT adjustments_hours CHECK (
        extract(epoch FROM period_start) % 3600 = 0 AND extract(epoch FROM period_end) % 3600 = 0
        AND period_end > period_start),
    CONSTRAINT adjustments_texts CHECK (length(reason) BETWEEN 1 AND 1000 AND recorded_by <> '')
);
CREATE INDEX adjustments_of_org ON analytics.adjustments (org_id, period_start);

CREATE VIEW analytics.effective_adjustments AS
SELECT a.id, a.org_id, a.kind, a.amount, a.period_start, a.period_end, a.reason, a.recorded_by, a.recorded_at
FROM analytics.adjustments AS a
WHERE a.retracts IS NULL AND NOT EXISTS (SELECT FROM analytics.adjustments AS r WHERE r.retracts = a.id);
COMMENT ON VIEW analytics.effective_adjustments IS
    'Credits, refunds and corrections that nothing retracts. amount is added to what the org pays, in exact US
dollars; credits and refunds are negative. An adjustment belongs to the instant of its period_start.';
"""

_TRIGGERS = """
CREATE FUNCTION analytics.adjustments_refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION 'analytics.adjustments is append-only: append a row that retracts instead'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER adjustments_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON analytics.adjustments
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.adjustments_refuse_change();

-- A retraction has the org, kind and period of the row that it retracts, so that a list shows it, too.
CREATE FUNCTION analytics.adjustments_retract() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    target analytics.adjustments;
BEGIN
    SELECT * INTO target FROM analytics.adjustments WHERE id = NEW.retracts;
    IF NOT FOUND OR target.retracts IS NOT NULL THEN
        RAISE EXCEPTION 'row % of analytics.adjustments is no adjustment', NEW.retracts
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    NEW.org_id := target.org_id;
    NEW.kind := target.kind;
    NEW.period_start := target.period_start;
    NEW.period_end := target.period_end;
    RETURN NEW;
END $$;
CREATE TRIGGER adjustments_retract BEFORE INSERT ON analytics.adjustments
    FOR EACH ROW WHEN (NEW.retracts IS NOT NULL) EXECUTE FUNCTION analytics.adjustments_retract();
"""


def upgrade() -> None:
    for statement in (_TABLE, _TRIGGERS):
        # Without parameters the driver leaves percent signs alone.
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
