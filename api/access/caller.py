"""Who asks: a subject, its roles and its orgs, whichever credential said so."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final
from uuid import UUID

ADMIN: Final = "admin"
SUBJECT_CHARS_MAX: Final = 200
SUBJECT_FORM: Final = f"text of 1 to {SUBJECT_CHARS_MAX} characters without control characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """``orgs`` None: this caller's own orgs are all of them (AUTH_MODE none)."""

    subject: str
    roles: frozenset[str]
    orgs: frozenset[UUID] | None

    def has(self, role: str) -> bool:
        return role in self.roles or ADMIN in self.roles

    def owns(self, org_id: UUID) -> bool:
        return self.orgs is None or org_id in self.orgs


def is_subject(text: str) -> bool:
    """Can this name a caller, in the log and in the database too? A lone surrogate is a byte that was no
    UTF-8, or an escape of JSON that stands for no character."""
    return 1 <= len(text) <= SUBJECT_CHARS_MAX and not any(
        unicodedata.category(c) in ("Cc", "Cs") for c in text
    )
