-- name: turn
-- Wait until no other transaction changes names of the org. So the bound of names holds, and no two transactions wait
-- for one another's rows.
SELECT pg_advisory_xact_lock(hashtextextended('analytics.names ' || %(org_id)s::text, 0))

-- name: set
-- Set or remove names, and record each change in the audit log. Idempotent by (org_id, dimension, value): a name that
-- is as it was is no change. If there were too many names then, nothing is changed, and ``is_room`` is false.
WITH wanted AS (
    SELECT w.value, w.name, n.name AS was
    FROM unnest(%(values)s::text[], %(names)s::text[]) AS w (value, name)
    LEFT JOIN analytics.names AS n
        ON n.org_id = %(org_id)s AND n.dimension = %(dimension)s AND n.value = w.value
), room AS (
    SELECT count(*) + (SELECT count(name) - count(was) FROM wanted) <= %(names_max)s AS is_room
    FROM analytics.names
    WHERE org_id = %(org_id)s AND dimension = %(dimension)s
), changed AS (
    SELECT value, name, was FROM wanted CROSS JOIN room WHERE is_room AND name IS DISTINCT FROM was
), removed AS (
    DELETE FROM analytics.names AS n USING changed AS c
    WHERE n.org_id = %(org_id)s AND n.dimension = %(dimension)s AND n.value = c.value AND c.name IS NULL
), written AS (
    INSERT INTO analytics.names (org_id, dimension, value, name, set_by, set_at)
    SELECT %(org_id)s, %(dimension)s, value, name, %(set_by)s, now() FROM changed WHERE name IS NOT NULL
    ON CONFLICT (org_id, dimension, value) DO UPDATE
        SET name = EXCLUDED.name, set_by = EXCLUDED.set_by, set_at = EXCLUDED.set_at
), audited AS (
    INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
    SELECT now(), %(set_by)s, CASE WHEN name IS NULL THEN 'names.remove' ELSE 'names.set' END, %(org_id)s, 'done',
        jsonb_build_object('dimension', NULLIF(%(dimension)s, ''), 'value', NULLIF(value, ''), 'name', name, 'was', was)
    FROM changed
)
SELECT is_room, (SELECT count(*) FROM changed) FROM room

-- name: dimensions
-- The names of all dimensions that workers count.
SELECT DISTINCT name FROM analytics.dimensions ORDER BY name

-- name: of_actors
-- Are the values of a dimension the ids of actors?
SELECT EXISTS (SELECT FROM analytics.dimensions WHERE name = %(dimension)s AND source = 'actorId')

-- name: of_orgs
-- The names of some orgs.
SELECT org_id, name FROM analytics.names WHERE org_id = ANY(%(org_ids)s) AND dimension = '' AND value = ''

-- name: of_org
-- The name of an org, and then those of some values of one of its dimensions, or of the first values in byte order.
SELECT dimension, value, name FROM analytics.names
WHERE org_id = %(org_id)s AND (
    dimension = ''
    OR dimension = %(named_dimension)s AND (%(named)s::text[] IS NULL OR value = ANY(%(named)s))
)
ORDER BY dimension COLLATE "C", value COLLATE "C"
LIMIT %(names_max)s

-- name: page
-- Names of an org or of all, of a dimension or of all (those of orgs themselves have the dimension '').
SELECT org_id, dimension, value, name, set_by, set_at FROM analytics.names
WHERE (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s)
    AND (%(dimension)s::text IS NULL OR dimension = %(dimension)s)
ORDER BY org_id, dimension COLLATE "C", value COLLATE "C"
LIMIT %(limit)s

-- name: register
-- Give names to orgs that have none. Idempotent by (org_id, dimension, value). Without a conflict target the role needs
-- no right to read names.
INSERT INTO analytics.names (org_id, dimension, value, name, set_by, set_at)
SELECT org_id, '', '', name, %(set_by)s, now()
FROM unnest(%(org_ids)s::uuid[], %(names)s::text[]) AS given (org_id, name)
ON CONFLICT DO NOTHING
