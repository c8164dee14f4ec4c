"""What a sink is to the rest of the pipeline: claims, recovery, and flushes that happen whole or not at all.

`pipeline.sink.timescale` implements `Sink` on PostgreSQL, with or without TimescaleDB. The tests have a sink
in memory. One contract suite, ``tests/contract/test_sinks.py``, holds for both. Nothing here knows SQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from pipeline.core.batch import Batch, Block, Position, StoredRows
    from pipeline.core.replay import CountedIds, Letter, Opened
    from pipeline.core.windows import Grain

GROUP_QUIET_S: Final = 30
"""How long a consumer group commits nothing before another may claim. An idle worker commits, too."""


class Trouble(StrEnum):
    """Why the database could not be used, for metrics."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    LIMIT = "limit"  # class 53: memory, disk, connections, or a configured limit
    CONFLICT = "conflict"  # class 40 and locks: other work was in the way
    REFUSED = "refused"  # read-only, no privilege, or not to be used as it is
    OTHER = "other"


class SinkError(Exception):
    """The root of everything that a sink raises. Each kind below names its remedy."""


class SinkUnavailable(SinkError):
    """The database cannot be used now. The remedy: back off and make the same call again.

    Every call of a sink is safe to repeat. After a flush the outcome may be unknown: then the very same batch
    must be flushed again before anything else.
    """

    def __init__(self, text: str, trouble: Trouble = Trouble.CONNECTION) -> None:
        super().__init__(text)
        self.trouble = trouble


class Contested(SinkUnavailable):
    """Another consumer group commits to the partition. The remedy: give all workers of a database one group.

    Or stop the other group: the same claim succeeds once it has been quiet for `GROUP_QUIET_S`.
    """


class SchemaMissing(SinkError):
    """The schema is missing, or older than the code needs. The remedy: run ``spendstream migrate``.

    Nothing was read or written. The same call succeeds after the migration.
    """


class Fenced(SinkError):
    """The partition is not ours any more: another worker has claimed it, or a failover lost our commits.

    Nothing was written. The remedy: throw the ledger away. The owner goes on from what is committed, and
    whoever wants the partition back has to claim and recover it.
    """


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one partition, until somebody raises its epoch."""

    stream: str
    partition: int
    epoch: int
    crashes: int = 0
    """How often in a row a worker ended here without letting go of the partition."""
    tried: tuple[int, int] | None = None
    """The offsets [from, to) that the last of them was taking in, where it was looking for the record."""


class Sink(Protocol):
    """One connection that writes one partition at a time. Not shared between tasks.

    Every method but `close` raises `SinkUnavailable` and `SchemaMissing`. A method lists only what it raises
    beside these two.
    """

    async def close(self) -> None:
        """Let go of the connection. A transaction in flight is rolled back. Never raises; may be repeated."""
        ...

    async def check_schema(self) -> None:
        """Return if the database answers, and its schema is not older than the code needs."""
        ...

    # --- ownership

    async def claim(self, stream: str) -> tuple[Claim, Position]:
        """Become the only writer of a stream's partition; the claim, and where the partition stands.

        Every earlier claim on it is void from now on: its next flush raises `Fenced`.

        Raises:
            Contested: another consumer group has committed there within `GROUP_QUIET_S`.
        """
        ...

    async def released(self, claim: Claim) -> None:
        """Note that the partition was let go of on purpose, so that the next claim counts no crash."""
        ...

    async def trying(self, claim: Claim, from_offset: int, to_offset: int) -> None:
        """Note which records [from, to) are taken in next, for the claim after a crash (`Claim.tried`)."""
        ...

    async def skips(self, claim: Claim, *, from_offset: int) -> dict[int, str]:
        """The records that an operator has skipped: by offset, why and by whom."""
        ...

    async def holds(self, claim: Claim, *, offset: int) -> bool:
        """Is the claim the last one, and the partition committed up to ``offset``?"""
        ...

    # --- recovery

    async def resident_rows(self, claim: Claim, wanted: Iterable[tuple[Grain, int]]) -> list[StoredRows]:
        """For each (grain, bucket): all rows of the grain from that bucket on."""
        ...

    async def high_days(self, claim: Claim, *, from_day: int, sum_least: int) -> list[Block]:
        """The orgs' days from ``from_day`` on of which some sum is ``sum_least`` or more."""
        ...

    async def live_ids_count(self, claim: Claim, *, from_hour: int) -> int:
        """About how many ids `live_ids` brings; fewer where version 0.1.0 stored them."""
        ...

    def live_ids(self, claim: Claim, *, from_hour: int) -> AsyncIterator[tuple[int, bytes]]:
        """(hour, segment) pairs of the ids of all hours from ``from_hour`` on, the oldest hour first."""
        ...

    async def load(self, claim: Claim, blocks: Sequence[Block]) -> list[StoredRows]:
        """The rows of the blocks, by grain."""
        ...

    async def org_models(self, claim: Claim) -> list[tuple[UUID, UUID, int, int]]:
        """(org, model, last event, last rollup) of the partition, in UTC microseconds."""
        ...

    async def merge_ids(self, claim: Claim, *, before_hour: int) -> int:
        """Merge many small segments of one hour before ``before_hour``: recovery then reads few rows.

        Returns how many segments were merged, 0 when there was nothing to do. No id is lost or added.

        Raises:
            Fenced: the partition has another owner; nothing was changed.
        """
        ...

    # --- replays of dead letters

    async def waiting_letters(self, claim: Claim, *, most: int) -> list[Letter]:
        """The first ``most`` dead letters that wait to be replayed."""
        ...

    async def counted(self, claim: Claim, opened: Opened) -> CountedIds:
        """Which of the letters' events were counted, by earlier replays and by stored hours."""
        ...

    # --- the flush

    async def flush(self, claim: Claim, batch: Batch, *, well: bool = False) -> bool:
        """Write a batch whole, or not at all. True if dead letters wait to be replayed.

        A batch that is already committed is not written again: the repeat of an unknown outcome is safe.
        ``well``: the worker has come past whatever made an earlier one crash.

        Raises:
            SinkUnavailable: the outcome may be unknown; flush the very same batch again.
            Fenced: the partition has another owner; nothing was written.
        """
        ...
