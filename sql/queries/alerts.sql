-- name: marks
-- The orgs that have budgets: how often these were changed, how many there are, how far each partition has come or when
-- its rows were repaired (a repair raises the epoch, and no flush of the org need follow), what else can have changed
-- the org's older rows, the newest event, and the watermark of the slowest partition; times in minutes since 1970.
-- Every change of a budget raises the sum, because versions only grow and no row is deleted.
WITH b AS (
    SELECT org_id, sum(version)::bigint AS changes, count(*) FILTER (WHERE deleted_at IS NULL) AS budgets
    FROM analytics.budgets GROUP BY org_id
)
SELECT b.org_id, b.changes, b.budgets,
    COALESCE(string_agg(o.partition || '=' || extract(epoch FROM o.last_rollup_at) || '/' || COALESCE(p.epoch, 0),
        ',' ORDER BY o.partition), ''),
    COALESCE(string_agg(o.partition || '=' || p.epoch || '/' || p.replays, ',' ORDER BY o.partition), ''),
    floor(extract(epoch FROM max(o.last_event_at)) / 60)::bigint,
    CASE WHEN bool_and(w.watermark IS NOT NULL) THEN floor(extract(epoch FROM min(w.watermark)) / 60)::bigint END
FROM b
LEFT JOIN analytics.orgs_seen AS o USING (org_id)
LEFT JOIN analytics.partitions AS p USING (partition)
LEFT JOIN analytics.partition_watermarks AS w USING (partition)
GROUP BY b.org_id, b.changes, b.budgets

-- name: alone
-- One process of the database is enough for a look. Others would cost more than they save, again in each look.
SET LOCAL max_parallel_workers_per_gather = 0

-- name: labels
-- A number for each org that changes when a model of the org gets another provider or name.
SELECT org_id, sum(hashtextextended(provider || chr(31) || model_name, hashtextextended(model_id::text, 0)))::text
FROM analytics.model_labels WHERE org_id = ANY(%(org_ids)s::uuid[]) GROUP BY org_id

-- name: budgets
-- The budgets of some orgs.
SELECT {columns} FROM analytics.budgets AS b
WHERE org_id = ANY(%(org_ids)s::uuid[]) AND deleted_at IS NULL
ORDER BY org_id, budget_id

-- name: hold
-- Keep the plans of some budgets as they are until this transaction ends. In its snapshot a budget that was changed
-- since fails the transaction, so that nothing is said by a plan that holds no more.
SELECT budget_id FROM analytics.budgets WHERE budget_id = ANY(%(budget_ids)s::uuid[]) ORDER BY budget_id FOR SHARE

-- name: raise
-- Commit an alert. Idempotent by (budget_id, definition, period_start, basis, level): no row if there is such an alert.
INSERT INTO analytics.budget_alerts (alert_id, org_id, budget_id, definition, model_id, dimension, value, metric,
    period, time_zone, period_start, basis, level, period_end, state, budget_version, price_version, threshold, amount,
    spent, forecast, unpriced, watermark, final, crossed_at, judged_at)
VALUES (%(alert_id)s, %(org_id)s, %(budget_id)s, %(definition)s, %(model_id)s, %(dimension)s, %(value)s, %(metric)s,
    %(period)s, %(time_zone)s, %(period_start)s, %(basis)s, %(level)s, %(period_end)s, 'alarm', %(budget_version)s,
    %(price_version)s, %(threshold)s, %(amount)s, %(spent)s, %(forecast)s, %(unpriced)s, %(watermark)s, %(final)s,
    %(crossed_at)s, clock_timestamp())
ON CONFLICT (budget_id, definition, period_start, basis, level) DO NOTHING
RETURNING judged_at

-- name: resolve
-- An alert is no longer in alarm: the figure is below the level, or the budget has no such level. No row if another
-- process has said so.
UPDATE analytics.budget_alerts SET state = 'resolved', resolved_at = clock_timestamp(), resolved_because = %(because)s,
    resolved_spent = %(spent)s, resolved_watermark = %(watermark)s
WHERE alert_id = %(alert_id)s AND state = 'alarm'
RETURNING resolved_at

-- name: again
-- A resolved alert is in alarm again. Nobody is told a second time.
UPDATE analytics.budget_alerts SET state = 'alarm' WHERE alert_id = %(alert_id)s AND state = 'resolved'

-- name: close
-- All periods of a budget that end by an instant are final, and are not judged again. Keeps the later instant.
UPDATE analytics.budgets SET closed_to = %(closed_to)s
WHERE budget_id = %(budget_id)s AND version = %(version)s AND (closed_to IS NULL OR closed_to < %(closed_to)s)

-- name: names
-- The names of orgs.
SELECT org_id, name FROM analytics.names WHERE org_id = ANY(%(org_ids)s::uuid[]) AND dimension = '' AND value = ''

-- name: shown
-- An alert as this transaction has left it, with what its messages say of the budget.
SELECT {alert_columns}, a.org_id, b.name AS budget_name
FROM analytics.budget_alerts AS a JOIN analytics.budgets AS b USING (budget_id)
WHERE alert_id = %(alert_id)s
