-- name: accept_gap
-- Move a partition's committed offset over a gap; the epoch rises, so no running worker can commit over it.
-- It finds the row only where the partition stands at the gap's beginning, so a repeat changes nothing.
UPDATE analytics.partitions
SET committed_offset = %(to_offset)s, epoch = epoch + 1, updated_at = now(), crashes = 0, trying_from = NULL
WHERE stream = %(stream)s AND committed_offset = %(from_offset)s
RETURNING partition, epoch

-- name: where_it_stands
-- The committed offset of a stream's partition, and the broker's time of the chunk before, in microseconds.
SELECT committed_offset, (EXTRACT(EPOCH FROM broker_time) * 1000000)::bigint FROM analytics.partitions WHERE stream = %(stream)s

-- name: retire_segments
-- After a move backwards (the stream was made anew) the offsets that name segments come again: the old ones step
-- aside, below every offset, each generation to a range of its own by its epoch.
UPDATE analytics.dedupe_ids SET segment = segment - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND segment >= 0

-- name: retire_dead_letters
-- Likewise: a dead letter below offset 0 is one of a stream that is gone.
UPDATE analytics.dead_letters SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND "offset" >= 0

-- name: retire_replays
-- Likewise: replays stay with their letters.
UPDATE analytics.replays SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND "offset" >= 0

-- name: retire_skips
-- Likewise: a record that was skipped in the old stream is another one in the new stream.
UPDATE analytics.skips SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE stream = %(stream)s AND "offset" >= 0

-- name: audit
-- Who accepted which gap, in the transaction that accepts it.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.accept_gap', 'accepted', %(detail)s)
