-- name: create
-- Keep a new job. Idempotent by (org_id, idempotency_key) if the job has an idempotency key.
INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start, range_end, models,
    idempotency_key, created_by, created_at, attempts, price_version, cost_basis, time_zone, group_by, dimensions,
    initiated_by, request_id, traceparent)
VALUES (%(job_id)s, %(org_id)s, 'pending', %(format)s, %(granularity)s, %(range_start)s, %(range_end)s,
    %(models)s::uuid[], %(idempotency_key)s, %(created_by)s, %(created_at)s, 0, %(price_version)s, %(cost_basis)s,
    %(time_zone)s, %(group_by)s, %(dimensions)s::text[], %(initiated_by)s, %(request_id)s, %(traceparent)s)
ON CONFLICT (org_id, idempotency_key) DO NOTHING

-- name: by_idempotency_key
-- The job of an org that was made with an idempotency key.
SELECT {columns} FROM analytics.export_jobs AS owned WHERE org_id = %(org_id)s AND idempotency_key = %(idempotency_key)s

-- name: open_jobs
-- The number of an org's jobs that have not ended yet.
SELECT count(*) FROM analytics.export_jobs WHERE org_id = %(org_id)s AND status IN ('pending', 'running')

-- name: waiting
-- The jobs of all orgs that have not ended yet: by status how many there are, and when the oldest one was made.
SELECT status, count(*), min(created_at) FROM analytics.export_jobs
WHERE status IN ('pending', 'running') GROUP BY status

-- name: by_id
-- One job of one org. The org is part of the condition, so the id of another org's job finds no row.
SELECT {columns} FROM analytics.export_jobs AS owned WHERE org_id = %(org_id)s AND job_id = %(job_id)s

-- name: location
-- The object of a job that can be downloaded. The caller has checked the signature of the link.
SELECT location, format FROM analytics.export_jobs WHERE job_id = %(job_id)s AND status = 'succeeded'

-- name: page
-- An org's jobs, or those of some statuses, the newest first.
SELECT {columns} FROM analytics.export_jobs AS owned
WHERE org_id = %(org_id)s
    AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s))
    AND (%(before)s::timestamptz IS NULL OR (created_at, job_id) < (%(before)s::timestamptz, %(job_id)s::uuid))
ORDER BY created_at DESC, job_id DESC
LIMIT %(limit)s

-- name: claim
-- Take the oldest job that no exporter holds, or whose lease has run out.
UPDATE analytics.export_jobs AS owned
SET status = 'running', claim = %(claim)s, attempts = attempts + 1, lease_until = now() + %(lease)s::interval
WHERE job_id = (
    SELECT job_id FROM analytics.export_jobs
    WHERE status = 'pending' OR (status = 'running' AND lease_until < now())
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING {columns}

-- name: beat
-- Renew the lease of a job; no row if another exporter has taken the job.
UPDATE analytics.export_jobs SET lease_until = now() + %(lease)s::interval
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: succeed
-- Store the result of a job whose object has been written. Only the exporter that holds the job can.
UPDATE analytics.export_jobs
SET status = 'succeeded', claim = NULL, lease_until = NULL, completed_at = %(now)s,
    expires_at = %(expires_at)s, location = %(location)s, checksum = %(checksum)s, row_count = %(rows)s,
    byte_count = %(bytes)s, watermark = %(watermark)s, price_version = %(price_version)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: give_back
-- Give a job back, so that another exporter may take it after a pause. With ``spent`` 0 this attempt does not count.
UPDATE analytics.export_jobs
SET lease_until = now() + %(pause)s::interval, claim = NULL, attempts = attempts - 1 + %(spent)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: fail
-- Give a job up for good.
UPDATE analytics.export_jobs
SET status = 'failed', claim = NULL, lease_until = NULL, completed_at = %(now)s, error = %(error)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: expired
-- The jobs whose object has expired.
SELECT job_id, org_id, location FROM analytics.export_jobs
WHERE status = 'succeeded' AND expires_at < %(now)s
ORDER BY expires_at LIMIT 100

-- name: expire
-- Mark a job as expired, after its object was deleted.
UPDATE analytics.export_jobs SET status = 'expired' WHERE job_id = %(job_id)s AND status = 'succeeded'

-- name: watermark
-- The watermark of an org's slowest partition; null while one of its partitions has no watermark.
SELECT CASE WHEN bool_and(p.watermark IS NOT NULL) THEN min(p.watermark) END
FROM analytics.orgs_seen AS s LEFT JOIN analytics.partition_watermarks AS p USING (partition)
WHERE s.org_id = %(org_id)s

-- name: scheduled_zones
-- The time zones of all schedules.
SELECT DISTINCT time_zone FROM analytics.export_schedules ORDER BY time_zone

-- name: due
-- Make last month's job for each org with a schedule in a time zone whose figures of that month are final. The
-- idempotency key lets each job be made once.
INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start, range_end, models,
    idempotency_key, created_by, created_at, attempts, price_version, time_zone, group_by, dimensions)
SELECT gen_random_uuid(), s.org_id, 'pending', s.format, s.granularity, %(start)s, %(end)s, s.models,
    %(idempotency_key)s, 'schedule', %(now)s, 0, (SELECT COALESCE(max(id), 0) FROM analytics.prices), s.time_zone,
    s.group_by, s.dimensions
FROM analytics.export_schedules AS s
WHERE s.time_zone = %(time_zone)s AND (
    SELECT CASE WHEN bool_and(p.watermark IS NOT NULL) THEN min(p.watermark) END
    FROM analytics.orgs_seen AS o LEFT JOIN analytics.partition_watermarks AS p USING (partition)
    WHERE o.org_id = s.org_id
) >= %(final_at)s
ON CONFLICT (org_id, idempotency_key) DO NOTHING

-- name: schedule
-- An org's monthly schedule.
SELECT {scheduled} FROM analytics.export_schedules AS owned WHERE org_id = %(org_id)s

-- name: newest_scheduled
-- The newest job that an org's schedule has made, and its month.
SELECT job_id, substr(idempotency_key, length('schedule:') + 1) AS month, status, error
FROM analytics.export_jobs
WHERE org_id = %(org_id)s AND created_by = 'schedule' AND idempotency_key LIKE 'schedule:%%'
ORDER BY created_at DESC, range_start DESC LIMIT 1

-- name: set_schedule
-- Make or change an org's monthly schedule. Idempotent by org.
INSERT INTO analytics.export_schedules AS owned (org_id, format, granularity, models, created_by, created_at, time_zone,
    group_by, dimensions)
VALUES (%(org_id)s, %(format)s, %(granularity)s, %(models)s::uuid[], %(created_by)s, %(created_at)s, %(time_zone)s,
    %(group_by)s, %(dimensions)s::text[])
ON CONFLICT (org_id) DO UPDATE SET format = EXCLUDED.format, granularity = EXCLUDED.granularity,
    models = EXCLUDED.models, created_by = EXCLUDED.created_by, created_at = EXCLUDED.created_at,
    time_zone = EXCLUDED.time_zone, group_by = EXCLUDED.group_by, dimensions = EXCLUDED.dimensions
RETURNING {scheduled}

-- name: drop_schedule
-- End an org's monthly schedule. Idempotent.
DELETE FROM analytics.export_schedules WHERE org_id = %(org_id)s
