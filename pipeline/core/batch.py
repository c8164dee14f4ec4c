"""What goes between a ledger and its database: rows, dead letters, ids, and a batch of all of them.

These are data and nothing else. `pipeline.core.ledger` makes them; the sink, the freshness cache and the
archive read them. Orgs and models have their real ids here, and no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy.typing as npt

from pipeline.core import replay
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.replay import Settled
from pipeline.core.rules import REASONS
from pipeline.core.watermark import NEVER
from pipeline.core.windows import Grain
from pipeline.core.wire import Fault

IntArray = npt.NDArray[Any]

REPLAY_SEGMENTS: Final = 2**62
"""Where the numbers of id segments begin that came with no offset: no stream gets that far."""


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a partition stands: the part of its state that is one row of ``partitions``."""

    next_offset: int = 0
    newest_us: int = NEVER
    """Newest accepted event time, no later than its chunk's broker time; `watermark.NEVER` at first."""
    broker_us: int = 0
    """Broker timestamp of the last chunk."""
    newest_broker_us: int = 0
    """Newest broker timestamp of any chunk so far: the broker's clock may have gone back since."""
    ids_from_hour: int = 0
    """Ids of earlier hours may have been dropped, under another window. Maintenance writes it, no flush."""
    watermark_us: int | None = None
    offered: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    replays: int = 0
    """Replays of dead letters that were settled, one way or another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One refused record, with all that is needed to look at it and to replay it; or a whole batch."""

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    reason: str
    faults: tuple[Fault, ...]
    body: bytes | None
    """The original bytes, or the first `KEPT_BYTES_MAX`; None in a flood, when only the offset is kept."""
    body_bytes: int | None = None
    body_sha256: bytes | None = None
    """Of a body that was cut: length and digest of the whole."""
    records: int = 1
    """How many from ``offset`` on: more than one where a batch cannot be undone; ``body`` is the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """All rows of one org and one bucket of a table, by their real names."""

    grain: Grain
    org: tuple[int, int]
    """(high, low) 64 bits of the org id."""
    bucket: int
    """Bucket start divided by the bucket's length."""


@dataclass(slots=True, kw_only=True)
class StoredRows:
    """Rows with real ids instead of numbers: what the sink writes and reads. Arrays of one length n."""

    grain: Grain
    org: IntArray
    model: IntArray
    """uint64[n, 2] each, (high, low)."""
    bucket: IntArray
    """int64[n]: bucket start divided by the bucket's length."""
    measures: IntArray
    """int64[n, 11] (`windows.MEASURES`), or int64[n, 1] for counts."""
    sketches: Sequence[bytes] = ()
    client: Sequence[str] = ()
    status: IntArray | None = None
    error_code: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.bucket)


@dataclass(slots=True, kw_only=True)
class SeenRows:
    """First and last event times of orgs, of models or of clients: arrays of one length."""

    org: IntArray
    span_us: IntArray
    """int64[n, 2]: first, last."""
    model: IntArray | None = None
    client: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.org)


@dataclass(slots=True, kw_only=True)
class Batch:
    """Everything that one transaction writes, and what it must find (``from_offset``, ``from_replays``)."""

    from_offset: int
    from_replays: int
    position: Position
    caught_up: bool
    tables: list[StoredRows]
    orgs: SeenRows
    models: SeenRows
    clients: SeenRows
    id_segments: Mapping[int, bytes]
    """Hour number to the ids accepted in it since the last batch."""
    dead_letters: list[DeadLetter]
    accepted: AcceptedEvents | None = None
    """For the archive; None without one, or without events."""
    settled: Sequence[Settled] = ()
    """What became of replayed dead letters."""
    replayed_from_us: int | None = None
    """Time of the oldest event that a replay has counted in this batch."""

    @property
    def row_count(self) -> int:
        return sum(map(len, self.tables))

    @property
    def segment(self) -> int:
        """Tells the ids of this batch from those of all others of the partition."""
        moved = self.position.next_offset > self.from_offset
        return self.position.next_offset if moved else REPLAY_SEGMENTS + self.position.replays


@dataclass(slots=True)
class Tally:
    """Counts since the start of this process, for the metrics."""

    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    capped_clients: int = 0
    capped_models: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    replayed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(replay.OUTCOMES, 0))

    def copy(self) -> Tally:
        return replace(self, rejected=dict(self.rejected), replayed=dict(self.replayed))
