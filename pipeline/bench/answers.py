"""The answer of a contender: the exact hourly sums of every org and model, and the outcomes of all events."""

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
    """Events whose id was counted before, the conflicts among them."""
    conflict: int | None = None
    """Duplicates with another payload than the event that counted."""
    rejected: int | None = None
    """Events that break a rule."""

    def faults(self, truth: Answer) -> list[str]:
        """List the differences between this answer and the truth. The list of an exact answer is empty."""
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
    """How many events were read, good and bad ones."""
    seconds: float
    cpu_s: float
    """CPU time of the contender's own process, without the servers."""
    peak_mib: float
    answer: Answer | None
    """None for a contender that only reads, and so shows the least time that is possible."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Other measured figures, by name."""

    def record(self) -> dict[str, object]:
        """The outcome for the JSON report, without the answer."""
        whole = asdict(self)
        del whole["answer"]
        return whole
