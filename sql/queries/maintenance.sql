-- name: partitions
-- All partitions.
SELECT partition FROM analytics.partitions ORDER BY partition

-- name: unpriced
-- Calls of a range of hours whose cost nobody knows: those of models without names, and all others.
SELECT COALESCE(sum(unpriced) FILTER (WHERE provider = '' OR model_name = ''), 0)::bigint,
    COALESCE(sum(unpriced) FILTER (WHERE provider <> '' AND model_name <> ''), 0)::bigint
FROM analytics.spend_hour
WHERE bucket_start >= %(start)s AND bucket_start < %(end)s

-- name: expire_ids
-- Drop the ids of a partition's oldest hour, if the hour began before the newest broker time less a window. Store the
-- hour from which on the ids are complete. The statement locks the partition as a flush does, so it drops one hour.
WITH held AS (
    SELECT partition, GREATEST(newest_broker_time, broker_time) - %(window)s::interval AS before
    FROM analytics.partitions WHERE partition = %(partition)s FOR UPDATE
), oldest AS (
    SELECT min(d.hour) AS hour FROM analytics.dedupe_ids AS d JOIN held USING (partition)
    WHERE d.hour < held.before
), gone AS (
    DELETE FROM analytics.dedupe_ids AS d USING oldest
    WHERE d.partition = %(partition)s AND d.hour = oldest.hour
    RETURNING d.hour
), whole AS (
    UPDATE analytics.partitions AS p SET ids_from = GREATEST(p.ids_from, oldest.hour + interval '1 hour')
    FROM oldest WHERE p.partition = %(partition)s AND oldest.hour IS NOT NULL
)
SELECT count(*) FROM gone

-- name: expire_rows
-- Drop rows past their retention, and at most a given number of rows, so that no transaction is long.
-- Rows that another worker is dropping now are left to that worker.
DELETE FROM analytics.{table} WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM analytics.{table} WHERE {past} LIMIT %(most)s FOR UPDATE SKIP LOCKED
))

-- name: expire_chunks
-- Drop whole chunks past their retention.
SELECT {functions}.drop_chunks('analytics.{table}'::regclass, older_than => %(before)s)

-- name: extension
-- The schema of TimescaleDB's functions, quoted; no row on plain PostgreSQL.
SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'timescaledb'

-- name: time
-- The database's clock.
SELECT now()
