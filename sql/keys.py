"""API keys: their form, and the only thing of them that is kept.

A key is ``ssk_{prefix}_{secret}``: the prefix finds its row, the secret has 256 random bits. The database has
an HMAC-SHA256 of the whole key under API_KEY_SECRET, which the database does not know: a stolen table can
neither be used nor tried out, and a row that somebody slips into it opens nothing. A slow hash would add
nothing, because there is no guessing 256 bits.

Shared by the command that makes keys (`pipeline.keys`) and the API that checks them.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Final

ROLES: Final = (
    "analytics:usage:read",
    "analytics:reliability:read",
    "analytics:exports:create",
    "analytics:exports:read",
    "analytics:exports:download",
)
"""What a key may be allowed: a key belongs to one org, so never what spans orgs."""

KEY: Final = re.compile(r"ssk_([0-9a-f]{12})_([0-9A-Za-z_-]{43})", re.ASCII)


def new_key() -> tuple[str, str]:
    """(prefix, key). The key is shown once and kept nowhere."""
    prefix = secrets.token_hex(6)
    return prefix, f"ssk_{prefix}_{secrets.token_urlsafe(32)}"


def prefix_of(key: str) -> str | None:
    """The prefix of what may be a key; None of what cannot be one."""
    match = KEY.fullmatch(key)
    return match[1] if match else None


def digest(key: str, secret: bytes) -> bytes:
    """What is stored of a key."""
    return hmac.digest(secret, key.encode(), "sha256")


def matches(key: str, secret: bytes, stored: bytes) -> bool:
    """Is this the key that was stored? Takes the same time however much of it is right."""
    return hmac.compare_digest(digest(key, secret), stored)
