-- name: standings
-- The partitions of some orgs, with their watermarks, the orgs' last event and rollup there, and how far they are counted.
SELECT o.org_id, o.partition, p.watermark, o.last_event_at, o.last_rollup_at, p.counted_through
FROM analytics.orgs_seen AS o
LEFT JOIN analytics.partition_watermarks AS p ON p.partition = o.partition
WHERE o.org_id = ANY(%(org_ids)s)

-- name: standings_of_models
-- The partitions of an org's models, by model, after a given model. A model has at most one row in each partition of
-- the org, so ``rows`` is a number of models times the number of the org's partitions.
SELECT m.model_id, m.partition, p.watermark, m.last_event_at, m.last_rollup_at, p.counted_through
FROM analytics.models_seen AS m
LEFT JOIN analytics.partition_watermarks AS p ON p.partition = m.partition
WHERE m.org_id = %(org_id)s AND (%(after)s::uuid IS NULL OR m.model_id > %(after)s)
ORDER BY m.model_id, m.partition
LIMIT %(rows)s

-- name: standings_of_chosen
-- The partitions of some of an org's models.
SELECT m.model_id, m.partition, p.watermark, m.last_event_at, m.last_rollup_at, p.counted_through
FROM analytics.models_seen AS m
LEFT JOIN analytics.partition_watermarks AS p ON p.partition = m.partition
WHERE m.org_id = %(org_id)s AND m.model_id = ANY(%(models)s)

-- name: watermarks
-- The watermark of every partition that is not retired.
SELECT partition, watermark FROM analytics.partition_watermarks WHERE retired_at IS NULL

-- name: orgs
-- A page of the orgs, by id: of all, or of those that the caller may see.
SELECT DISTINCT org_id FROM analytics.orgs_seen
WHERE (%(after)s::uuid IS NULL OR org_id > %(after)s)
    AND (%(seen_by)s::uuid[] IS NULL OR org_id = ANY(%(seen_by)s))
ORDER BY org_id
LIMIT %(limit)s

-- name: labels
-- The labels of some of an org's models, or of its first models by id: those of the newest event of any partition.
SELECT DISTINCT ON (model_id) model_id::text, provider, model_name FROM analytics.models_seen
WHERE org_id = %(org_id)s AND (%(labelled)s::uuid[] IS NULL OR model_id = ANY(%(labelled)s)) AND labelled_at > 'epoch'
ORDER BY model_id, labelled_at DESC, provider COLLATE "C" DESC, model_name COLLATE "C" DESC
LIMIT %(labels_max)s

-- name: models
-- A page of an org's models, by id.
SELECT model_id AS key, min(first_event_at) AS first_event_at, max(last_event_at) AS last_event_at
FROM analytics.models_seen
WHERE org_id = %(org_id)s AND (%(after)s::uuid IS NULL OR model_id > %(after)s)
GROUP BY model_id
ORDER BY model_id
LIMIT %(limit)s

-- name: clients
-- A page of an org's clients, by id in byte order.
SELECT client_id COLLATE "C" AS key, min(first_event_at) AS first_event_at, max(last_event_at) AS last_event_at
FROM analytics.clients_seen
WHERE org_id = %(org_id)s AND (%(after)s::text IS NULL OR client_id COLLATE "C" > %(after)s)
GROUP BY client_id COLLATE "C"
ORDER BY client_id COLLATE "C"
LIMIT %(limit)s

-- name: mine
-- The partitions of an org, for the queries about what is counted since when: was the newest event counted by a worker
-- that notes this, and the first whole hour after the last event of a retired partition.
SELECT p.partition, p.accepted = p.counted_by_dimensions AS is_counted, CASE WHEN p.retired_at IS NOT NULL THEN
    date_trunc('hour', COALESCE(GREATEST(p.newest_broker_time, p.broker_time), 'epoch') + interval '5 minutes', 'UTC')
        + interval '1 hour' END AS ended
FROM analytics.orgs_seen AS o JOIN analytics.partitions AS p USING (partition)
WHERE o.org_id = %(org_id)s

-- name: dimensions
-- The dimensions that are set, with the time from which on each is complete for an org. The time is null while a
-- partition of the org does not count the dimension: its worker does not know it yet, has another source for it, or
-- is of a version without dimensions. A retired partition without the dimension is complete after its last event.
WITH mine AS (
{mine}
), named AS (
    SELECT name, max(source) AS source FROM analytics.dimensions GROUP BY name HAVING count(DISTINCT source) = 1
)
SELECT n.name, n.source, CASE WHEN bool_and(m.partition IS NULL OR s.since IS NOT NULL)
    THEN COALESCE(max(s.since), 'epoch') END AS since
FROM named AS n
LEFT JOIN mine AS m ON true
LEFT JOIN analytics.dimensions AS d ON d.name = n.name AND d.partition = m.partition
CROSS JOIN LATERAL (SELECT COALESCE(CASE WHEN m.is_counted THEN d.since END, m.ended) AS since) AS s
GROUP BY n.name, n.source
ORDER BY n.name

-- name: split_hours
-- The hours of the day that every partition of an org counts by the quarter, with the time from which on each is
-- complete for the org: as dimensions.
WITH mine AS (
{mine}
)
SELECT h.hour, COALESCE(max(s.since), 'epoch') AS since
FROM (SELECT DISTINCT hour FROM analytics.split_hours) AS h
LEFT JOIN mine AS m ON true
LEFT JOIN analytics.split_hours AS d ON d.hour = h.hour AND d.partition = m.partition
CROSS JOIN LATERAL (SELECT COALESCE(CASE WHEN m.is_counted THEN d.since END, m.ended) AS since) AS s
GROUP BY h.hour
HAVING bool_and(m.partition IS NULL OR s.since IS NOT NULL)

-- name: values
-- A page of the values of a dimension that an org has, in byte order.
SELECT value COLLATE "C" AS key, min(first_event_at) AS first_event_at, max(last_event_at) AS last_event_at
FROM analytics.values_seen
WHERE org_id = %(org_id)s AND dimension = %(dimension)s AND (%(after)s::text IS NULL OR value COLLATE "C" > %(after)s)
GROUP BY value COLLATE "C"
ORDER BY value COLLATE "C"
LIMIT %(limit)s
