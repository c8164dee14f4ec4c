"""The sink, as the rest of the pipeline sees it: claims, recovery and flushes.

A flush commits whole or not at all.

`pipeline.sink.timescale` implements `Sink` on PostgreSQL, with or without TimescaleDB. The tests have a sink
in memory. One contract suite, ``tests/contract/test_sinks.py``, holds for both. SQL is left to the
implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from pipeline.core.batch import Batch, Block, Position, StoredRows
    from pipeline.core.dimensions import Dimension
    from pipeline.core.rate_classes import RateClasses
    from pipeline.core.replay import CountedIds, Letter, Opened
    from pipeline.core.windows import Grain

GROUP_QUIET_S: Final = 30
"""A consumer group may claim a partition after another group has committed nothing there for this long.

An idle worker commits too, so a group without a commit for 30 s has no worker.
"""


class Trouble(StrEnum):
    """The kinds of trouble with the database, as the metrics label them."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    LIMIT = "limit"  # class 53: memory, disk, connections, or a configured limit
    CONFLICT = "conflict"  # class 40 and locks: other work was in the way
    REFUSED = "refused"  # read-only, no privilege, a server that we must not use, keys of a later version
    OTHER = "other"


class SinkError(Exception):
    """The root of everything that a sink raises. Each kind below names its remedy."""


class SinkUnavailable(SinkError):
    """The database cannot be used now. The remedy: back off and make the same call again.

    Every call of a sink is safe to repeat. After a flush the outcome may be unknown. The same batch must then
    be flushed again, before any other batch.
    """

    def __init__(self, text: str, trouble: Trouble = Trouble.CONNECTION) -> None:
        super().__init__(text)
        self.trouble = trouble


class Contested(SinkUnavailable):
    """Another consumer group commits to the partition. The remedy: give all workers of a database one group.

    Another remedy: stop the other group. The same claim succeeds `GROUP_QUIET_S` after its last commit.
    """


class SchemaMissing(SinkError):
    """The schema is missing, or older than the code needs. The remedy: run ``spendstream migrate``.

    Nothing was read or written. The same call succeeds after the migration.
    """


class Fenced(SinkError):
    """The partition is not ours any more: another worker has claimed it, or a failover lost our commits.

    Nothing was written. The remedy: drop the ledger. The new owner goes on from the committed offset. A
    worker that wants the partition back must claim and recover it.
    """


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one partition, until another claim raises the epoch."""

    stream: str
    partition: int
    epoch: int
    crashes: int = 0
    """The number of workers in a row that ended without letting go of the partition."""
    tried: tuple[int, int] | None = None
    """The offsets [from, to) that the last of these workers was taking in; None: it had noted none."""
    rate_classes: RateClasses | None = field(default=None, compare=False)
    """The numbers of the rate classes under which the owner counts; None: the claim asked for none."""


class Sink(Protocol):
    """One connection that writes one partition at a time. Not shared between tasks.

    Every method but `close` raises `SinkUnavailable` and `SchemaMissing`. A docstring lists only the other
    exceptions of its method.
    """

    async def close(self) -> None:
        """Close the connection, and roll back a transaction in flight. Never raises; safe to call twice."""
        ...

    async def check_schema(self) -> None:
        """Return if the database answers, and its schema is not older than the code needs."""
        ...

    # --- ownership

    async def claim(
        self,
        stream: str,
        dimensions: Sequence[Dimension] = (),
        split_hours: Sequence[int] = (),
        context_tiers: Sequence[int] | None = None,
    ) -> tuple[Claim, Position]:
        """Become the only writer of a stream's partition; the claim, and the partition's position.

        ``dimensions`` are those that the owner counts from now on. The claim notes since when each of them is
        complete. Example: events up to 10:20 have been counted without the dimension "team". The hour from
        10:00 is not complete, so "team" counts since 11:00. ``split_hours`` are the hours of the day that the
        owner counts by the quarter, too. The claim notes the same of each of them.

        ``context_tiers`` are the boundaries of rate classes, and `Claim.rate_classes` gets the numbers of the
        classes. A new class gets the next free number. Example: the boundaries were 200,000 and become
        100,000 and 200,000. The class "batch, from 200,001" keeps its number, and "batch, 0 to 99,999" gets a
        new one.

        All of this is one transaction. So everything that the owner takes for stored is stored as long as its
        claim is. Example: a failover loses the last commits. If it loses the new rate classes, it loses the
        claim too, the next flush raises `Fenced`, and the next claim makes the classes again.

        The claim raises the epoch. From now on, the next flush under an earlier claim raises `Fenced`.
        Example: A holds the claim with epoch 7, and B claims and gets epoch 8. Each flush of A carries epoch
        7, so it fails.

        Raises:
            Contested: another consumer group has committed there within `GROUP_QUIET_S`.
        """
        ...

    async def released(self, claim: Claim) -> None:
        """Note that the worker let the partition go on purpose, so that the next claim counts no crash."""
        ...

    async def trying(self, claim: Claim, from_offset: int, to_offset: int) -> None:
        """Note the offsets [from, to) that are taken in next. After a crash, `Claim.tried` has them."""
        ...

    async def skips(self, claim: Claim, *, from_offset: int) -> dict[int, str]:
        """The skipped records from ``from_offset`` on: by offset, the reason and the operator's name."""
        ...

    async def holds(self, claim: Claim, *, offset: int) -> bool:
        """Is this the partition's last claim, and is the partition committed up to exactly ``offset``?"""
        ...

    # --- recovery

    async def resident_rows(self, claim: Claim, wanted: Iterable[tuple[Grain, int]]) -> list[StoredRows]:
        """For each (grain, bucket) in ``wanted``: all rows of the grain from this bucket on."""
        ...

    async def high_days(self, claim: Claim, *, from_day: int, sum_least: int) -> list[Block]:
        """The days of orgs, from ``from_day`` on, with a sum of ``sum_least`` or more."""
        ...

    async def live_ids_count(self, claim: Claim, *, from_hour: int) -> int:
        """About the number of ids that `live_ids` brings; too few for ids that version 0.1.0 stored."""
        ...

    def live_ids(self, claim: Claim, *, from_hour: int) -> AsyncIterator[tuple[int, bytes]]:
        """The id segments of all hours from ``from_hour`` on, as (hour, segment), the oldest hour first."""
        ...

    async def load(self, claim: Claim, blocks: Sequence[Block]) -> list[StoredRows]:
        """The rows of the blocks, a `StoredRows` for each grain that has any block."""
        ...

    async def org_models(self, claim: Claim) -> list[tuple[UUID, UUID, int, int]]:
        """Every (org, model, last event, last rollup) of the partition; times in UTC microseconds."""
        ...

    async def merge_ids(self, claim: Claim, *, before_hour: int) -> int:
        """Merge many small id segments of one hour before ``before_hour``, so that recovery reads few rows.

        Returns the number of merged segments; 0 if there was nothing to merge. No id is lost or added.

        Raises:
            Fenced: the partition has another owner; nothing was changed.
        """
        ...

    # --- replays of dead letters

    async def waiting_letters(self, claim: Claim, *, most: int) -> list[Letter]:
        """The first ``most`` dead letters that wait for a replay."""
        ...

    async def counted(self, claim: Claim, opened: Opened) -> CountedIds:
        """The ids of the letters' events that were counted, by earlier replays or in stored hours."""
        ...

    # --- the flush

    async def flush(self, claim: Claim, batch: Batch, *, well: bool = False) -> bool:
        """Write a batch whole, or not at all. True if dead letters wait for a replay.

        A batch that is committed already is not written again. So after an unknown outcome it is safe to
        flush the same batch again. ``well``: the worker has passed the record at which earlier workers
        crashed.

        Raises:
            SinkUnavailable: the outcome may be unknown; flush the same batch again.
            Fenced: the partition has another owner; nothing was written.
        """
        ...
