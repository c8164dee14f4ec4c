-- name: newest
-- Refused records, the newest offsets first, optionally of one stream and one reason.
SELECT stream, partition, "offset", position, reason, faults, body, rejected_at
FROM analytics.dead_letters
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
ORDER BY rejected_at DESC, partition, "offset" DESC
LIMIT %(limit)s

-- name: count_by_reason
-- How many records were refused, and why.
SELECT reason, count(*) FROM analytics.dead_letters
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
GROUP BY reason ORDER BY reason
