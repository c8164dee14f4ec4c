"""Ids as the servers read them from a request or a credential."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def uuid(text: str) -> UUID:
    """A UUID in the canonical form only, so that an org has one spelling in logs, caches and signatures.

    Raises:
        ValueError: the text has another form.
    """
    if not _UUID.fullmatch(text):
        raise ValueError("expected a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    return UUID(text)


def folded(text: str) -> str:
    """A UUID as events have it, in lower case; any other text as it is."""
    return text.lower() if _UUID.fullmatch(text) else text
