-- name: known
-- Has a counted event named a model, been of an org, and had a value of a dimension of the org?
SELECT
    EXISTS (SELECT FROM analytics.models_seen WHERE provider = %(provider)s AND model_name = %(model_name)s),
    EXISTS (SELECT FROM analytics.orgs_seen WHERE org_id = %(org_id)s::uuid),
    EXISTS (
        SELECT FROM analytics.values_seen
        WHERE org_id = %(org_id)s::uuid AND dimension = %(dimension)s AND value = %(value)s
    ) OR EXISTS (
        SELECT FROM analytics.clients_seen
        WHERE %(dimension)s = 'client' AND org_id = %(org_id)s::uuid AND client_id = %(value)s
    )

-- name: names
-- The names of some orgs.
SELECT org_id, name FROM analytics.names WHERE org_id = ANY(%(org_ids)s::uuid[]) AND dimension = '' AND value = ''
