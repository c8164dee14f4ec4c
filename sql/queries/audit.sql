-- name: newest
-- Rows of the audit log, the newest first. An action is chosen by its whole name, or by the part before a full stop.
SELECT id, at, actor, action, org_id, outcome, detail
FROM analytics.audit_log
WHERE (%(action)s::text IS NULL OR action = %(action)s OR starts_with(action, %(action)s || '.'))
    AND (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s)
    AND (%(actor)s::text IS NULL OR actor = %(actor)s)
    AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
ORDER BY at DESC, id DESC
LIMIT %(limit)s
