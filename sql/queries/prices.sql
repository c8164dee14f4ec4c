-- name: lock
-- Let other writers of the book wait until this transaction ends. The trigger of the table takes the same lock.
SELECT pg_advisory_xact_lock(91635270734163)

-- name: version
-- The newest version of the book; 0 if the book is empty.
SELECT COALESCE(max(id), 0) FROM analytics.prices

-- name: entries
-- The rows of the book, in order. ``retracted_by`` is the row that retracts a row, at the version asked for.
SELECT p.id, p.provider, p.model_name, p.service_tier, p.context_from, p.kind, p.rate, p.valid_from, p.valid_to,
    p.org_id, p.source, p.basis, p.recorded_by, p.recorded_at, p.retracts, r.id AS retracted_by
FROM analytics.prices AS p
LEFT JOIN analytics.prices AS r ON r.retracts = p.id AND r.id <= %(version)s
WHERE p.id <= %(version)s AND p.id > %(after)s
    AND (%(seen_by)s::uuid[] IS NULL OR p.org_id IS NULL OR p.org_id = ANY(%(seen_by)s))
    AND (%(live)s::boolean IS FALSE OR (p.retracts IS NULL AND r.id IS NULL))
    AND (%(provider)s::text IS NULL OR p.provider = %(provider)s)
    AND (%(model_name)s::text IS NULL OR p.model_name = %(model_name)s)
    AND (%(service_tier)s::text IS NULL OR p.service_tier = %(service_tier)s)
    AND (%(kind)s::text IS NULL OR p.kind = %(kind)s)
    AND (%(source)s::text IS NULL OR p.source = %(source)s)
    AND (%(org_id)s::uuid IS NULL OR p.org_id = %(org_id)s)
    AND (%(at)s::timestamptz IS NULL
        OR p.valid_from <= %(at)s AND (p.valid_to IS NULL OR %(at)s < p.valid_to))
ORDER BY p.id
LIMIT %(limit)s

-- name: append
-- New prices, in one statement, so that the sheets are rewritten once.
COPY analytics.prices (provider, model_name, service_tier, context_from, kind, rate, valid_from, valid_to, org_id,
    source, basis, recorded_by) FROM STDIN

-- name: retract
-- Retract a price. The trigger copies the key of the price into the row.
INSERT INTO analytics.prices (retracts, source, basis, recorded_by)
VALUES (%(id)s, %(source)s, %(basis)s, %(recorded_by)s)
RETURNING id

-- name: retract_after
-- Retract every price that was recorded after a version, and not after another, and still counts, in one statement.
INSERT INTO analytics.prices (retracts, source, basis, recorded_by)
SELECT p.id, %(source)s, %(basis)s, %(recorded_by)s
FROM analytics.prices AS p
WHERE p.id > %(after)s AND p.id <= %(up_to)s AND p.retracts IS NULL
    AND NOT EXISTS (SELECT FROM analytics.prices AS r WHERE r.retracts = p.id)
ORDER BY p.id

-- name: audit
-- Record who changed the book, in the transaction that does so.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
VALUES (now(), %(actor)s, %(action)s, %(org_id)s, 'done', %(detail)s)

-- name: sheets
-- What the book says at a version: of all models, or of the named ones.
SELECT org_id, provider, model_name, service_tier, context_from, context_to, valid_from, valid_to, input, output,
    cache_read, cache_write, cache_write_1h, reasoning, request
FROM analytics.price_sheets_at(%(version)s, %(providers)s, %(model_names)s)
WHERE %(org_id)s::uuid IS NULL OR org_id IS NULL OR org_id = %(org_id)s
ORDER BY provider COLLATE "C", model_name COLLATE "C", org_id NULLS FIRST, service_tier, context_from, valid_from

-- name: named
-- The providers that have a model of this name.
SELECT DISTINCT provider FROM analytics.prices
WHERE model_name = %(model_name)s AND (%(provider)s::text IS NULL OR provider = %(provider)s)
ORDER BY provider

-- name: no_loops
-- For the diff: the planner cannot know how many sheets there are, and a loop over them takes minutes.
SET LOCAL enable_nestloop = off

-- name: diff
-- What calls of a range of hours cost at two versions, by org and model: only models whose cost or unpriced calls differ.
WITH models AS (SELECT array_agg(provider) AS providers, array_agg(model_name) AS names
    FROM (
        SELECT DISTINCT provider, model_name FROM analytics.model_labels
        WHERE %(orgs)s::uuid[] IS NULL OR org_id = ANY(%(orgs)s)
    ) AS m),
older AS MATERIALIZED (
    SELECT s AS sheet, s.* FROM models, analytics.price_sheets_at(%(before)s, providers, names, %(orgs)s) AS s),
newer AS MATERIALIZED (
    SELECT s AS sheet, s.* FROM models, analytics.price_sheets_at(%(after)s, providers, names, %(orgs)s) AS s),
changed AS (
    SELECT DISTINCT provider, model_name FROM (
        (TABLE older EXCEPT TABLE newer) UNION ALL (TABLE newer EXCEPT TABLE older)
    ) AS c
),
usage AS MATERIALIZED (
    SELECT u.org_id, u.model_id, u.bucket_start, u.invocations, u.input_tokens, u.output_tokens,
        u.cache_read_tokens, u.cache_write_tokens, u.cache_write_1h_tokens, u.reasoning_tokens, u.unestimated,
        u.cost_microcents, l.provider, l.model_name, c.service_tier, c.input_from
    FROM analytics.usage_hour AS u
    JOIN analytics.rate_classes AS c ON c.id = u.rate_class
    JOIN (
        SELECT l.* FROM analytics.model_labels AS l
        JOIN changed AS m ON m.provider = l.provider AND m.model_name = l.model_name
    ) AS l ON l.org_id = u.org_id AND l.model_id = u.model_id
    WHERE u.bucket_start >= %(start)s AND u.bucket_start < %(end)s
        AND (%(orgs)s::uuid[] IS NULL OR u.org_id = ANY(%(orgs)s))
),
older_own AS (SELECT DISTINCT org_id, provider, model_name FROM older WHERE org_id IS NOT NULL),
newer_own AS (SELECT DISTINCT org_id, provider, model_name FROM newer WHERE org_id IS NOT NULL),
priced AS (
    SELECT u.org_id, u.model_id, u.provider, u.model_name, u.invocations, u.unestimated,
        CASE WHEN u.unestimated < u.invocations THEN u.cost_microcents * 0.00000001 END AS estimate,
        CASE WHEN (o.sheet).input IS NOT NULL THEN analytics.spend(o.sheet, u.input_tokens, u.output_tokens,
            u.cache_read_tokens, u.cache_write_tokens, u.cache_write_1h_tokens, u.reasoning_tokens,
            u.invocations) END AS before,
        CASE WHEN (n.sheet).input IS NOT NULL THEN analytics.spend(n.sheet, u.input_tokens, u.output_tokens,
            u.cache_read_tokens, u.cache_write_tokens, u.cache_write_1h_tokens, u.reasoning_tokens,
            u.invocations) END AS after
    FROM usage AS u
    LEFT JOIN older_own AS oo USING (org_id, provider, model_name)
    LEFT JOIN newer_own AS no USING (org_id, provider, model_name)
    LEFT JOIN older AS o ON o.provider = u.provider AND o.model_name = u.model_name
        AND o.service_tier = u.service_tier
        AND o.org_id IS NOT DISTINCT FROM CASE WHEN oo IS NOT NULL THEN u.org_id END
        AND o.context_from <= u.input_from AND (o.context_to IS NULL OR u.input_from < o.context_to)
        AND o.valid_from <= u.bucket_start AND (o.valid_to IS NULL OR u.bucket_start < o.valid_to)
    LEFT JOIN newer AS n ON n.provider = u.provider AND n.model_name = u.model_name
        AND n.service_tier = u.service_tier
        AND n.org_id IS NOT DISTINCT FROM CASE WHEN no IS NOT NULL THEN u.org_id END
        AND n.context_from <= u.input_from AND (n.context_to IS NULL OR u.input_from < n.context_to)
        AND n.valid_from <= u.bucket_start AND (n.valid_to IS NULL OR u.bucket_start < n.valid_to)
)
SELECT org_id, model_id, provider, model_name, sum(invocations)::bigint AS invocations,
    sum(COALESCE(before, estimate)) AS before, sum(COALESCE(after, estimate)) AS after,
    COALESCE(sum(unestimated) FILTER (WHERE before IS NULL), 0)::bigint AS unpriced_before,
    COALESCE(sum(unestimated) FILTER (WHERE after IS NULL), 0)::bigint AS unpriced_after
FROM priced
GROUP BY org_id, model_id, provider, model_name
HAVING sum(COALESCE(before, estimate)) IS DISTINCT FROM sum(COALESCE(after, estimate))
    OR COALESCE(sum(unestimated) FILTER (WHERE before IS NULL), 0)
        <> COALESCE(sum(unestimated) FILTER (WHERE after IS NULL), 0)
ORDER BY org_id, provider COLLATE "C", model_name COLLATE "C", model_id

-- name: past
-- How many of some prices (arrays side by side) hold for times from which there are calls of their models; of how many
-- models and orgs; and the first and the last such time.
WITH changed AS (
    SELECT * FROM unnest(%(org_id)s::uuid[], %(provider)s::text[], %(model_name)s::text[], %(valid_from)s::timestamptz[],
        %(valid_to)s::timestamptz[]) WITH ORDINALITY AS c (org_id, provider, model_name, valid_from, valid_to, number)
),
seen AS (
    SELECT l.org_id, l.provider, l.model_name, min(m.first_event_at) AS first_event_at,
        max(m.last_event_at) AS last_event_at
    FROM analytics.model_labels AS l JOIN analytics.models_seen AS m USING (org_id, model_id)
    WHERE l.provider <> '' AND l.model_name <> ''
    GROUP BY l.org_id, l.provider, l.model_name
),
met AS (
    SELECT c.*, s.org_id AS of_org, s.provider AS of_provider, s.model_name AS of_model, s.first_event_at, s.last_event_at
    FROM changed AS c JOIN seen AS s ON s.provider = c.provider AND s.model_name = c.model_name
    WHERE c.org_id IS NULL OR c.org_id = s.org_id
    UNION ALL
    SELECT c.*, s.org_id, s.provider, s.model_name, s.first_event_at, s.last_event_at
    FROM changed AS c JOIN seen AS s ON s.org_id = c.org_id
    WHERE (c.provider = '' OR c.model_name = '') AND c.provider IN ('', s.provider) AND c.model_name IN ('', s.model_name)
)
SELECT count(DISTINCT number), count(DISTINCT (of_provider, of_model)), count(DISTINCT of_org),
    min(GREATEST(valid_from, first_event_at)), max(LEAST(valid_to, last_event_at))
FROM met
WHERE valid_from <= last_event_at AND (valid_to IS NULL OR valid_to > first_event_at)

-- name: unlabelled
-- Models whose events name neither provider nor model, so that no price can be found.
SELECT model_id, count(DISTINCT org_id) AS orgs, max(last_event_at) AS last_event_at
FROM analytics.models_seen AS m
JOIN analytics.model_labels AS l USING (org_id, model_id)
WHERE l.provider = '' OR l.model_name = ''
GROUP BY model_id
ORDER BY last_event_at DESC, model_id

-- name: unpriced
-- Models with names that no sheet prices at the hour of their last event, at any tier and size. ``others`` are
-- providers that have a model of the same name with a price.
SELECT l.provider, l.model_name, count(DISTINCT l.org_id) AS orgs, max(m.last_event_at) AS last_event_at,
    ARRAY(
        SELECT DISTINCT s.provider FROM analytics.price_sheets AS s
        WHERE s.org_id IS NULL AND s.model_name = l.model_name AND s.provider <> l.provider
        ORDER BY s.provider LIMIT 3
    ) AS others
FROM analytics.models_seen AS m
JOIN analytics.model_labels AS l USING (org_id, model_id)
WHERE l.provider <> '' AND l.model_name <> ''
    AND NOT EXISTS (
        SELECT FROM analytics.price_sheets AS s
        WHERE s.provider = l.provider AND s.model_name = l.model_name
            AND (s.org_id IS NULL OR s.org_id = l.org_id)
            AND s.valid_from <= m.last_event_at AND (s.valid_to IS NULL OR m.last_event_at < s.valid_to)
    )
GROUP BY l.provider, l.model_name
ORDER BY l.provider COLLATE "C", l.model_name COLLATE "C"

-- name: unpriced_calls
-- Calls since a day that the book does not price, of models with names: the first day with such calls, how many there
-- are, how many of them nobody knows the cost of, and the estimate of the others. A day that the book prices in part is
-- looked at by the hour.
WITH days AS MATERIALIZED (
    SELECT org_id, bucket_start, model_id, rate_class, provider, model_name, service_tier, invocations, unpriced, cost,
        basis
    FROM analytics.spend_day
    WHERE bucket_start >= %(since)s AND (basis <> 'book' OR unpriced > 0) AND provider <> '' AND model_name <> ''
),
calls AS (
    SELECT org_id, bucket_start, provider, model_name, service_tier, invocations, unpriced, cost
    FROM days WHERE basis IN ('estimate', 'none')
    UNION ALL
    SELECT d.org_id, d.bucket_start, d.provider, d.model_name, d.service_tier, h.invocations, h.unpriced, h.cost
    FROM days AS d
    CROSS JOIN LATERAL (
        SELECT h.invocations, h.unpriced, h.cost FROM analytics.spend_hour AS h
        WHERE h.org_id = d.org_id AND h.model_id = d.model_id AND h.rate_class = d.rate_class
            AND h.bucket_start >= d.bucket_start AND h.bucket_start < d.bucket_start + interval '24 hours'
            AND h.basis <> 'book'
    ) AS h
    WHERE d.basis IN ('book', 'mixed')
)
SELECT provider, model_name, service_tier, count(DISTINCT org_id) AS orgs, min(bucket_start) AS first_day,
    sum(invocations)::bigint AS invocations, sum(unpriced)::bigint AS unpriced,
    trim_scale(COALESCE(sum(cost), 0)) AS cost
FROM calls
GROUP BY provider, model_name, service_tier
ORDER BY provider COLLATE "C", model_name COLLATE "C", service_tier

-- name: boundaries
-- Boundaries of the book inside a rate class that has rows of the model: some of its calls have the wrong price.
SELECT DISTINCT s.provider, s.model_name, s.service_tier, s.context_from, c.id, c.input_from, c.input_to
FROM (
    SELECT DISTINCT l.provider, l.model_name, u.rate_class
    FROM analytics.usage_day AS u
    JOIN analytics.model_labels AS l USING (org_id, model_id)
) AS used
JOIN analytics.rate_classes AS c ON c.id = used.rate_class
JOIN analytics.price_sheets AS s ON s.provider = used.provider AND s.model_name = used.model_name
    AND s.service_tier = c.service_tier
    AND s.context_from > c.input_from AND (c.input_to IS NULL OR s.context_from <= c.input_to)
ORDER BY 1, 2, 3, 4, 5

-- name: unseen
-- Models that no event has named, and that somebody here set a price of: how many prices, and from where.
SELECT provider, model_name, count(*) AS prices, array_agg(DISTINCT source ORDER BY source) AS sources
FROM analytics.prices AS p
WHERE retracts IS NULL AND kind <> 'discount' AND source <> ALL(%(public)s)
    AND NOT EXISTS (SELECT FROM analytics.prices AS r WHERE r.retracts = p.id)
    AND (provider, model_name) NOT IN (SELECT provider, model_name FROM analytics.models_seen)
GROUP BY provider, model_name
ORDER BY provider COLLATE "C", model_name COLLATE "C"

-- name: disagreements
-- Rates of everyone's that are valid at a time, of which two sources differ by more than a share: of models that events
-- have named, or of all.
SELECT provider, model_name, service_tier, context_from, kind, array_agg(source ORDER BY id),
    array_agg(rate ORDER BY id)
FROM (
    SELECT DISTINCT ON (p.provider, p.model_name, p.service_tier, p.context_from, p.kind, p.source) p.*
    FROM analytics.prices AS p
    WHERE p.org_id IS NULL AND p.retracts IS NULL
        AND NOT EXISTS (SELECT FROM analytics.prices AS r WHERE r.retracts = p.id)
        AND (%(everything)s OR (p.provider, p.model_name) IN (SELECT provider, model_name FROM analytics.models_seen))
        AND p.valid_from <= %(at)s AND (p.valid_to IS NULL OR %(at)s < p.valid_to)
    ORDER BY p.provider, p.model_name, p.service_tier, p.context_from, p.kind, p.source, p.id DESC
) AS newest
GROUP BY provider, model_name, service_tier, context_from, kind
HAVING max(rate) > min(rate) * (1 + %(share)s::numeric)
ORDER BY provider COLLATE "C", model_name COLLATE "C", service_tier, context_from, kind
