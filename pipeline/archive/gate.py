"""What the worker asks before it writes accepted events for the archive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ArchiveGate:
    """Whether accepted events go to the archive's outbox; the archiver closes it at its bound."""

    full: bool = False
