-- name: create
-- Keep a new job; idempotent by (org_id, idempotency_key) where there is such a key.
INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start, range_end, models,
    idempotency_key, created_by, created_at, attempts)
VALUES (%(job_id)s, %(org_id)s, 'pending', %(format)s, %(granularity)s, %(range_start)s, %(range_end)s,
    %(models)s::uuid[], %(idempotency_key)s, %(created_by)s, %(created_at)s, 0)
ON CONFLICT (org_id, idempotency_key) DO NOTHING

-- name: by_idempotency_key
-- The job that a key made.
SELECT {columns} FROM analytics.export_jobs WHERE org_id = %(org_id)s AND idempotency_key = %(idempotency_key)s

-- name: open_jobs
-- How many jobs of an org are yet to end.
SELECT count(*) FROM analytics.export_jobs WHERE org_id = %(org_id)s AND status IN ('pending', 'running')

-- name: by_id
-- One job of one org: the org is part of the question, so no id of another org finds anything.
SELECT {columns} FROM analytics.export_jobs WHERE org_id = %(org_id)s AND job_id = %(job_id)s

-- name: location
-- The object of a job that can be downloaded, for whoever has a signature for it.
SELECT location, format FROM analytics.export_jobs WHERE job_id = %(job_id)s AND status = 'succeeded'

-- name: page
-- An org's jobs, the newest first.
SELECT {columns} FROM analytics.export_jobs
WHERE org_id = %(org_id)s
    AND (%(before)s::timestamptz IS NULL OR (created_at, job_id) < (%(before)s::timestamptz, %(job_id)s::uuid))
ORDER BY created_at DESC, job_id DESC
LIMIT %(limit)s

-- name: claim
-- Take the oldest job that nobody holds, or whose holder has let its lease run out.
UPDATE analytics.export_jobs
SET status = 'running', claim = %(claim)s, attempts = attempts + 1, lease_until = now() + %(lease)s::interval
WHERE job_id = (
    SELECT job_id FROM analytics.export_jobs
    WHERE status = 'pending' OR (status = 'running' AND lease_until < now())
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING {columns}

-- name: beat
-- Go on holding a job; no row means that it was taken over.
UPDATE analytics.export_jobs SET lease_until = now() + %(lease)s::interval
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: succeed
-- The object is there: say what it is. Only who holds the job can.
UPDATE analytics.export_jobs
SET status = 'succeeded', claim = NULL, lease_until = NULL, completed_at = %(now)s,
    expires_at = %(expires_at)s, location = %(location)s, checksum = %(checksum)s, row_count = %(rows)s,
    byte_count = %(bytes)s, watermark = %(watermark)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: give_back
-- Let another runner have the job after a pause; ``spent`` 0: this attempt does not count.
UPDATE analytics.export_jobs
SET lease_until = now() + %(pause)s::interval, claim = NULL, attempts = attempts - 1 + %(spent)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: fail
-- Give a job up for good.
UPDATE analytics.export_jobs
SET status = 'failed', claim = NULL, lease_until = NULL, completed_at = %(now)s, error = %(error)s
WHERE job_id = %(job_id)s AND claim = %(claim)s AND status = 'running'

-- name: expired
-- Jobs whose object has had its time.
SELECT job_id, org_id, location FROM analytics.export_jobs
WHERE status = 'succeeded' AND expires_at < %(now)s
ORDER BY expires_at LIMIT 100

-- name: expire
-- The object is gone: say so.
UPDATE analytics.export_jobs SET status = 'expired' WHERE job_id = %(job_id)s AND status = 'succeeded'

-- name: watermark
-- How far an org's slowest partition has come; null while one of them has no watermark.
SELECT CASE WHEN bool_and(p.watermark IS NOT NULL) THEN min(p.watermark) END
FROM analytics.orgs_seen AS s LEFT JOIN analytics.partition_watermarks AS p USING (partition)
WHERE s.org_id = %(org_id)s

-- name: due
-- Make the job of last month for each org whose figures of it can no longer change; once, by its key.
INSERT INTO analytics.export_jobs (job_id, org_id, status, format, granularity, range_start, range_end, models,
    idempotency_key, created_by, created_at, attempts)
SELECT gen_random_uuid(), s.org_id, 'pending', s.format, s.granularity, %(start)s, %(end)s, s.models,
    %(idempotency_key)s, 'schedule', %(now)s, 0
FROM analytics.export_schedules AS s
WHERE (
    SELECT CASE WHEN bool_and(p.watermark IS NOT NULL) THEN min(p.watermark) END
    FROM analytics.orgs_seen AS o LEFT JOIN analytics.partition_watermarks AS p USING (partition)
    WHERE o.org_id = s.org_id
) >= %(final_at)s
ON CONFLICT (org_id, idempotency_key) DO NOTHING

-- name: schedule
-- An org's monthly schedule.
SELECT org_id, format, granularity, models, created_by, created_at FROM analytics.export_schedules
WHERE org_id = %(org_id)s

-- name: set_schedule
-- Make or change it; idempotent by org.
INSERT INTO analytics.export_schedules (org_id, format, granularity, models, created_by, created_at)
VALUES (%(org_id)s, %(format)s, %(granularity)s, %(models)s::uuid[], %(created_by)s, %(created_at)s)
ON CONFLICT (org_id) DO UPDATE SET format = EXCLUDED.format, granularity = EXCLUDED.granularity,
    models = EXCLUDED.models, created_by = EXCLUDED.created_by, created_at = EXCLUDED.created_at
RETURNING org_id, format, granularity, models, created_by, created_at

-- name: drop_schedule
-- End it; idempotent.
DELETE FROM analytics.export_schedules WHERE org_id = %(org_id)s
