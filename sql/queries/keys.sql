-- name: create
-- Keep the prefix and the digest of a new key.
INSERT INTO analytics.api_keys (prefix, digest, org_id, roles, label, created_at, expires_at)
VALUES (%(prefix)s, %(digest)s, %(org_id)s, %(roles)s, %(label)s, now(), now() + %(valid)s::interval)

-- name: list
-- Every key, or every key of one org, the oldest first.
SELECT prefix, org_id, roles, label, created_at, expires_at, revoked_at, last_used_at
FROM analytics.api_keys
WHERE (%(org_id)s::uuid IS NULL OR org_id = %(org_id)s)
ORDER BY created_at, prefix

-- name: revoke
-- Revoke a key. Idempotent: the time of the first revocation stays.
UPDATE analytics.api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE prefix = %(prefix)s
RETURNING revoked_at

-- name: audit
-- Record who made or revoked which key, in the transaction that does so.
INSERT INTO analytics.audit_log (at, actor, action, org_id, outcome, detail)
SELECT now(), %(actor)s, %(action)s, org_id, 'done', jsonb_build_object('prefix', prefix, 'roles', roles)
FROM analytics.api_keys WHERE prefix = %(prefix)s
