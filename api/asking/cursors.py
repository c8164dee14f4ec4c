"""Cursors: where a page ended, as opaque signed text.

The signature covers what the cursor was given out for: the route, the org and every parameter but ``limit``.
So a cursor can neither be forged nor be used for another org or another filter. A cursor is good for as long
as the secret stays the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from pipeline.common.errors import ServiceError

_MAC_BYTES: Final = 16
T = TypeVar("T")


class Paged(Protocol):
    """A question that is answered in pages of ``limit``, whose cursors are good for ``bound_to`` alone."""

    @property
    def limit(self) -> int: ...
    @property
    def bound_to(self) -> str: ...


class CursorError(ServiceError):
    """We did not give out this cursor for this request: the caller starts over without it."""


class Cursors:
    """Seals and opens cursors with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, position: Any, bound_to: str) -> str:
        payload = msgspec.json.encode(position)
        mac = self._mac(payload, bound_to)
        return base64.urlsafe_b64encode(mac + payload).rstrip(b"=").decode("ascii")

    def paged(
        self, question: Paged, found: Sequence[T], place: Callable[[T], Any]
    ) -> tuple[Sequence[T], str | None]:
        """The items of a page, and the cursor of the next page; None: there is none.

        ``found`` has one item more than the page may have, if there are so many: with a limit of 50, up to
        51. ``place`` gives the key of an item, after which the next page begins.
        """
        shown = found[: question.limit]
        more = len(found) > len(shown)
        return shown, self.seal(place(shown[-1]), question.bound_to) if more else None

    def open(self, cursor: str, bound_to: str, form: type[T]) -> T:
        """The position, as an instance of ``form``.

        Raises:
            CursorError: the cursor is forged or cut, or was sealed for another request or by another secret.
        """
        try:
            # Strict: base64 has several spellings for the same bytes, and only our spelling is a cursor.
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise CursorError from None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload, bound_to)):
            raise CursorError
        return msgspec.json.decode(payload, type=form)

    def _mac(self, payload: bytes, bound_to: str) -> bytes:
        bound = hashlib.sha256(bound_to.encode()).digest()
        return hmac.digest(self._secret, bound + payload, "sha256")[:_MAC_BYTES]
