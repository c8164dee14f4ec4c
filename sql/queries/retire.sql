-- name: standing
-- The committed offset of a stream's partition, the time of its retirement, and whether a worker committed there just
-- now. The row is locked, so no worker claims the partition during the transaction.
SELECT partition, committed_offset, retired_at, (now() - updated_at) < %(quiet)s::interval AS is_read
FROM analytics.partitions WHERE stream = %(stream)s FOR UPDATE

-- name: retire
-- Retire a partition, so that freshness and finality leave it out. The epoch rises, so a worker must claim the
-- partition again before it commits there, and a claim ends the retirement.
UPDATE analytics.partitions SET retired_at = now(), epoch = epoch + 1 WHERE stream = %(stream)s

-- name: audit
-- Record who retired which stream, in the transaction that does so.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.retire', 'retired', %(detail)s)
