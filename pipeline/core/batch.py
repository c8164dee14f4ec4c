"""The data that pass between a ledger and its database: rows, dead letters, ids, and the batch of all these.

The classes here are data and nothing else. `pipeline.core.ledger` makes them. The sink, the freshness cache
and the archive read them. Orgs and models have their real ids here instead of numbers.
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
"""Batches that bring no new offset number their id segments from here on. No stream has offsets this high."""


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a partition stands: the part of its state that is one row of ``partitions``."""

    next_offset: int = 0
    newest_us: int = NEVER
    """Newest time of an accepted event, or the broker time of its chunk if that is earlier.

    `watermark.NEVER` until an event has been accepted.
    """
    broker_us: int = 0
    """Broker timestamp of the last chunk."""
    newest_broker_us: int = 0
    """Newest broker timestamp of any chunk so far. The last chunk's may be older, if the clock went back."""
    ids_from_hour: int = 0
    """Ids of earlier hours may have been dropped, under another dedupe window.

    Maintenance writes this hour. A flush does not.
    """
    watermark_us: int | None = None
    counted_us: int | None = None
    """Every event that the broker had stored before this time is counted; see `watermark.counted`."""
    offered: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    replays: int = 0
    """How many dead letters have been backfilled, with any outcome."""


@dataclass(slots=True, kw_only=True)
class DeadLetter:
    """One rejected record, with everything that an operator needs to look at it and to backfill it.

    A dead letter may also stand for all records of a sub-entry batch that nobody can unpack.
    """

    offset: int
    position: int
    broker_us: int
    """The broker's time of its chunk."""
    reason: str
    faults: tuple[Fault, ...]
    body: bytes | None
    """The original bytes, at most the first `KEPT_BYTES_MAX`. None in a flood, when the offset must do."""
    body_bytes: int | None = None
    body_sha256: bytes | None = None
    """Length and digest of the whole body, if ``body`` is only its beginning."""
    records: int = 1
    """How many records from ``offset`` on. For more than one, ``body`` is the batch that holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """All rows of one org and one bucket of a table; the org has its real id."""

    grain: Grain
    org: tuple[int, int]
    """The org id as (high, low), 64 bits each."""
    bucket: int
    """Bucket start divided by the bucket's length."""


@dataclass(slots=True, kw_only=True)
class StoredRows:
    """Rows with real ids, as the sink writes and reads them: arrays of one length n."""

    grain: Grain
    org: IntArray
    model: IntArray
    """uint64[n, 2] each, (high, low)."""
    bucket: IntArray
    """int64[n]: bucket start divided by the bucket's length."""
    rate_class: IntArray
    """int32[n]: see `pipeline.core.rate_classes`."""
    measures: IntArray
    """int64[n, 16] (`windows.MEASURES`), or int64[n, 1] for counts."""
    sketches: Sequence[bytes] = ()
    client: Sequence[str] = ()
    """Of a dimension's rows (`Grain.dimension`) this is the value of the dimension."""
    status: IntArray | None = None
    error_code: Sequence[str] = ()
    known: IntArray | None = None
    """bool[n], of rows that a batch writes: an earlier batch of this ledger wrote the row, or it was read.

    The sink may update a known row instead of inserting it. It must still find out if the row is gone.
    """

    def __len__(self) -> int:
        return len(self.bucket)


@dataclass(slots=True, kw_only=True)
class SeenRows:
    """First and last event times of orgs, models, clients or values of a dimension: arrays of one length."""

    org: IntArray
    span_us: IntArray
    """int64[n, 2]: first, last."""
    model: IntArray | None = None
    labelled_us: IntArray | None = None
    provider: Sequence[str] = ()
    model_name: Sequence[str] = ()
    """Of models: the labels of the newest event, and the time of that event; 0 and '' without labels."""
    client: Sequence[str] = ()
    dimension: str = ""
    """Of values: their dimension. The values are in ``client``."""

    def __len__(self) -> int:
        return len(self.org)


@dataclass(slots=True, kw_only=True)
class Batch:
    """Everything that one flush commits.

    The transaction must find the partition at ``from_offset`` and ``from_replays``.
    """

    from_offset: int
    from_replays: int
    position: Position
    caught_up: bool
    tables: list[StoredRows]
    orgs: SeenRows
    models: SeenRows
    clients: SeenRows
    values: Sequence[SeenRows]
    """One for each dimension."""
    id_segments: Mapping[int, bytes]
    """By the number of the hour: a segment of the ids accepted since the last batch."""
    dead_letters: list[DeadLetter]
    accepted: AcceptedEvents | None = None
    """The accepted events for the archive; None if there is no archive or no accepted event."""
    settled: Sequence[Settled] = ()
    """The outcomes of backfilled dead letters."""
    replayed_from_us: int | None = None
    """Time of the oldest event that a backfill has counted in this batch."""

    @property
    def row_count(self) -> int:
        return sum(map(len, self.tables))

    @property
    def segment(self) -> int:
        """The number of this batch's id segments; no other batch of the partition has the same number."""
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
    capped_values: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    replayed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(replay.OUTCOMES, 0))

    def copy(self) -> Tally:
        return replace(self, rejected=dict(self.rejected), replayed=dict(self.replayed))
