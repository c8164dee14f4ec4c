-- name: add
-- Append an adjustment of an org, and record in the audit log who did. Idempotent by (org_id, idempotency_key) if the
-- adjustment has an idempotency key: no row if the org has used the key.
WITH added AS (
    INSERT INTO analytics.adjustments (org_id, kind, amount, period_start, period_end, reason, recorded_by,
        idempotency_key)
    VALUES (%(org_id)s, %(kind)s, %(amount)s, %(period_start)s, %(period_end)s, %(reason)s, %(recorded_by)s,
        %(idempotency_key)s)
    ON CONFLICT (org_id, idempotency_key) DO NOTHING
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT now(), recorded_by, 'adjustments.add', org_id, 'done', json_build_object('id', id, 'kind', kind,
        'amount', amount::text, 'periodStart', period_start, 'periodEnd', period_end, 'reason', reason)
    FROM added
)
SELECT added.*, NULL::bigint AS retracted_by FROM added

-- name: retract
-- Append a row that retracts an adjustment, and record in the audit log who did. No row if the adjustment is retracted
-- already, or the org has used the idempotency key. The trigger copies the period of the adjustment into the row.
WITH added AS (
    INSERT INTO analytics.adjustments (org_id, kind, period_start, period_end, reason, recorded_by, retracts,
        idempotency_key)
    SELECT org_id, kind, period_start, period_end, %(reason)s, %(recorded_by)s, id, %(idempotency_key)s
    FROM analytics.adjustments WHERE id = %(id)s
    ON CONFLICT DO NOTHING
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT now(), recorded_by, 'adjustments.retract', org_id, 'done',
        json_build_object('id', retracts, 'retraction', id, 'reason', reason)
    FROM added
)
SELECT added.*, NULL::bigint AS retracted_by FROM added

-- name: by_idempotency_key
-- The row that an org made with an idempotency key.
SELECT {columns}, (SELECT r.id FROM analytics.adjustments AS r WHERE r.retracts = a.id) AS retracted_by
FROM analytics.adjustments AS a WHERE org_id = %(org_id)s AND idempotency_key = %(idempotency_key)s

-- name: one
-- One row, of any org or of the named one.
SELECT {columns}, (SELECT r.id FROM analytics.adjustments AS r WHERE r.retracts = a.id) AS retracted_by
FROM analytics.adjustments AS a
WHERE id = %(id)s AND (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s)

-- name: page
-- Rows in the order in which they were recorded: of an org or of all, by the instant they belong to.
SELECT {columns}, (SELECT r.id FROM analytics.adjustments AS r WHERE r.retracts = a.id) AS retracted_by
FROM analytics.adjustments AS a
WHERE id > %(after)s AND (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s)
    AND (%(start)s::timestamptz IS NULL OR period_start >= %(start)s)
    AND (%(end)s::timestamptz IS NULL OR period_start < %(end)s)
    AND (%(retracted)s::boolean OR id IN (SELECT e.id FROM analytics.effective_adjustments AS e))
ORDER BY id
LIMIT %(limit)s

-- name: total
-- What the adjustments of an org add to what it pays, and how many they are: those whose period begins in a range. The
-- amount is a whole number of 10^-20 dollars.
SELECT trim_scale(COALESCE(sum(amount), 0) * 100000000000000000000), count(*)
FROM analytics.effective_adjustments
WHERE org_id = %(org_id)s AND period_start >= %(adjusted_from)s AND period_start < %(adjusted_to)s

-- name: lines
-- The adjustments of an org whose period begins in a range, for the lines of a file, in the order of their periods.
-- `edges` are the edges of all buckets that the range touches.
SELECT (%(edges)s::timestamptz[])[width_bucket(period_start, %(edges)s::timestamptz[])] AS bucket, id, kind, amount, reason, period_start, period_end,
    recorded_at
FROM analytics.effective_adjustments
WHERE org_id = %(org_id)s AND period_start >= %(adjusted_from)s AND period_start < %(adjusted_to)s
