"""The gate between worker and archiver: the worker asks it before it writes events to the outbox."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ArchiveGate:
    """Whether accepted events go to the outbox. The archiver shuts the gate when the outbox is full."""

    full: bool = False
