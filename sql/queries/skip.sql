-- name: standing
-- How far the stream of a partition is committed. The row is locked: no flush and no claim meanwhile.
SELECT stream, partition, committed_offset FROM analytics.partitions
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(partition)s::int IS NULL OR partition = %(partition)s)
ORDER BY partition FOR UPDATE

-- name: skip
-- Have one record made a dead letter unread; idempotent by (stream, "offset").
INSERT INTO analytics.skips (stream, "offset", note, actor, skipped_at)
VALUES (%(stream)s, %(offset)s, %(note)s, %(actor)s, now())
ON CONFLICT (stream, "offset") DO NOTHING

-- name: raise_epoch
-- The worker that holds the partition claims it anew, and reads the skips.
UPDATE analytics.partitions SET epoch = epoch + 1 WHERE stream = %(stream)s

-- name: audit
-- Who skipped which record, in the transaction that does it.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.skip', 'skipped', %(detail)s)
