-- name: revision
-- The revision of the schema. A worker refuses a schema that is older than it needs.
SELECT max(version_num) FROM analytics.alembic_version

-- name: claim
-- Make this worker the only writer of a stream's partition: give the stream its number the first time, and
-- raise the epoch every time. It waits for a flush in flight, and that worker's next flush fails.
-- A claim ends a retirement, and a column of the result says that the partition was retired.
-- No row comes back if another consumer group commits there: two groups would take the partition from each other
-- for ever. Each claim counts as a crash until the worker lets the partition go, or a flush says that all is well
-- (see `advance`).
WITH before AS (SELECT retired_at FROM analytics.partitions WHERE stream = %(stream)s)
INSERT INTO analytics.partitions AS p (partition, stream, epoch, updated_at, consumer, crashes)
SELECT COALESCE(MAX(partition) + 1, 0), %(stream)s, 1, now(), %(consumer)s, 1 FROM analytics.partitions
ON CONFLICT (stream) DO UPDATE SET epoch = p.epoch + 1, updated_at = now(), retired_at = NULL,
    consumer = %(consumer)s, crashes = p.crashes + 1
WHERE p.consumer IS NULL OR p.consumer = %(consumer)s OR p.updated_at < now() - %(quiet)s::interval
RETURNING partition, epoch, committed_offset, offered, accepted, duplicate, rejected, replays,
    (EXTRACT(EPOCH FROM watermark) * 1000000)::bigint,
    (EXTRACT(EPOCH FROM max_event_time) * 1000000)::bigint,
    (EXTRACT(EPOCH FROM broker_time) * 1000000)::bigint,
    (EXTRACT(EPOCH FROM GREATEST(newest_broker_time, broker_time)) * 1000000)::bigint,
    (EXTRACT(EPOCH FROM ids_from) / 3600)::bigint,
    (EXTRACT(EPOCH FROM counted_through) * 1000000)::bigint,
    EXISTS (SELECT FROM before WHERE retired_at IS NOT NULL), crashes - 1, trying_from, trying_to

-- name: flushing
-- The other consumer group whose flush is in flight. Its row is locked, and does not show the coming commit yet.
-- This is asked before the claim. The claim alone would wait for the commit, find the time at which the long flush
-- began, and take the group for silent.
SELECT consumer FROM analytics.partitions WHERE stream = %(stream)s AND consumer <> %(consumer)s
    AND NOT EXISTS (
        SELECT FROM (SELECT FROM analytics.partitions WHERE stream = %(stream)s FOR UPDATE SKIP LOCKED) AS free
    )

-- name: committed_now
-- Write the end of a long flush, because now() is its beginning. Without it, another consumer group could take the
-- time of the flush for silence.
UPDATE analytics.partitions SET updated_at = clock_timestamp() WHERE partition = %(partition)s

-- name: consumer
-- The consumer group that reads a stream; asked after a claim was refused.
SELECT consumer FROM analytics.partitions WHERE stream = %(stream)s

-- name: rate_classes
-- The numbers of the rate classes that a worker counts under. New classes get the next numbers, in their order.
WITH wanted AS (
    SELECT * FROM unnest(%(tiers)s::text[], %(firsts)s::bigint[], %(lasts)s::bigint[])
        WITH ORDINALITY AS class (service_tier, input_from, input_to, place)
), added AS (
    INSERT INTO analytics.rate_classes (id, service_tier, input_from, input_to)
    SELECT (SELECT max(id) FROM analytics.rate_classes) + row_number() OVER (ORDER BY place),
        service_tier, input_from, input_to
    FROM wanted WHERE NOT EXISTS (
        SELECT FROM analytics.rate_classes AS known
        WHERE known.service_tier = wanted.service_tier AND known.input_from = wanted.input_from
            AND known.input_to IS NOT DISTINCT FROM wanted.input_to
    )
    RETURNING id, service_tier, input_from, input_to
)
SELECT id, service_tier, input_from, input_to FROM analytics.rate_classes
UNION ALL SELECT id, service_tier, input_from, input_to FROM added

-- name: drop_dimensions
-- Forget the dimensions of a partition that are not set any more. Their rows stay until their retention is over.
DELETE FROM analytics.dimensions WHERE partition = %(partition)s AND NOT name = ANY(%(names)s)

-- name: set_dimensions
-- Note the dimensions that a worker counts from now on, and since when each of them is complete.
-- A dimension that was counted before goes on, if its source is the same, and if all accepted events were counted
-- by a worker that knew of dimensions. Otherwise the first hour counts that begins after all events so far: an
-- event lies at most ``future`` after its broker time.
INSERT INTO analytics.dimensions AS known (partition, name, source, since)
SELECT partition, name, source, CASE WHEN accepted = 0 THEN 'epoch' ELSE
        date_trunc('hour', COALESCE(GREATEST(newest_broker_time, broker_time), now()) + %(future)s::interval, 'UTC')
        + interval '1 hour' END
FROM analytics.partitions, unnest(%(names)s::text[], %(sources)s::text[]) AS wanted (name, source)
WHERE partition = %(partition)s
ON CONFLICT (partition, name) DO UPDATE SET source = EXCLUDED.source, since = EXCLUDED.since
WHERE known.source <> EXCLUDED.source OR EXISTS (
    SELECT FROM analytics.partitions AS p
    WHERE p.partition = known.partition AND p.accepted <> p.counted_by_dimensions
)

-- name: drop_split_hours
-- Forget the split hours of a partition that are not set any more. Their rows stay until their retention is over.
DELETE FROM analytics.split_hours WHERE partition = %(partition)s AND NOT hour = ANY(%(hours)s::smallint[])

-- name: set_split_hours
-- Note the hours of the day that a worker counts by the quarter from now on, and since when each is complete: as
-- set_dimensions.
INSERT INTO analytics.split_hours AS known (partition, hour, since)
SELECT partition, hour, CASE WHEN accepted = 0 THEN 'epoch' ELSE
        date_trunc('hour', COALESCE(GREATEST(newest_broker_time, broker_time), now()) + %(future)s::interval, 'UTC')
        + interval '1 hour' END
FROM analytics.partitions, unnest(%(hours)s::smallint[]) AS wanted (hour)
WHERE partition = %(partition)s
ON CONFLICT (partition, hour) DO UPDATE SET since = EXCLUDED.since
WHERE EXISTS (
    SELECT FROM analytics.partitions AS p
    WHERE p.partition = known.partition AND p.accepted <> p.counted_by_dimensions
)

-- name: released
-- Clear the count of crashes, because the worker lets the partition go on purpose.
UPDATE analytics.partitions SET crashes = 0
WHERE partition = %(partition)s AND stream = %(stream)s AND epoch = %(epoch)s

-- name: trying
-- Note the records that the worker takes in next, while it looks for the record at which workers crash.
UPDATE analytics.partitions SET trying_from = %(from_offset)s, trying_to = %(to_offset)s
WHERE partition = %(partition)s AND stream = %(stream)s AND epoch = %(epoch)s

-- name: skips
-- The records of a stream, from an offset on, that an operator has skipped.
SELECT "offset", note, actor FROM analytics.skips WHERE stream = %(stream)s AND "offset" >= %(from_offset)s

-- name: advance
-- The compare-and-set of a flush: the row is found only if the epoch is ours and the offset is where we left it.
-- It comes first in the transaction, so that a worker that lost the partition locks no rollup row.
-- The stream is compared as well: after a failover that lost commits, the number may belong to another stream.
-- Listeners on spendstream_flush get the partition's number when the flush is committed, and not before.
-- The result also says whether dead letters wait for a replay.
WITH moved AS (
UPDATE analytics.partitions
SET committed_offset = %(next_offset)s, watermark = %(watermark)s, max_event_time = %(max_event_time)s,
    broker_time = %(broker_time)s, newest_broker_time = %(newest_broker_time)s,
    offered = %(offered)s, accepted = %(accepted)s, duplicate = %(duplicate)s, rejected = %(rejected)s,
    caught_up = %(caught_up)s, updated_at = now(), replays = %(replays)s, counted_by_dimensions = %(accepted)s,
    counted_through = %(counted_through)s,
    crashes = CASE WHEN %(well)s THEN 0 ELSE crashes END,
    trying_from = CASE WHEN %(well)s THEN NULL ELSE trying_from END
WHERE partition = %(partition)s AND stream = %(stream)s AND epoch = %(epoch)s
    AND committed_offset = %(from_offset)s AND replays = %(from_replays)s
RETURNING partition)
SELECT pg_notify('spendstream_flush', partition::text),
    EXISTS (SELECT FROM analytics.replays AS r WHERE r.partition = moved.partition AND settled_at IS NULL)
FROM moved

-- name: standing
-- The epoch of a partition and its committed position; asked after a compare-and-set found no row.
SELECT epoch, committed_offset, replays FROM analytics.partitions
WHERE partition = %(partition)s AND stream = %(stream)s

-- name: stage_rollup
-- The temporary table for the dirty rows of a flush. It is empty again after each transaction.
CREATE TEMPORARY TABLE IF NOT EXISTS stage_{table} (
    org_id uuid, bucket_start timestamptz, model_id uuid, rate_class smallint, known boolean,
    invocations bigint, successes bigint, errors bigint, timeouts bigint, throttles bigint,
    input_tokens bigint, output_tokens bigint, cost_microcents bigint, latency_sum_ms bigint,
    latency_max_ms integer, revision integer, cache_read_tokens bigint, cache_write_tokens bigint,
    cache_write_1h_tokens bigint, reasoning_tokens bigint, unestimated bigint{text_columns}, latency_sketch bytea
) ON COMMIT DELETE ROWS

-- name: near_rows
-- Before the updates: the rows of the newest chunks are in memory, so the index finds each of them at no cost of a
-- disk. By its own estimates the planner would at times read a whole chunk instead.
SET LOCAL random_page_cost = 0

-- name: update_rollup
-- Write absolute values of dirty rows that are in the table. An update locks no row beforehand as ON CONFLICT does,
-- which saves half of the time and 54 bytes of WAL a row. The bounds let TimescaleDB skip chunks.
UPDATE analytics.{table} AS kept SET
    invocations = staged.invocations, successes = staged.successes, errors = staged.errors,
    timeouts = staged.timeouts, throttles = staged.throttles, input_tokens = staged.input_tokens,
    output_tokens = staged.output_tokens, cost_microcents = staged.cost_microcents,
    latency_sum_ms = staged.latency_sum_ms, latency_max_ms = staged.latency_max_ms,
    latency_sketch = staged.latency_sketch, revision = staged.revision,
    cache_read_tokens = staged.cache_read_tokens, cache_write_tokens = staged.cache_write_tokens,
    cache_write_1h_tokens = staged.cache_write_1h_tokens, reasoning_tokens = staged.reasoning_tokens,
    unestimated = staged.unestimated, updated_at = now()
FROM stage_{table} AS staged
WHERE staged.known AND kept.org_id = staged.org_id AND kept.bucket_start = staged.bucket_start
    AND kept.model_id = staged.model_id{same_texts} AND kept.rate_class = staged.rate_class
    AND kept.partition = %(partition)s::smallint AND kept.bucket_start BETWEEN %(first)s AND %(last)s

-- name: upsert_rollup
-- Write absolute values of dirty rollup rows; idempotent by the table's primary key.
INSERT INTO analytics.{table} (
    org_id, bucket_start, model_id, {texts}rate_class, partition,
    invocations, successes, errors, timeouts, throttles, input_tokens, output_tokens, cost_microcents,
    latency_sum_ms, latency_max_ms, latency_sketch, revision, cache_read_tokens, cache_write_tokens,
    cache_write_1h_tokens, reasoning_tokens, unestimated, updated_at
)
SELECT org_id, bucket_start, model_id, {texts}rate_class, %(partition)s::smallint,
    invocations, successes, errors, timeouts, throttles, input_tokens, output_tokens, cost_microcents,
    latency_sum_ms, latency_max_ms, latency_sketch, revision, cache_read_tokens, cache_write_tokens,
    cache_write_1h_tokens, reasoning_tokens, unestimated, now()
FROM stage_{table} WHERE NOT known OR %(all)s
ON CONFLICT (org_id, bucket_start, model_id, {texts}rate_class, partition) DO UPDATE SET
    invocations = EXCLUDED.invocations, successes = EXCLUDED.successes, errors = EXCLUDED.errors,
    timeouts = EXCLUDED.timeouts, throttles = EXCLUDED.throttles, input_tokens = EXCLUDED.input_tokens,
    output_tokens = EXCLUDED.output_tokens, cost_microcents = EXCLUDED.cost_microcents,
    latency_sum_ms = EXCLUDED.latency_sum_ms, latency_max_ms = EXCLUDED.latency_max_ms,
    latency_sketch = EXCLUDED.latency_sketch, revision = EXCLUDED.revision,
    cache_read_tokens = EXCLUDED.cache_read_tokens, cache_write_tokens = EXCLUDED.cache_write_tokens,
    cache_write_1h_tokens = EXCLUDED.cache_write_1h_tokens, reasoning_tokens = EXCLUDED.reasoning_tokens,
    unestimated = EXCLUDED.unestimated, updated_at = EXCLUDED.updated_at

-- name: stage_errors
-- As stage_rollup, for the counts of failed events.
CREATE TEMPORARY TABLE IF NOT EXISTS stage_usage_errors_hour (
    org_id uuid, bucket_start timestamptz, model_id uuid, rate_class smallint, known boolean, status smallint,
    count bigint, client_id text, error_code text
) ON COMMIT DELETE ROWS

-- name: update_errors
-- As update_rollup, for the counts of failed events.
UPDATE analytics.usage_errors_hour AS kept SET count = staged.count
FROM stage_usage_errors_hour AS staged
WHERE staged.known AND kept.org_id = staged.org_id AND kept.bucket_start = staged.bucket_start
    AND kept.model_id = staged.model_id AND kept.client_id = staged.client_id AND kept.status = staged.status
    AND kept.error_code = staged.error_code AND kept.rate_class = staged.rate_class
    AND kept.partition = %(partition)s::smallint AND kept.bucket_start BETWEEN %(first)s AND %(last)s

-- name: upsert_errors
-- Write absolute counts of failed events; idempotent by the table's primary key.
INSERT INTO analytics.usage_errors_hour
    (org_id, bucket_start, model_id, client_id, status, error_code, rate_class, partition, count)
SELECT org_id, bucket_start, model_id, client_id, status, error_code, rate_class, %(partition)s::smallint, count
FROM stage_usage_errors_hour WHERE NOT known OR %(all)s
ON CONFLICT (org_id, bucket_start, model_id, client_id, status, error_code, rate_class, partition)
    DO UPDATE SET count = EXCLUDED.count

-- name: stage_seen
-- As stage_rollup, for first and last event times.
CREATE TEMPORARY TABLE IF NOT EXISTS stage_{table} (
    org_id uuid, first_event_at timestamptz, last_event_at timestamptz{text_columns}
) ON COMMIT DELETE ROWS

-- name: upsert_seen
-- Widen the times of first and last events. Idempotent, because a repeat has the same least and greatest times.
INSERT INTO analytics.{table} AS seen
    (org_id, {texts}partition, first_event_at, last_event_at, last_rollup_at)
SELECT org_id, {texts}%(partition)s::smallint, first_event_at, last_event_at, now() FROM stage_{table}
ON CONFLICT (org_id, {texts}partition) DO UPDATE SET
    first_event_at = LEAST(seen.first_event_at, EXCLUDED.first_event_at),
    last_event_at = GREATEST(seen.last_event_at, EXCLUDED.last_event_at),
    last_rollup_at = EXCLUDED.last_rollup_at

-- name: stage_models
-- As stage_seen, for models with the labels of their newest event. labelled_at is 1970 for a model without labels.
CREATE TEMPORARY TABLE IF NOT EXISTS stage_models_seen (
    org_id uuid, first_event_at timestamptz, last_event_at timestamptz, model_id uuid, labelled_at timestamptz,
    provider text, model_name text
) ON COMMIT DELETE ROWS

-- name: upsert_models
-- As upsert_seen, for models. The labels of the newest event stay; of two at the same time, the greater ones.
INSERT INTO analytics.models_seen AS seen (
    org_id, model_id, partition, first_event_at, last_event_at, last_rollup_at, labelled_at, provider, model_name
)
SELECT org_id, model_id, %(partition)s::smallint, first_event_at, last_event_at, now(),
    labelled_at, provider, model_name
FROM stage_models_seen
ON CONFLICT (org_id, model_id, partition) DO UPDATE SET
    first_event_at = LEAST(seen.first_event_at, EXCLUDED.first_event_at),
    last_event_at = GREATEST(seen.last_event_at, EXCLUDED.last_event_at),
    last_rollup_at = EXCLUDED.last_rollup_at,
    labelled_at = GREATEST(seen.labelled_at, EXCLUDED.labelled_at),
    provider = CASE WHEN (EXCLUDED.labelled_at, EXCLUDED.provider COLLATE "C", EXCLUDED.model_name COLLATE "C")
        > (seen.labelled_at, seen.provider, seen.model_name) THEN EXCLUDED.provider ELSE seen.provider END,
    model_name = CASE WHEN (EXCLUDED.labelled_at, EXCLUDED.provider COLLATE "C", EXCLUDED.model_name COLLATE "C")
        > (seen.labelled_at, seen.provider, seen.model_name) THEN EXCLUDED.model_name ELSE seen.model_name END

-- name: add_ids
-- Keep the ids that a flush accepted in one hour, as one segment. The segment's number is the offset of the flush,
-- or a number above all offsets for a flush of replays alone. So no two segments have the same number.
INSERT INTO analytics.dedupe_ids (partition, hour, segment, ids)
VALUES (%(partition)s, %(hour)s, %(segment)s, %(ids)s)

-- name: ours
-- Lock the claim until the end of the transaction; no row if the partition has another owner.
SELECT 1 FROM analytics.partitions
WHERE partition = %(partition)s AND stream = %(stream)s AND epoch = %(epoch)s FOR SHARE

-- name: crowded_hour
-- The oldest closed hour whose ids lie in many small segments.
SELECT hour FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour < %(before)s AND octet_length(ids) < %(small)s
GROUP BY hour HAVING count(*) >= %(many)s
ORDER BY hour LIMIT 1

-- name: small_segments
-- The small segments of one hour, oldest first.
SELECT segment, ids FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour = %(hour)s AND octet_length(ids) < %(small)s
ORDER BY segment

-- name: drop_segments
-- Drop segments whose ids have been merged into another in the same transaction.
DELETE FROM analytics.dedupe_ids WHERE partition = %(partition)s AND hour = %(hour)s AND segment = ANY(%(segments)s)

-- name: copy_dead_letters
-- Keep the dead letters of a flush. The compare-and-set came first, so no letter is kept twice.
COPY analytics.dead_letters (
    partition, "offset", position, stream, reason, faults, body, rejected_at, broker_time,
    records, body_bytes, body_sha256
)
FROM STDIN

-- name: resident_rows
-- The rows of all buckets from one bucket on: a worker holds them in memory after recovery.
SELECT org_id, (EXTRACT(EPOCH FROM bucket_start) * 1000000)::bigint, model_id, rate_class, {columns}
FROM analytics.{table}
WHERE bucket_start >= %(start)s AND partition = %(partition)s{of_dimension}

-- name: high_days
-- The days of orgs with a sum near the highest that a row can hold; asked once, at recovery.
SELECT org_id, (EXTRACT(EPOCH FROM bucket_start) / 86400)::bigint AS day
FROM analytics.usage_day
WHERE bucket_start >= %(start)s AND partition = %(partition)s
GROUP BY org_id, bucket_start
HAVING GREATEST(sum(input_tokens), sum(output_tokens), sum(cost_microcents), sum(latency_sum_ms)) >= %(sum_least)s

-- name: block_rows
-- The rows of the (org, bucket) blocks that late events need. The outer bounds let TimescaleDB skip chunks.
SELECT org_id, (EXTRACT(EPOCH FROM bucket_start) * 1000000)::bigint, model_id, rate_class, {columns}
FROM analytics.{table}
JOIN unnest(%(orgs)s::uuid[], %(starts)s::timestamptz[]) AS block (org_id, bucket_start)
    USING (org_id, bucket_start)
WHERE bucket_start BETWEEN %(first)s AND %(last)s AND partition = %(partition)s{of_dimension}

-- name: live_bytes
-- The bytes of the stored ids that still count.
SELECT COALESCE(sum(octet_length(ids)), 0)::bigint FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour >= %(from_hour)s

-- name: live_hours
-- The hours with ids that still count, the oldest first.
SELECT DISTINCT (EXTRACT(EPOCH FROM hour) / 3600)::bigint AS number
FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour >= %(from_hour)s
ORDER BY number

-- name: live_ids
-- The ids of one hour, in the order in which they were accepted.
SELECT ids FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour = %(hour)s
ORDER BY segment

-- name: org_models
-- Every model of every org of a partition with its last event and rollup, for the freshness cache.
SELECT org_id, model_id, (EXTRACT(EPOCH FROM last_event_at) * 1000000)::bigint,
    (EXTRACT(EPOCH FROM last_rollup_at) * 1000000)::bigint
FROM analytics.models_seen
WHERE partition = %(partition)s
