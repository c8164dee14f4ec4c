"""Short texts that people read: who somebody is, what something is called, how many there are."""

from __future__ import annotations

import unicodedata
from typing import Any, TypeGuard


def is_line(given: Any, chars_max: int) -> TypeGuard[str]:
    """Is it a text of 1 to ``chars_max`` characters that the database can hold, without control characters?

    A lone surrogate cannot be stored. It comes from a byte that is not UTF-8, or from an escape in JSON that
    stands for no character.
    """
    return (
        isinstance(given, str)
        and 1 <= len(given) <= chars_max
        and not any(unicodedata.category(c) in ("Cc", "Cs") for c in given)
    )


def counted(number: int, what: str, plural: str = "") -> str:
    """A number and what it counts: ``1 call``, ``2 calls``."""
    return f"{number} {what if number == 1 else plural or what + 's'}"
