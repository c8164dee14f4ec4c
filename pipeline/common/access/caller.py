"""The caller: a subject with its roles and orgs, whichever credential named it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from pipeline.common.texts import is_line

ADMIN: Final = "admin"
SUBJECT_CHARS_MAX: Final = 200
SUBJECT_FORM: Final = f"text of 1 to {SUBJECT_CHARS_MAX} characters without control characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. ``orgs`` None: every org is the caller's own (AUTH_MODE none)."""

    subject: str
    roles: frozenset[str]
    orgs: frozenset[UUID] | None

    def has(self, role: str) -> bool:
        return role in self.roles or ADMIN in self.roles

    def owns(self, org_id: UUID) -> bool:
        return self.orgs is None or org_id in self.orgs

    @property
    def reaches_all(self) -> bool:
        """Is every org within its reach?"""
        return self.orgs is None or ADMIN in self.roles

    @property
    def sees(self) -> list[UUID] | None:
        """The orgs within its reach, in order. None: all."""
        return None if self.reaches_all or self.orgs is None else sorted(self.orgs)

    def reaches(self, org_id: UUID) -> bool:
        """Is the org its own, or every org within its reach? The role that is needed is another question."""
        return self.owns(org_id) or ADMIN in self.roles


def is_subject(text: str) -> bool:
    """Can this text name a caller, in the log and in the database?"""
    return is_line(text, SUBJECT_CHARS_MAX)
