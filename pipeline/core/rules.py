"""The numbers that decide figures. A change of one is a change of what the figures mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REASONS: Final = ("malformed", "invalid", "future", "too_late", "conflict", "skipped")
"""Why an event is refused, in the order of judgement; ``skipped``: an operator said so, unread."""


FUTURE_US: Final = 5 * 60 * 1_000_000
"""An event this much after the broker's timestamp of its chunk is refused as ``future``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Set by ALLOWED_LATENESS, DEDUPE_WINDOW and the _MAX settings of the same names."""

    allowed_lateness_us: int = 10_000_000
    dedupe_window_us: int = 24 * 3_600_000_000
    clients_per_org_hour_max: int = 1000
    models_per_org_hour_max: int = 1000
    dedupe_ids_max: int = 200_000_000
    """Ids of the dedupe window in one partition; beyond, the worker stops rather than forget one."""
    sum_max: int = 2**63 - 1
    """The highest sum of an org's day in one partition (`pipeline.core.room`). Only tests lower it."""
    dead_letter_bodies_max: int = 10_000
    """Original bodies kept in one batch; beyond, a dead letter has its offset alone."""
    dead_letter_bytes_max: int = 64 * 2**20
    """Bytes of original bodies kept in one batch; likewise."""
