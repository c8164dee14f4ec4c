-- name: turn
-- Wait for others who change the webhooks of the same org, so that their number can be bounded.
SELECT pg_advisory_xact_lock(hashtextextended('spendstream webhooks ' || %(org_id)s::text, 0))

-- name: count
-- How many webhooks an org has.
SELECT count(*) FROM analytics.webhooks WHERE org_id = %(org_id)s

-- name: create
-- Keep a new webhook, and record in the audit log who made it. Idempotent by (org_id, idempotency_key) if the webhook
-- has an idempotency key: no row if the org has used the key.
WITH added AS (
    INSERT INTO analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed, enabled, disabled_because,
        created_by, created_at, updated_at, idempotency_key)
    VALUES (%(webhook_id)s, %(org_id)s, %(name)s, %(format)s, %(shown_url)s, %(sealed)s, %(enabled)s,
        CASE WHEN NOT %(enabled)s THEN 'asked' END, %(actor)s, %(now)s, %(now)s, %(idempotency_key)s)
    ON CONFLICT (org_id, idempotency_key) DO NOTHING
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'webhooks.create', org_id, 'done',
        json_build_object('webhookId', webhook_id, 'url', shown_url)
    FROM added
)
SELECT added.* FROM added

-- name: change
-- Change a webhook, and record in the audit log who did. No row if the org has no such webhook.
WITH changed AS (
    UPDATE analytics.webhooks SET name = %(name)s, format = %(format)s, shown_url = %(shown_url)s,
        sealed = %(sealed)s, enabled = %(enabled)s, disabled_because = CASE WHEN NOT %(enabled)s THEN 'asked' END,
        failing_since = NULL, updated_at = %(now)s
    WHERE webhook_id = %(webhook_id)s AND org_id = %(org_id)s
    RETURNING {columns}
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'webhooks.change', org_id, 'done',
        json_build_object('webhookId', webhook_id, 'url', shown_url, 'enabled', enabled)
    FROM changed
)
SELECT changed.* FROM changed

-- name: remove
-- Delete a webhook with its deliveries, and record in the audit log who did. No row if the org has no such webhook.
WITH removed AS (
    DELETE FROM analytics.webhooks WHERE webhook_id = %(webhook_id)s AND org_id = %(org_id)s
    RETURNING webhook_id, org_id
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT %(now)s, %(actor)s, 'webhooks.remove', org_id, 'done', json_build_object('webhookId', webhook_id)
    FROM removed
)
SELECT webhook_id FROM removed

-- name: one
-- One webhook of one org. The org is part of the condition, so the id of another org's webhook finds no row.
SELECT {columns} FROM analytics.webhooks WHERE org_id = %(org_id)s AND webhook_id = %(webhook_id)s

-- name: by_idempotency_key
-- The webhook that an org made with an idempotency key.
SELECT {columns} FROM analytics.webhooks WHERE org_id = %(org_id)s AND idempotency_key = %(idempotency_key)s

-- name: page
-- An org's webhooks by id.
SELECT {columns} FROM analytics.webhooks
WHERE org_id = %(org_id)s AND (%(after)s::uuid IS NULL OR webhook_id > %(after)s)
ORDER BY webhook_id
LIMIT %(limit)s

-- name: ids
-- All webhooks.
SELECT webhook_id FROM analytics.webhooks ORDER BY webhook_id

-- name: lock_sealed
-- The encrypted address and secrets of a webhook, which nobody changes until this transaction ends.
SELECT sealed FROM analytics.webhooks WHERE webhook_id = %(webhook_id)s FOR UPDATE

-- name: reseal
-- Keep the address and the secrets of a webhook as they are, encrypted anew.
UPDATE analytics.webhooks SET sealed = %(sealed)s WHERE webhook_id = %(webhook_id)s

-- name: resealed
-- Record in the audit log who had webhooks encrypted anew, and how many.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
VALUES (now(), %(actor)s, 'webhooks.reseal', NULL, 'done', json_build_object('webhooks', %(webhooks)s::int))

-- name: enabled
-- The webhooks of some orgs that are to be told.
SELECT webhook_id, org_id, format FROM analytics.webhooks WHERE org_id = ANY(%(org_ids)s::uuid[]) AND enabled
ORDER BY webhook_id

-- name: queue
-- Put a delivery into the outbox. Idempotent by (alert_id, kind, webhook_id): no row if there is such a delivery.
INSERT INTO analytics.webhook_deliveries (delivery_id, org_id, webhook_id, alert_id, kind, body, status, attempts,
    next_at, created_at)
VALUES (%(delivery_id)s, %(org_id)s, %(webhook_id)s, %(alert_id)s, %(kind)s, %(body)s, 'pending', 0,
    clock_timestamp(), clock_timestamp())
ON CONFLICT (alert_id, kind, webhook_id) DO NOTHING
RETURNING {delivery_columns}

-- name: deliveries_page
-- A webhook's deliveries, the newest first.
SELECT {delivery_columns} FROM analytics.webhook_deliveries
WHERE org_id = %(org_id)s AND webhook_id = %(webhook_id)s
    AND (%(before)s::timestamptz IS NULL OR (created_at, delivery_id) < (%(before)s::timestamptz, %(delivery_id)s::uuid))
ORDER BY created_at DESC, delivery_id DESC
LIMIT %(limit)s

-- name: of_alerts
-- The deliveries of some alerts.
SELECT {delivery_columns} FROM analytics.webhook_deliveries
WHERE alert_id = ANY(%(alert_ids)s::uuid[]) ORDER BY created_at, delivery_id

-- name: of_notices
-- The deliveries of some notices.
SELECT {delivery_columns} FROM analytics.webhook_deliveries
WHERE notice_id = ANY(%(notice_ids)s::uuid[]) ORDER BY created_at, delivery_id

-- name: retry
-- Send a delivery again, from the first attempt on, unless an attempt is due anyway. No row if the webhook has no such
-- delivery.
UPDATE analytics.webhook_deliveries SET status = 'pending', attempts = 0, next_at = clock_timestamp(),
    delivered_at = NULL
WHERE org_id = %(org_id)s AND webhook_id = %(webhook_id)s AND delivery_id = %(delivery_id)s
RETURNING {delivery_columns}

-- name: waiting
-- How many deliveries of an org's webhook wait to be sent.
SELECT count(*) FROM analytics.webhook_deliveries WHERE webhook_id = %(webhook_id)s AND status = 'pending'

-- name: claim
-- Take a due delivery of each of some webhooks that are enabled, until the lease runs out. Those of webhooks that
-- fail or are slow are taken apart, so that they do not hold up the others. The orgs take turns: `place` is which
-- of the places of its org a delivery would have, after those that are in work (`busy_orgs` has an org for each).
WITH waiting AS (
    SELECT d.delivery_id, d.next_at, row_number() OVER (PARTITION BY w.org_id ORDER BY d.next_at)
        + (SELECT count(*) FROM unnest(%(busy_orgs)s::uuid[]) AS b WHERE b = w.org_id) AS place
    FROM analytics.webhooks AS w
    CROSS JOIN LATERAL (
        SELECT o.delivery_id, o.next_at FROM analytics.webhook_deliveries AS o
        WHERE o.webhook_id = w.webhook_id AND o.status = 'pending' AND o.next_at <= clock_timestamp()
            AND (o.lease_until IS NULL OR o.lease_until < clock_timestamp())
        ORDER BY o.next_at LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS d
    WHERE w.enabled AND (w.failing_since IS NOT NULL OR w.webhook_id = ANY(%(slow)s::uuid[])) = %(apart)s
        AND w.webhook_id <> ALL(%(busy)s::uuid[])
), due AS (
    SELECT delivery_id FROM waiting WHERE place <= %(org_max)s ORDER BY place, next_at LIMIT %(limit)s
)
UPDATE analytics.webhook_deliveries AS d
SET claim = %(claim)s, lease_until = clock_timestamp() + %(lease)s::interval, attempts = attempts + 1,
    last_attempt_at = clock_timestamp()
FROM due, analytics.webhooks AS w
WHERE d.delivery_id = due.delivery_id AND w.webhook_id = d.webhook_id
RETURNING d.delivery_id, d.webhook_id, d.org_id, d.body, d.attempts, w.sealed

-- name: delivered
-- A delivery has arrived. No row if another process has taken the delivery meanwhile.
WITH done AS (
    UPDATE analytics.webhook_deliveries SET status = 'delivered', delivered_at = clock_timestamp(), claim = NULL,
        lease_until = NULL, last_status = %(last_status)s, last_error = NULL
    WHERE delivery_id = %(delivery_id)s AND claim = %(claim)s
    RETURNING webhook_id
)
UPDATE analytics.webhooks AS w SET failing_since = NULL, last_success_at = clock_timestamp()
FROM done WHERE w.webhook_id = done.webhook_id

-- name: not_delivered
-- An attempt has failed. The next one is after `again`, or there is none if `again` is null. If somebody asked for
-- another attempt meanwhile (`retry` sets the attempts to 0), this one stays due.
WITH done AS (
    UPDATE analytics.webhook_deliveries
    SET status = CASE WHEN %(again)s::interval IS NULL AND attempts = %(attempts)s THEN 'failed' ELSE 'pending' END,
        next_at = CASE WHEN attempts = %(attempts)s THEN COALESCE(clock_timestamp() + %(again)s::interval, next_at)
            ELSE next_at END,
        claim = NULL, lease_until = NULL,
        last_status = %(last_status)s, last_error = %(last_error)s
    WHERE delivery_id = %(delivery_id)s AND claim = %(claim)s
    RETURNING webhook_id
)
UPDATE analytics.webhooks AS w SET failing_since = COALESCE(failing_since, clock_timestamp())
FROM done WHERE w.webhook_id = done.webhook_id

-- name: gone
-- The endpoint of a webhook is gone: nothing more is sent there.
WITH gone AS (
    UPDATE analytics.webhooks SET enabled = false, disabled_because = 'gone' WHERE webhook_id = %(webhook_id)s AND enabled
)
UPDATE analytics.webhook_deliveries SET status = 'failed', claim = NULL, lease_until = NULL,
    last_error = 'the endpoint is gone (410)'
WHERE webhook_id = %(webhook_id)s AND status = 'pending'

-- name: outbox
-- What waits to be sent to webhooks that are enabled: how many deliveries, for how long the oldest one. And how many
-- webhooks fail or are gone.
SELECT (SELECT count(*) FROM analytics.webhook_deliveries AS d JOIN analytics.webhooks AS w USING (webhook_id)
        WHERE d.status = 'pending' AND w.enabled),
    (SELECT COALESCE(extract(epoch FROM clock_timestamp() - min(d.created_at)), 0)::float8
        FROM analytics.webhook_deliveries AS d JOIN analytics.webhooks AS w USING (webhook_id)
        WHERE d.status = 'pending' AND w.enabled),
    (SELECT count(*) FROM analytics.webhooks WHERE failing_since IS NOT NULL OR disabled_because = 'gone')

-- name: forget
-- Delete old deliveries that have ended or whose webhook is disabled, some at a time.
DELETE FROM analytics.webhook_deliveries WHERE delivery_id IN (
    SELECT d.delivery_id FROM analytics.webhook_deliveries AS d JOIN analytics.webhooks AS w USING (webhook_id)
    WHERE d.created_at < clock_timestamp() - %(kept)s::interval AND (d.status <> 'pending' OR NOT w.enabled)
    LIMIT 1000)
