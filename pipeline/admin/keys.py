"""Making, listing and revoking the API's keys: ``spendstream keys``. The API itself has no right to do so.

The same transaction records in the audit log who made or revoked the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from pipeline.common import keys
from pipeline.common.actor import actor
from pipeline.common.connect import Session, connect
from sql import queries


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """The stored facts about a key. The key itself is not stored."""

    prefix: str
    org_id: UUID
    roles: list[str]
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


def create(
    database_url: str,
    secret: bytes,
    *,
    org_id: UUID,
    roles: Sequence[str],
    label: str,
    valid_s: float | None,
) -> str:
    """Make a key and return it. The key cannot be shown a second time. Raises `psycopg.Error`."""
    prefix, key = keys.new_key(secret)
    with connect(database_url, _SESSION) as connection:
        connection.execute(
            _KEYS["create"],
            {
                "prefix": prefix,
                "digest": keys.digest(key, secret),
                "org_id": org_id,
                "roles": sorted(set(roles)),
                "label": label,
                "valid": None if valid_s is None else timedelta(seconds=valid_s),
            },
        )
        connection.execute(_KEYS["audit"], {"actor": actor(), "action": "keys.create", "prefix": prefix})
    return key


def listed(database_url: str, *, org_id: UUID | None = None) -> list[KeyRecord]:
    """The keys of one org or of all orgs, with revoked and expired keys. Raises `psycopg.Error`."""
    with connect(database_url, _SESSION) as connection:
        rows = connection.execute(_KEYS["list"], {"org_id": org_id}).fetchall()
    return [KeyRecord(**dict(zip(KeyRecord.__slots__, row, strict=True))) for row in rows]


def revoke(database_url: str, prefix: str) -> datetime | None:
    """Revoke a key; the time of its first revocation. None: there is no such key. Raises `psycopg.Error`."""
    with connect(database_url, _SESSION) as connection:
        row = connection.execute(_KEYS["revoke"], {"prefix": prefix}).fetchone()
        connection.execute(_KEYS["audit"], {"actor": actor(), "action": "keys.revoke", "prefix": prefix})
    return row[0] if row else None


_KEYS = queries.load("keys")
_SESSION = Session(application_name="spendstream-keys")
