"""The address and the secrets of a webhook, encrypted at rest.

The sender must read a secret to sign with it, so a secret cannot be hashed. It is encrypted with AES-256-GCM
under a key made of WEBHOOK_KEY, which the database does not know. The address is encrypted, too, because an
address of Slack is itself a secret. The id of the webhook is authenticated with the text, so nobody who can
write the table can move the address of one org to another one.

WEBHOOK_KEY may be several keys with commas between them. The first one encrypts, and all of them decrypt.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pipeline.common.errors import ServiceError
from pipeline.common.webhook_keys import HEAD_BYTES, derived, head_of

SECRET_PREFIX: Final = "whsec_"
_NONCE_BYTES: Final = 12
_SECRET_BYTES: Final = 32


class Unreadable(ServiceError):
    """The text was not encrypted with a key of WEBHOOK_KEY, or not for this webhook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret to sign with; ``until`` is when it ends, in seconds since 1970. None: it holds on."""

    text: str = field(repr=False)
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a webhook leads, and the secrets that its messages are signed with, the newest first."""

    url: str = field(repr=False)
    secrets: tuple[Secret, ...]

    def signing(self, now: float) -> list[str]:
        """The secrets that hold now."""
        return [one.text for one in self.secrets if one.until is None or one.until > now]


def new_secret() -> str:
    """A secret in the form of Standard Webhooks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def bytes_of(secret: str) -> bytes:
    """The key of a secret in the form of Standard Webhooks. Raises ValueError if it has another form."""
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a secret is {SECRET_PREFIX} and base64: {error}") from None


class Sealer:
    """Encrypts and decrypts endpoints with the keys of WEBHOOK_KEY."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._ciphers = {head_of(key): AESGCM(derived(key)) for key in keys}
        self._first = head_of(keys[0])

    def seal(self, webhook_id: UUID, endpoint: Endpoint) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, msgspec.json.encode(endpoint), webhook_id.bytes)
        return self._first + nonce + sealed

    def is_newest(self, sealed: bytes) -> bool:
        """Was it encrypted with the first key?"""
        return sealed.startswith(self._first)

    def open(self, webhook_id: UUID, sealed: bytes) -> Endpoint:
        """Raises `Unreadable`."""
        cipher = self._ciphers.get(sealed[:HEAD_BYTES])
        if cipher is None:
            raise Unreadable("it was encrypted with a key that WEBHOOK_KEY does not have")
        begin = HEAD_BYTES + _NONCE_BYTES
        nonce, text = sealed[HEAD_BYTES:begin], sealed[begin:]
        try:
            return msgspec.json.decode(cipher.decrypt(nonce, text, webhook_id.bytes), type=Endpoint)
        except InvalidTag:
            raise Unreadable("it was changed, or encrypted for another webhook") from None
