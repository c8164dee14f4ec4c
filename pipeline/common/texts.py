"""Short texts that people read: who somebody is, what something is called, how many there are."""

from __future__ import annotations

import unicodedata
from typing import Any, Final, TypeGuard

MISLEADING: Final = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that end a line or turn around what follows, so that a text shows as another one."""
VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (*range(0xD800, 0xE000), *map(ord, MISLEADING))
}
"""Shows control characters, those that turn the direction of a text, and halves of surrogate pairs, as
escapes: they must not reach a terminal."""
_FILLERS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that show nothing."""
_UNSEEN: Final = ("Cc", "Cf", "Cs", "Mn", "Me", "Zs", "Zl", "Zp")


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


def is_visible(text: str) -> bool:
    """Does the text show anything, without a character that misleads who reads it?"""
    return not MISLEADING.intersection(text) and any(
        c not in _FILLERS and unicodedata.category(c) not in _UNSEEN for c in text
    )


def cut(text: object) -> str:
    """What somebody gave, in a message: at most 100 characters of it."""
    whole = str(text)
    return whole if len(whole) <= 100 else f"{whole[:100]}…"
