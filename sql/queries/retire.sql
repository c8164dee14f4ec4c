-- name: standing
-- How far a stream's partition is committed, when a worker last committed anything there, and since when it is
-- retired. The row is locked: no worker claims the partition until we are done.
SELECT partition, committed_offset, retired_at, (now() - updated_at) < %(quiet)s::interval AS is_read
FROM analytics.partitions WHERE stream = %(stream)s FOR UPDATE

-- name: retire
-- Leave the partition out of freshness and finality. The epoch rises, so that no worker commits there any more
-- without claiming it anew; a claim takes the retirement back.
UPDATE analytics.partitions SET retired_at = now(), epoch = epoch + 1 WHERE stream = %(stream)s

-- name: audit
-- Who retired which stream, in the transaction that does it.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.retire', 'retired', %(detail)s)
