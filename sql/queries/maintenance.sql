-- name: expire_ids
-- Drop the ids that count no more by the broker's newest time in their partition, and say from where on they
-- are whole. The partitions are locked first, as a flush does.
WITH held AS (
    SELECT partition, GREATEST(newest_broker_time, broker_time) - %(window)s::interval AS before
    FROM analytics.partitions FOR UPDATE
), gone AS (
    DELETE FROM analytics.dedupe_ids AS d USING held
    WHERE d.partition = held.partition AND d.hour < held.before
    RETURNING d.partition, d.hour
), whole AS (
    UPDATE analytics.partitions AS p SET ids_from = GREATEST(p.ids_from, dropped.last + interval '1 hour')
    FROM (SELECT partition, max(hour) AS last FROM gone GROUP BY partition) AS dropped
    WHERE p.partition = dropped.partition
)
SELECT count(*) FROM gone

-- name: expire_rows
-- Drop rollup rows past their retention, where no chunk can be dropped as a whole.
DELETE FROM analytics.{table} WHERE bucket_start < %(before)s

-- name: expire_chunks
-- Drop whole chunks past their retention.
SELECT {functions}.drop_chunks('analytics.{table}'::regclass, older_than => %(before)s)

-- name: expire_seen
-- Forget what has not been seen for as long as rollups are kept.
DELETE FROM analytics.{table} WHERE last_event_at < %(before)s

-- name: expire_dead_letters
-- Drop refused records past their retention.
DELETE FROM analytics.dead_letters WHERE rejected_at < %(before)s

-- name: expire_replays
-- Forget which events were counted by replays, once the rollup rows of that time are gone.
DELETE FROM analytics.replays WHERE settled_at < %(before)s

-- name: extension
-- The schema of TimescaleDB's functions, quoted; no row on plain PostgreSQL.
SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'timescaledb'

-- name: time
-- The database's clock.
SELECT now()
