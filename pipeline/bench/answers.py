"""What a contender must answer: the exact hourly sums of every org and model, and where every event went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

HOUR_US = 3_600_000_000

Key = tuple[str, str, int]
"""org id, model id, hours since 1970."""

Sums = tuple[int, int, int, int, int, int]
"""events, failed events, input tokens, output tokens, microcents, sum of latencies in ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Exact totals of a stream. Counters that a contender does not keep are None."""

    sums: Mapping[Key, Sums]
    accepted: int
    duplicate: int | None = None
    """Kept out because the id was counted before, `conflict` among them."""
    conflict: int | None = None
    """Those of them whose payload differs from what was counted."""
    rejected: int | None = None
    """Refused for what they are."""

    def faults(self, truth: Answer) -> list[str]:
        """What is wrong with this answer; empty when it is exact."""
        found = []
        for name in ("accepted", "duplicate", "conflict", "rejected"):
            mine, right = getattr(self, name), getattr(truth, name)
            if mine is not None and mine != right:
                found.append(f"{name}: {mine}, not {right}")
        wrong = [
            key for key in truth.sums.keys() | self.sums.keys() if self.sums.get(key) != truth.sums.get(key)
        ]
        for key in sorted(wrong)[:3]:
            found.append(f"{key}: {self.sums.get(key)}, not {truth.sums.get(key)}")
        if len(wrong) > 3:
            found.append(f"and {len(wrong) - 3} more of {len(truth.sums)} hourly rows")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of one contender."""

    events: int
    """Read, good or bad."""
    seconds: float
    cpu_s: float
    """Of the contender's own process; servers not included."""
    peak_mib: float
    answer: Answer | None
    """None for a floor: it answers nothing."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """More that was measured on the way."""

    def record(self) -> dict[str, object]:
        """For the JSON report: everything but the answer."""
        whole = asdict(self)
        del whole["answer"]
        return whole
