-- name: chosen
-- Which letters a command means: each filter counts only where it is given.
(%(stream)s::text IS NULL OR d.stream = %(stream)s)
AND (%(partition)s::integer IS NULL OR d.partition = %(partition)s)
AND (%(reason)s::text IS NULL OR d.reason = %(reason)s)
AND (%(offset)s::bigint IS NULL OR %(offset)s >= d."offset" AND %(offset)s < d."offset" + d.records)
AND (%(start)s::timestamptz IS NULL OR d.rejected_at >= %(start)s)
AND (%(end)s::timestamptz IS NULL OR d.rejected_at < %(end)s)

-- name: columns
-- A letter with what has become of it.
d.stream, d.partition, d."offset", d.position, d.reason, d.faults, d.body, d.rejected_at,
d.records, d.body_bytes, d.body_sha256, COALESCE(d.broker_time, d.rejected_at), r.requested_at, r.settled_at, r.outcome

-- name: newest
-- Letters, those refused last first.
SELECT {columns}
FROM analytics.dead_letters AS d LEFT JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE {chosen}
ORDER BY d.rejected_at DESC, d.partition, d."offset" DESC
LIMIT %(limit)s

-- name: uncounted
-- Letters that no replay has taken out of the refused and that wait for none, in the order of their streams.
SELECT {columns}
FROM analytics.dead_letters AS d LEFT JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE {chosen}
    AND (r.requested_at IS NULL OR r.settled_at IS NOT NULL AND r.outcome NOT IN ('accepted', 'duplicate'))
ORDER BY d.partition, d."offset", d.position

-- name: waiting
-- How many of the letters wait to be replayed.
SELECT count(*)
FROM analytics.dead_letters AS d JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE r.settled_at IS NULL AND {chosen}

-- name: count_by_reason
-- How many records were refused, and why.
SELECT d.reason, sum(d.records)::bigint FROM analytics.dead_letters AS d WHERE {chosen} GROUP BY d.reason ORDER BY d.reason

-- name: count_to_purge
-- How many letters a purge would delete.
SELECT count(*) FROM analytics.dead_letters AS d WHERE {chosen} AND {purged}

-- name: purge
-- Delete letters. What replays have counted stays known by its ids.
DELETE FROM analytics.dead_letters AS d WHERE {chosen} AND {purged}

-- name: purged
-- Not those that wait to be replayed; with ``replayed`` only those that a replay has settled for good.
NOT EXISTS (
    SELECT FROM analytics.replays AS r
    WHERE (r.partition, r."offset", r.position) = (d.partition, d."offset", d.position)
        AND r.settled_at IS NULL
)
AND (NOT %(replayed)s OR EXISTS (
    SELECT FROM analytics.replays AS r
    WHERE (r.partition, r."offset", r.position) = (d.partition, d."offset", d.position)
        AND r.outcome IN ('accepted', 'duplicate')
))

-- name: audit
-- Who had letters counted or deleted, in the transaction that asks for it.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
VALUES (now(), %(actor)s, %(action)s, %(org)s, 'accepted', %(detail)s)
