-- name: one
-- What an org asks for.
SELECT {columns} FROM analytics.notices WHERE org_id = %(org_id)s

-- name: set
-- Keep what an org asks for, and record in the audit log who did. What is switched on, or gets another time zone, is
-- looked at from now on; else it goes on from where it was.
WITH kept AS (
    INSERT INTO analytics.notices AS n (org_id, version, unusual_enabled, unusual_factor, unusual_minimum,
        unusual_since, summary_enabled, summary_zone, summary_since, set_by, updated_at)
    VALUES (%(org_id)s, 1, %(unusual_enabled)s, %(unusual_factor)s, %(unusual_minimum)s, %(now)s,
        %(summary_enabled)s, %(summary_zone)s, %(now)s, %(actor)s, %(now)s)
    ON CONFLICT (org_id) DO UPDATE SET version = n.version + 1,
        unusual_since = CASE WHEN n.unusual_enabled THEN n.unusual_since ELSE excluded.unusual_since END,
        unusual_to = CASE WHEN n.unusual_enabled THEN n.unusual_to END,
        summary_since = CASE WHEN n.summary_enabled AND n.summary_zone = excluded.summary_zone
            THEN n.summary_since ELSE excluded.summary_since END,
        summary_to = CASE WHEN n.summary_enabled AND n.summary_zone = excluded.summary_zone THEN n.summary_to END,
        unusual_enabled = excluded.unusual_enabled, unusual_factor = excluded.unusual_factor,
        unusual_minimum = excluded.unusual_minimum, summary_enabled = excluded.summary_enabled,
        summary_zone = excluded.summary_zone, set_by = excluded.set_by, updated_at = excluded.updated_at
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'notices.set', org_id, 'done', json_build_object('version', version,
        'unusualSpend', unusual_enabled, 'dailySummary', summary_enabled)
    FROM kept
)
SELECT {columns} FROM kept

-- name: asked_for
-- The orgs that ask for notices: how often they have said so, and the time zone of their summaries, if any.
SELECT org_id, version, CASE WHEN summary_enabled THEN summary_zone END FROM analytics.notices WHERE unusual_enabled OR summary_enabled ORDER BY org_id

-- name: hold
-- Keep what an org asks for as it is until this transaction ends, and let one process at a time look at the org. In a
-- snapshot that is older than the last change, the transaction fails. No row: the org asks for nothing any more.
SELECT {columns} FROM analytics.notices WHERE org_id = %(org_id)s AND (unusual_enabled OR summary_enabled) FOR UPDATE

-- name: first_event
-- When the org's first event happened; null for an org never seen.
SELECT min(first_event_at) FROM analytics.models_seen WHERE org_id = %(org_id)s

-- name: sent_since
-- The periods of a kind that an org was told about, from an instant on.
SELECT period FROM analytics.notices_sent
WHERE org_id = %(org_id)s AND kind = %(kind)s AND period_end > %(since)s

-- name: add
-- Commit a notice. Idempotent by (org_id, kind, period): no row if there is such a notice.
INSERT INTO analytics.notices_sent (notice_id, org_id, kind, period, period_start, period_end, watermark, final,
    price_version, figures, noticed_at)
VALUES (%(notice_id)s, %(org_id)s, %(kind)s, %(period)s, %(period_start)s, %(period_end)s, %(watermark)s, %(final)s,
    %(price_version)s, %(figures)s, clock_timestamp())
ON CONFLICT (org_id, kind, period) DO NOTHING
RETURNING {sent_columns}

-- name: queue
-- Put a delivery of a notice into the outbox. Idempotent by (notice_id, webhook_id).
INSERT INTO analytics.webhook_deliveries (delivery_id, org_id, webhook_id, notice_id, kind, body, status, attempts,
    next_at, created_at)
VALUES (%(delivery_id)s, %(org_id)s, %(webhook_id)s, %(notice_id)s, %(kind)s, %(body)s, 'pending', 0,
    clock_timestamp(), clock_timestamp())
ON CONFLICT (notice_id, webhook_id) DO NOTHING

-- name: come_to
-- Remember how far an org's hours and days were looked at.
UPDATE analytics.notices SET unusual_to = %(unusual_to)s, summary_to = %(summary_to)s WHERE org_id = %(org_id)s

-- name: sent_page
-- An org's notices, the newest first.
SELECT {sent_columns} FROM analytics.notices_sent
WHERE org_id = %(org_id)s
    AND (%(before)s::timestamptz IS NULL OR (noticed_at, notice_id) < (%(before)s::timestamptz, %(notice_id)s::uuid))
ORDER BY noticed_at DESC, notice_id DESC
LIMIT %(limit)s

-- name: forget
-- Delete notices that are long past, some at a time, with what is left of their deliveries.
DELETE FROM analytics.notices_sent WHERE notice_id IN (
    SELECT notice_id FROM analytics.notices_sent WHERE noticed_at < clock_timestamp() - %(kept)s::interval LIMIT 1000)
