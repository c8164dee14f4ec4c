-- name: accept_gap
-- Move a partition's committed offset over a gap, and raise the epoch, so that no running worker writes over the move.
-- The row is found only if the partition is committed up to the beginning of the gap, so a repeat changes nothing.
UPDATE analytics.partitions
SET committed_offset = %(to_offset)s, epoch = epoch + 1, updated_at = now(), crashes = 0, trying_from = NULL
WHERE stream = %(stream)s AND committed_offset = %(from_offset)s
RETURNING partition, epoch

-- name: where_it_stands
-- The committed offset of a stream's partition, and the broker time of the chunk before, in microseconds.
SELECT committed_offset, (EXTRACT(EPOCH FROM broker_time) * 1000000)::bigint FROM analytics.partitions WHERE stream = %(stream)s

-- name: retire_segments
-- Move the old id segments to numbers below 0, after a move backwards. The stream was made anew, so its offsets, which
-- are also the numbers of segments, come again. Each epoch has a range of its own below 0.
UPDATE analytics.dedupe_ids SET segment = segment - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND segment >= 0

-- name: retire_dead_letters
-- As retire_segments, for dead letters. A dead letter below offset 0 belongs to a stream that is gone.
UPDATE analytics.dead_letters SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND "offset" >= 0

-- name: retire_replays
-- As retire_segments, for replays, so that they keep the keys of their dead letters.
UPDATE analytics.replays SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE partition = %(partition)s AND "offset" >= 0

-- name: retire_skips
-- As retire_segments, for skips, because the new stream has another record at the same offset.
UPDATE analytics.skips SET "offset" = "offset" - %(epoch)s::bigint * 1099511627776
WHERE stream = %(stream)s AND "offset" >= 0

-- name: audit
-- Record who accepted which gap, in the transaction that accepts the gap.
INSERT INTO analytics.audit_log (at, actor, action, outcome, detail)
VALUES (now(), %(actor)s, 'stream.accept_gap', 'accepted', %(detail)s)
