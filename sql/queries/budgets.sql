-- name: turn
-- Wait for others who change the budgets of the same org, so that their number can be bounded.
SELECT pg_advisory_xact_lock(hashtextextended('spendstream budgets ' || %(org_id)s::text, 0))

-- name: count
-- How many budgets an org has.
SELECT count(*) FROM analytics.budgets WHERE org_id = %(org_id)s AND deleted_at IS NULL

-- name: create
-- Keep a new budget, and record in the audit log who made it. Idempotent by (org_id, idempotency_key) if the budget
-- has an idempotency key: no row if the org has used the key.
WITH added AS (
    INSERT INTO analytics.budgets (budget_id, org_id, version, definition, name, model_id, dimension, value, metric, period,
        time_zone, amount, thresholds, created_by, created_at, updated_at, judged_from, idempotency_key)
    VALUES (%(budget_id)s, %(org_id)s, 1, 1, %(name)s, %(model_id)s, %(dimension)s, %(value)s, %(metric)s, %(period)s,
        %(time_zone)s, %(amount)s, %(thresholds)s, %(actor)s, %(now)s, %(now)s, %(now)s, %(idempotency_key)s)
    ON CONFLICT (org_id, idempotency_key) DO NOTHING
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'budgets.create', org_id, 'done', json_build_object('budgetId', budget_id,
        'name', name, 'amount', amount::text)
    FROM added
)
SELECT added.* FROM added

-- name: change
-- Give a budget another plan, and record in the audit log who did. Where what it counts has changed, it has another
-- definition, and its periods are judged from now on, so that the periods before keep their alerts. No row if the org
-- has no such budget.
WITH changed AS (
    UPDATE analytics.budgets AS b SET version = version + 1, name = %(name)s, model_id = %(model_id)s,
        dimension = %(dimension)s, value = %(value)s, metric = %(metric)s, period = %(period)s,
        time_zone = %(time_zone)s, amount = %(amount)s, thresholds = %(thresholds)s, updated_at = %(now)s,
        (definition, judged_from) = (
            SELECT definition + another::integer, CASE WHEN another THEN %(now)s ELSE judged_from END
            FROM (SELECT (model_id, dimension, value, metric, period, time_zone) IS DISTINCT FROM
                (%(model_id)s::uuid, %(dimension)s::text, %(value)s::text, %(metric)s::text, %(period)s::text,
                %(time_zone)s::text) AS another) AS compared)
    WHERE budget_id = %(budget_id)s AND org_id = %(org_id)s AND deleted_at IS NULL
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'budgets.change', org_id, 'done', json_build_object('budgetId', budget_id,
        'version', version, 'name', name, 'amount', amount::text)
    FROM changed
)
SELECT changed.* FROM changed

-- name: remove
-- End a budget, and record in the audit log who did. Its alerts stay. No row if the org has no such budget.
WITH removed AS (
    UPDATE analytics.budgets SET version = version + 1, deleted_at = %(now)s, updated_at = %(now)s
    WHERE budget_id = %(budget_id)s AND org_id = %(org_id)s AND deleted_at IS NULL
    RETURNING budget_id, org_id, version
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'budgets.remove', org_id, 'done',
        json_build_object('budgetId', budget_id, 'version', version)
    FROM removed
)
SELECT budget_id FROM removed

-- name: one
-- One budget of one org. The org is part of the condition, so the id of another org's budget finds no row.
SELECT {columns} FROM analytics.budgets AS b
WHERE org_id = %(org_id)s AND budget_id = %(budget_id)s AND deleted_at IS NULL

-- name: by_idempotency_key
-- The budget that an org made with an idempotency key; no row once the budget is removed.
SELECT {columns} FROM analytics.budgets AS b
WHERE org_id = %(org_id)s AND idempotency_key = %(idempotency_key)s AND deleted_at IS NULL

-- name: page
-- An org's budgets by name, whatever its case, and those of one name by id.
SELECT {columns} FROM analytics.budgets AS b
WHERE org_id = %(org_id)s AND deleted_at IS NULL
    AND (%(after)s::uuid IS NULL OR (lower(name), budget_id) > (lower(%(after_name)s::text), %(after)s::uuid))
ORDER BY lower(name), budget_id
LIMIT %(limit)s

-- name: alerts_of_budgets
-- The alerts of some budgets in the periods that end after an instant.
SELECT {alert_columns} FROM analytics.budget_alerts AS a
WHERE budget_id = ANY(%(budget_ids)s::uuid[]) AND period_end > %(ends_after)s

-- name: alerts_page
-- An org's alerts, or those of one budget, the newest first.
SELECT {alert_columns}, b.name AS budget_name
FROM analytics.budget_alerts AS a JOIN analytics.budgets AS b USING (budget_id)
WHERE a.org_id = %(org_id)s
    AND (%(before)s::timestamptz IS NULL OR (judged_at, alert_id) < (%(before)s::timestamptz, %(alert_id)s::uuid))
ORDER BY judged_at DESC, alert_id DESC
LIMIT %(limit)s
