-- name: standing
-- The committed offset of a partition. The row is locked, so no flush and no claim runs during the transaction.
SELECT stream, partition, committed_offset FROM analytics.partitions
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(partition)s::int IS NULL OR partition = %(partition)s)
ORDER BY partition FOR UPDATE

-- name: skip
-- Have a worker make one record a dead letter without reading it. Idempotent by (stream, "offset").
INSERT INTO analytics.skips (stream, "offset", note, actor, skipped_at)
VALUES (%(stream)s, %(offset)s, %(note)s, %(actor)s, now())
ON CONFLICT (stream, "offset") DO NOTHING

-- name: raise_epoch
-- Raise the epoch, so that the worker claims the partition again and loads the skips.
UPDATE analytics.partitions SET epoch = epoch + 1 WHERE stream = %(stream)s

-- name: audit
-- Record who skipped which record, in the transaction that does so.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.skip', 'skipped', %(detail)s)
