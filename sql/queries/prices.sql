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
WHERE p.id <= %(version)s
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

-- name: entry
-- One row of the book, and the row that retracts it.
SELECT p.retracts, r.id FROM analytics.prices AS p
LEFT JOIN analytics.prices AS r ON r.retracts = p.id
WHERE p.id = %(id)s

-- name: retract
-- Retract a price. The trigger copies the key of the price into the row.
INSERT INTO analytics.prices (retracts, source, basis, recorded_by)
VALUES (%(id)s, %(source)s, %(basis)s, %(recorded_by)s)
RETURNING id

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
