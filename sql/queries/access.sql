-- name: key_by_prefix
-- The key of a prefix, unless it was revoked.
SELECT prefix, digest, org_id, roles, expires_at, last_used_at FROM analytics.api_keys
WHERE prefix = %(prefix)s AND revoked_at IS NULL

-- name: keys_by_length
-- Every key whose prefix has this length, unless it was revoked: keys of 0.1.0 have shorter prefixes.
SELECT prefix, digest, org_id, roles, expires_at, last_used_at FROM analytics.api_keys
WHERE length(prefix) = %(chars)s AND revoked_at IS NULL

-- name: note_use
-- Note the time at which a key was used, if the stored time is older than a bound. Idempotent by prefix.
UPDATE analytics.api_keys SET last_used_at = %(now)s
WHERE prefix = %(prefix)s AND (last_used_at IS NULL OR last_used_at < %(stale)s)

-- name: audit
-- Record a decision about a caller. There is no RETURNING, because that needs the right to read the log.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
VALUES (%(at)s, %(actor)s, %(action)s, %(org_id)s, %(outcome)s, %(detail)s)
