"""The numbers that decide the figures. A change of one of them changes the meaning of the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.core.dimensions import Dimension
from pipeline.core.rate_classes import CONTEXT_TIERS

REASONS: Final = ("malformed", "invalid", "future", "too_late", "conflict", "skipped")
"""Why an event is rejected, in the order of judgement. ``skipped``: an operator passed over it unread."""


FUTURE_US: Final = 5 * 60 * 1_000_000
"""An event that lies more than this after the broker time of its chunk is rejected as ``future``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one deployment, set by ALLOWED_LATENESS, DEDUPE_WINDOW, DIMENSIONS and others."""

    allowed_lateness_us: int = 10_000_000
    dedupe_window_us: int = 24 * 3_600_000_000
    clients_per_org_hour_max: int = 1000
    models_per_org_hour_max: int = 1000
    dimensions: tuple[Dimension, ...] = ()
    split_hours: tuple[int, ...] = ()
    """Hours of the day (UTC, 0 to 23, ascending) with rows by the quarter: see `windows.USAGE_QUARTER`."""
    values_per_org_hour_max: int = 1000
    """Most values by name of one dimension, in an org's hour."""
    context_tiers: tuple[int, ...] = CONTEXT_TIERS
    """Boundaries of the context, in input tokens, ascending: see `pipeline.core.rate_classes`."""
    dedupe_ids_max: int = 200_000_000
    """Most ids of the dedupe window in one partition. With more, the worker stops and forgets none."""
    sum_max: int = 2**63 - 1
    """The highest sum of an org's day in one partition (`pipeline.core.room`). Only tests lower it."""
    dead_letter_bodies_max: int = 10_000
    """Most original bodies kept in one batch. Further dead letters have their offset alone."""
    dead_letter_bytes_max: int = 64 * 2**20
    """Most bytes of original bodies kept in one batch. Further dead letters have their offset alone."""
