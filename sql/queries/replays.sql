-- name: waiting
-- The letters of a partition that wait for a replay, in the order in which they were asked for.
SELECT r."offset", r.position, (EXTRACT(EPOCH FROM r.broker_time) * 1000000)::bigint, r.evidence,
    COALESCE((EXTRACT(EPOCH FROM r.absent_to) / 3600)::bigint, 0), COALESCE(d.reason, ''),
    COALESCE(r.body, d.body)
FROM analytics.replays AS r
LEFT JOIN analytics.dead_letters AS d USING (partition, "offset", position)
WHERE r.partition = %(partition)s AND r.settled_at IS NULL
ORDER BY r.requested_at, r."offset", r.position
LIMIT %(most)s

-- name: counted
-- The asked events that earlier replays have counted, with the checks of their payloads.
SELECT org_id, event_id, payload_check
FROM analytics.replays
JOIN unnest(%(orgs)s::uuid[], %(events)s::uuid[]) AS asked (org_id, event_id) USING (org_id, event_id)
WHERE partition = %(partition)s AND outcome = 'accepted'

-- name: ids_of_hours
-- The event ids that were accepted in some hours.
SELECT (EXTRACT(EPOCH FROM hour) / 3600)::bigint, ids FROM analytics.dedupe_ids
WHERE partition = %(partition)s AND hour = ANY(%(hours)s)

-- name: settle
-- Store the outcome of a replay, in the transaction that counts the event. The row is found only once.
UPDATE analytics.replays
SET settled_at = now(), outcome = %(outcome)s, org_id = %(org)s, event_id = %(event)s,
    payload_check = %(check)s, at_offset = %(at_offset)s, body = NULL
WHERE partition = %(partition)s AND "offset" = %(offset)s AND position = %(position)s AND settled_at IS NULL

-- name: shorten_spans
-- End the partition's complete spans before the oldest replayed event, because no archive takes these events.
UPDATE analytics.archive_spans SET complete_to = LEAST(complete_to, %(before)s)
WHERE partition = %(partition)s AND complete_to > %(before)s

-- name: shorten_outbox
-- As shorten_spans, for the rows of the outbox.
UPDATE analytics.archive_outbox SET complete_to = LEAST(complete_to, %(before)s)
WHERE partition = %(partition)s AND complete_to > %(before)s

-- name: request
-- Ask for the replay of a letter, unless an earlier request still waits or has counted the letter.
INSERT INTO analytics.replays AS r
    (partition, "offset", position, run, requested_at, broker_time, evidence, absent_to, body)
VALUES (%(partition)s, %(offset)s, %(position)s, %(run)s, now(), %(broker_time)s, %(evidence)s, %(absent_to)s, %(body)s)
ON CONFLICT (partition, "offset", position) DO UPDATE
SET run = EXCLUDED.run, requested_at = EXCLUDED.requested_at, broker_time = EXCLUDED.broker_time,
    evidence = EXCLUDED.evidence, absent_to = EXCLUDED.absent_to, body = EXCLUDED.body, settled_at = NULL, outcome = NULL
WHERE r.settled_at IS NOT NULL AND r.outcome NOT IN ('accepted', 'duplicate')

-- name: of_run
-- The letters of one run, counted by outcome. A null outcome means that the letters still wait.
SELECT outcome, count(*) FROM analytics.replays WHERE run = %(run)s GROUP BY outcome ORDER BY outcome

-- name: left_of_run
-- The letters of a run that were settled and not counted, or (outcome null) still wait.
SELECT p.stream, r."offset", r.position, r.outcome
FROM analytics.replays AS r JOIN analytics.partitions AS p USING (partition)
WHERE r.run = %(run)s AND (r.outcome IS NULL OR r.outcome NOT IN ('accepted', 'duplicate'))
ORDER BY r.partition, r."offset", r.position
LIMIT %(limit)s

-- name: owners
-- The partitions in which letters of a run still wait, and the seconds since a worker last committed there.
SELECT partition, stream, EXTRACT(EPOCH FROM now() - updated_at)::float8
FROM analytics.partitions
WHERE partition IN (SELECT partition FROM analytics.replays WHERE run = %(run)s AND settled_at IS NULL)
ORDER BY partition

-- name: standing
-- The newest broker time of each partition in microseconds, and the hour from which on its ids are complete.
SELECT partition, stream, COALESCE((EXTRACT(EPOCH FROM GREATEST(newest_broker_time, broker_time)) * 1000000)::bigint, 0),
    COALESCE((EXTRACT(EPOCH FROM ids_from) / 3600)::bigint, 0)
FROM analytics.partitions ORDER BY partition

-- name: day_sums
-- The sums that a partition has counted for one org in one UTC day. None of them may pass 2^63 - 1.
SELECT COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), COALESCE(SUM(cost_microcents), 0),
    COALESCE(SUM(latency_sum_ms), 0)
FROM analytics.usage_day WHERE partition = %(partition)s AND org_id = %(org_id)s AND bucket_start = %(day)s
