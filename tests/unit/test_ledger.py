"""What the ledger asks of whoever times it."""

from __future__ import annotations

from types import TracebackType

from pipeline.core import ledger as books
from pipeline.core.rules import Rules
from tests import mix

NOW_US = 1_790_000_000_000_000


class Stopwatch:
    """Counts how often it was entered and left, and what the ledger had counted by then."""

    def __init__(self) -> None:
        self.ledger: books.Ledger | None = None
        self.entered = self.left = 0
        self.accepted: list[int] = []

    def __enter__(self) -> None:
        self.entered += 1
        self._look()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left += 1
        self._look()

    def _look(self) -> None:
        assert self.ledger is not None
        self.accepted.append(self.ledger.position.accepted)


def test_decoding_is_timed_once_a_fold_without_dedupe_and_adding_up() -> None:
    stopwatch = Stopwatch()
    ledger = stopwatch.ledger = books.Ledger(Rules(), decoding=stopwatch)
    bodies = mix.make(300, seed=1, now_us=NOW_US).bodies
    for first in (0, 100, 200):
        ledger.ingest(
            first_offset=first,
            next_offset=first + 100,
            timestamp_us=NOW_US,
            bodies=bodies[first : first + 100],
        )
    assert stopwatch.entered == 0, "so few events wait"
    ledger.fold()
    ledger.fold()
    assert (stopwatch.entered, stopwatch.left) == (1, 1)
    assert stopwatch.accepted == [0, 0]
    assert ledger.position.accepted > 0
