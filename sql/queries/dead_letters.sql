-- name: chosen
-- The condition on the letters that a command chooses. A filter that is null lets every letter through.
(%(stream)s::text IS NULL OR d.stream = %(stream)s)
AND (%(partition)s::integer IS NULL OR d.partition = %(partition)s)
AND (%(reason)s::text IS NULL OR d.reason = %(reason)s)
AND (%(offset)s::bigint IS NULL OR %(offset)s >= d."offset" AND %(offset)s < d."offset" + d.records)
AND (%(start)s::timestamptz IS NULL OR d.rejected_at >= %(start)s)
AND (%(end)s::timestamptz IS NULL OR d.rejected_at < %(end)s)

-- name: columns
-- The columns of a letter and of its last replay.
d.stream, d.partition, d."offset", d.position, d.reason, d.faults, d.body, d.rejected_at,
d.records, d.body_bytes, d.body_sha256, COALESCE(d.broker_time, d.rejected_at), r.requested_at, r.settled_at, r.outcome

-- name: newest
-- The chosen letters, the newest first.
SELECT {columns}
FROM analytics.dead_letters AS d LEFT JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE {chosen}
ORDER BY d.rejected_at DESC, d.partition, d."offset" DESC
LIMIT %(limit)s

-- name: uncounted
-- The chosen letters that no replay has counted and that wait for no replay, in the order of their streams.
SELECT {columns}
FROM analytics.dead_letters AS d LEFT JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE {chosen}
    AND (r.requested_at IS NULL OR r.settled_at IS NOT NULL AND r.outcome NOT IN ('accepted', 'duplicate'))
ORDER BY d.partition, d."offset", d.position

-- name: waiting
-- The number of chosen letters that wait for a replay.
SELECT count(*)
FROM analytics.dead_letters AS d JOIN analytics.replays AS r USING (partition, "offset", position)
WHERE r.settled_at IS NULL AND {chosen}

-- name: count_by_reason
-- The number of rejected records, by reason.
SELECT d.reason, sum(d.records)::bigint FROM analytics.dead_letters AS d WHERE {chosen} GROUP BY d.reason ORDER BY d.reason

-- name: count_to_purge
-- The number of letters that a purge would delete.
SELECT count(*) FROM analytics.dead_letters AS d WHERE {chosen} AND {purged}

-- name: purge
-- Delete letters. The ids of the events that replays have counted stay in analytics.replays.
DELETE FROM analytics.dead_letters AS d WHERE {chosen} AND {purged}

-- name: purged
-- The condition on the letters that a purge deletes. Letters that wait for a replay stay. With
-- ``replayed``, only letters that a replay has counted are deleted.
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
-- Record who had letters counted or deleted, in the transaction that does so.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
VALUES (now(), %(actor)s, %(action)s, %(org)s, 'accepted', %(detail)s)
