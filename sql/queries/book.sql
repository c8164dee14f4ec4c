-- name: version
-- The newest version of the book; 0 if the book is empty.
SELECT COALESCE(max(id), 0) FROM analytics.prices

-- name: book
-- The newest version of the book, and what the version asked for says about the models of some orgs in a range: the
-- sheets as JSON, and the minutes (since 1970) at which a sheet begins or ends. The rates are whole numbers of 10^-20
-- dollars. Those of the cached kinds and of reasoning are what is added to the rate of their parent, because their
-- tokens are part of its tokens. ``excepted`` are the orgs that have sheets of their own in the place of everyone's.
WITH names AS MATERIALIZED (
    SELECT DISTINCT provider, model_name FROM analytics.model_labels
    WHERE org_id = ANY(%(org_ids)s::uuid[]) AND provider <> '' AND model_name <> ''
),
known AS MATERIALIZED (
    SELECT s.* FROM analytics.price_sheets AS s JOIN names USING (provider, model_name)
    WHERE s.org_id IS NULL OR s.org_id = ANY(%(org_ids)s::uuid[])
),
older AS MATERIALIZED (
    SELECT s.* FROM analytics.price_sheets_at(
        %(price_version)s::bigint,
        (SELECT COALESCE(array_agg(provider ORDER BY provider, model_name), '{}') FROM names),
        (SELECT COALESCE(array_agg(model_name ORDER BY provider, model_name), '{}') FROM names),
        %(org_ids)s::uuid[]
    ) AS s
    WHERE %(price_version)s::bigint < (SELECT max(id) FROM analytics.prices)
),
sheets AS MATERIALIZED (
    SELECT * FROM older
    UNION ALL
    SELECT * FROM known
    WHERE COALESCE(%(price_version)s::bigint >= (SELECT max(id) FROM analytics.prices), true)
),
shown AS MATERIALIZED (
    SELECT s.org_id, s.provider, s.model_name, s.service_tier, s.context_from,
        COALESCE(s.context_to, 9223372036854775807) AS context_to, s.valid_from,
        COALESCE(s.valid_to, 'infinity') AS valid_to,
        trim_scale(s.request * 100000000000000000000) AS request,
        trim_scale(s.input * 100000000000000) AS input,
        trim_scale(s.output * 100000000000000) AS output,
        trim_scale((s.cache_read - s.input) * 100000000000000) AS cache_read,
        trim_scale((s.cache_write - s.input) * 100000000000000) AS cache_write,
        trim_scale((s.cache_write_1h - s.input) * 100000000000000) AS cache_write_1h,
        trim_scale((s.reasoning - s.output) * 100000000000000) AS reasoning,
        ARRAY(
            SELECT DISTINCT o.org_id FROM sheets AS o
            WHERE s.org_id IS NULL AND o.org_id IS NOT NULL
                AND o.provider = s.provider AND o.model_name = s.model_name
        ) AS excepted
    FROM sheets AS s
    WHERE s.valid_from < %(priced_to)s::timestamptz
        AND (s.valid_to IS NULL OR s.valid_to > %(priced_from)s::timestamptz)
)
SELECT (SELECT COALESCE(max(id), 0) FROM analytics.prices),
    (SELECT json_agg(shown)::text FROM shown),
    ARRAY(
        SELECT DISTINCT extract(epoch FROM at)::bigint / 60
        FROM (SELECT valid_from AS at FROM shown UNION ALL SELECT valid_to FROM shown) AS m
        WHERE at > %(priced_from)s::timestamptz AND at < %(priced_to)s::timestamptz
    )

-- name: rates
-- What the sheets say of each model and rate class of some orgs, for the rows of a query to be joined with.
-- ``{of}`` says whose sheets they are.
SELECT l.org_id, l.model_id, c.id AS rate_class, s.valid_from, s.valid_to, s.request, s.input, s.output, s.cache_read,
    s.cache_write, s.cache_write_1h, s.reasoning
FROM analytics.model_labels AS l
JOIN json_to_recordset(%(sheets)s::json) AS s (
    org_id uuid, provider text, model_name text, service_tier text, context_from bigint, context_to bigint,
    valid_from timestamptz, valid_to timestamptz, request numeric, input numeric, output numeric, cache_read numeric,
    cache_write numeric, cache_write_1h numeric, reasoning numeric, excepted uuid[]
) ON s.provider = l.provider AND s.model_name = l.model_name
    AND {of}
JOIN analytics.rate_classes AS c
    ON c.service_tier = s.service_tier AND c.input_from >= s.context_from AND c.input_from < s.context_to
WHERE l.org_id = ANY(%(org_ids)s::uuid[])

-- name: rate_classes
-- What each rate class means, for rows that are priced outside of the database: a tier, and where its sizes begin.
SELECT id, service_tier, input_from FROM analytics.rate_classes

-- name: no_loops
-- The planner cannot know how many sheets there are. A loop over them for each row of usage would take seconds.
SET LOCAL enable_nestloop = off
