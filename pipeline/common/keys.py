"""API keys: their form, and the only thing of them that is kept.

A key is ``ssk_{prefix}_{secret}{tag}``: the prefix finds its row, the secret has 256 random bits, and the tag
is an HMAC-SHA256 of the rest under API_KEY_SECRET, cut to 128 bits. Whoever makes a key up has no tag that
fits, and is turned away without a look into the database.

The database has an HMAC-SHA256 of the whole key under API_KEY_SECRET, which the database does not know: a
stolen table can neither be used nor tried out, and a row that somebody slips into it opens nothing. A slow
hash would add nothing, because there is no guessing 256 bits.

Keys of 0.1.0 have no tag, and a prefix of 12 digits instead of 16, which tells the two kinds apart in the
database too. They stay good until they end.

Shared by the command that makes keys (`pipeline.admin.keys`) and the API that checks them.
"""

from __future__ import annotations

import base64
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

KEY: Final = re.compile(r"ssk_([0-9a-f]{16})_([0-9A-Za-z_-]{43})([0-9A-Za-z_-]{22})", re.ASCII)
UNTAGGED: Final = re.compile(r"ssk_([0-9a-f]{12})_([0-9A-Za-z_-]{43})", re.ASCII)
UNTAGGED_PREFIX_CHARS: Final = 12
_TAG_BYTES: Final = 16
_TAG_CHARS: Final = 22


def new_key(secret: bytes) -> tuple[str, str]:
    """(prefix, key). The key is shown once and kept nowhere."""
    prefix = secrets.token_hex(8)
    body = f"ssk_{prefix}_{secrets.token_urlsafe(32)}"
    return prefix, body + _tag(body, secret)


def prefix_of(key: str) -> str | None:
    """The prefix of what may be a key; None of what cannot be one."""
    match = KEY.fullmatch(key) or UNTAGGED.fullmatch(key)
    return match[1] if match else None


def is_untagged(key: str) -> bool:
    """Has this the form of a key of 0.1.0, which nothing but the database can tell from a made-up one?"""
    return UNTAGGED.fullmatch(key) is not None


def has_tag(key: str, secret: bytes) -> bool:
    """Was this key made with our secret? Whether it is still good is for the database to say."""
    if not KEY.fullmatch(key):
        return False
    body, tag = key[:-_TAG_CHARS], key[-_TAG_CHARS:]
    return hmac.compare_digest(tag, _tag(body, secret))


def digest(key: str, secret: bytes) -> bytes:
    """What is stored of a key."""
    return hmac.digest(secret, key.encode(), "sha256")


def matches(key: str, secret: bytes, stored: bytes) -> bool:
    """Is this the key that was stored? Takes the same time however much of it is right."""
    return hmac.compare_digest(digest(key, secret), stored)


def _tag(body: str, secret: bytes) -> str:
    # Another message than any whole key: a tag says nothing of what is stored.
    mac = hmac.digest(secret, b"tag of " + body.encode(), "sha256")[:_TAG_BYTES]
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
