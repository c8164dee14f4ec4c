"""The keys of WEBHOOK_KEY: how a key is made of the setting's text, and how a sealed text names its key.

A sealed text begins with a version and the id of its key. The API seals and opens such texts
(`api.webhooks.sealed`); the doctor only compares the ids.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION: Final = b"\x01"
_ID_BYTES: Final = 4
HEAD_BYTES: Final = len(_VERSION) + _ID_BYTES


def derived(key: str) -> bytes:
    """The key of AES-256 for this text of the setting."""
    made = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"spendstream webhook endpoints")
    return made.derive(key.encode())


def head_of(key: str) -> bytes:
    """What each text begins with that was sealed with this key: a version, and an id of the key."""
    return _VERSION + hashlib.sha256(b"spendstream webhook key id " + derived(key)).digest()[:_ID_BYTES]
