"""API keys: their form, and the digest of a key that the database keeps.

A key is ``ssk_{prefix}_{secret}{tag}``. The prefix finds the key's row. The secret has 256 random bits. The
tag is an HMAC-SHA256 of the rest under API_KEY_SECRET, cut to 128 bits. A made-up key has a wrong tag, so it
is rejected without a look into the database.

The database keeps an HMAC-SHA256 of the whole key under API_KEY_SECRET, and it does not know API_KEY_SECRET.
So nobody can use a stolen table or try keys out on it, and a row that somebody slips into the table opens
nothing. A slow hash would add no safety, because nobody can guess 256 bits.

Keys of version 0.1.0 have no tag. Their prefix has 12 digits instead of 16, which tells the two kinds apart
in the database too. These keys stay valid until they end.

The command that makes keys (`pipeline.admin.keys`) and the servers that check keys share this module.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from typing import Final

EVENTS_WRITE: Final = "analytics:events:write"
"""The role of senders: it admits events at the collector. The API has no route for it."""
ROLES: Final = (
    "analytics:usage:read",
    "analytics:reliability:read",
    "analytics:exports:create",
    "analytics:exports:read",
    "analytics:exports:download",
    "analytics:budgets:read",
    "analytics:budgets:write",
    EVENTS_WRITE,
)
"""The roles that a key can have. A key belongs to one org, so roles that span orgs are not among them."""

KEY: Final = re.compile(r"ssk_([0-9a-f]{16})_([0-9A-Za-z_-]{43})([0-9A-Za-z_-]{22})", re.ASCII)
UNTAGGED: Final = re.compile(r"ssk_([0-9a-f]{12})_([0-9A-Za-z_-]{43})", re.ASCII)
UNTAGGED_PREFIX_CHARS: Final = 12
_TAG_BYTES: Final = 16
_TAG_CHARS: Final = 22


def new_key(secret: bytes) -> tuple[str, str]:
    """Make a key; returns (prefix, key). The key is shown once and kept nowhere."""
    prefix = secrets.token_hex(8)
    body = f"ssk_{prefix}_{secrets.token_urlsafe(32)}"
    return prefix, body + _tag(body, secret)


def prefix_of(key: str) -> str | None:
    """The prefix of a text that has the form of a key. None for any other text."""
    match = KEY.fullmatch(key) or UNTAGGED.fullmatch(key)
    return match[1] if match else None


def is_untagged(key: str) -> bool:
    """Does the text have the form of a key of 0.1.0? Only the database can tell it from a made-up key."""
    return UNTAGGED.fullmatch(key) is not None


def has_tag(key: str, secret: bytes) -> bool:
    """Was this key made with our secret? Only the database knows whether the key is still valid."""
    if not KEY.fullmatch(key):
        return False
    body, tag = key[:-_TAG_CHARS], key[-_TAG_CHARS:]
    return hmac.compare_digest(tag, _tag(body, secret))


def digest(key: str, secret: bytes) -> bytes:
    """The digest of a key that the database stores."""
    return hmac.digest(secret, key.encode(), "sha256")


def matches(key: str, secret: bytes, stored: bytes) -> bool:
    """Is this the key that was stored? The answer takes the same time for every wrong key."""
    return hmac.compare_digest(digest(key, secret), stored)


def _tag(body: str, secret: bytes) -> str:
    # The message differs from every whole key, so a tag says nothing about a stored digest.
    mac = hmac.digest(secret, b"tag of " + body.encode(), "sha256")[:_TAG_BYTES]
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
