"""A `Sink` that keeps its tables in dictionaries: the fake beside `pipeline.sink.timescale`.

The fake keeps the same promises: one batch is committed wholly or not at all, a flush compares and sets, and
the outcome of a flush can be unknown. The fake passes the same contract suite
(``tests/contract/test_sinks.py``). Tests can make it fail, or break its promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final
from uuid import UUID

import numpy as np

from pipeline.core import replay
from pipeline.core.accepted import AcceptedEvents
from pipeline.core.batch import Batch, Block, Position, StoredRows
from pipeline.core.dedupe import BYTES_AT_REST, merge_segments
from pipeline.core.dimensions import Dimension
from pipeline.core.rate_classes import ANY_SIZE, RateClass, RateClasses, classes_of
from pipeline.core.replay import CountedIds, Letter, Opened, Settled
from pipeline.core.rules import FUTURE_US
from pipeline.core.watermark import HOUR_US
from pipeline.core.windows import ALL_GRAINS, ERRORS, GRAINS, Grain
from pipeline.sink import Claim, Fenced, Sink, SinkUnavailable
from pipeline.sink.recovery import SEGMENTS_MANY

Key = tuple[Any, ...]


def uuid_of(halves: Any) -> UUID:
    return UUID(int=int(halves[0]) << 64 | int(halves[1]))


@dataclass
class State:
    """The committed state of one stream."""

    epoch: int = 0
    position: Position = field(default_factory=Position)
    tables: dict[str, dict[Key, tuple[tuple[int, ...], bytes]]] = field(
        default_factory=lambda: {grain.name: {} for grain in ALL_GRAINS}
    )
    seen: dict[str, dict[Key, tuple[int, int]]] = field(
        default_factory=lambda: {"orgs_seen": {}, "models_seen": {}, "clients_seen": {}, "values_seen": {}}
    )
    labels: dict[Key, tuple[int, str, str]] = field(default_factory=dict)
    """By (org, model): the time of the newest label, the provider and the model's name."""
    ids: list[tuple[int, bytes]] = field(default_factory=list)
    dead_letters: list[Any] = field(default_factory=list)
    outbox: list[AcceptedEvents] = field(default_factory=list)
    dimensions: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By name: the source, and the first hour (since 1970) in which the dimension is complete."""
    split_hours: dict[int, int] = field(default_factory=dict)
    """By hour of the day: the first hour (since 1970) from which its quarters are complete."""
    waiting: dict[tuple[int, int], Letter] = field(default_factory=dict)
    """Dead letters that wait for their backfill, by (offset, position)."""
    settled: list[tuple[Letter, Settled]] = field(default_factory=list)
    """Backfilled dead letters with their outcomes, in the order of their commits."""

    def copy(self) -> State:
        return State(
            epoch=self.epoch,
            position=replace(self.position),
            tables={name: dict(rows) for name, rows in self.tables.items()},
            seen={name: dict(rows) for name, rows in self.seen.items()},
            labels=dict(self.labels),
            ids=list(self.ids),
            dead_letters=list(self.dead_letters),
            waiting=dict(self.waiting),
            settled=list(self.settled),
            outbox=list(self.outbox),
            dimensions=dict(self.dimensions),
            split_hours=dict(self.split_hours),
        )


class MemoryDatabase:
    """The database that all sinks of one test share: the committed state of each stream."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.rate_classes: dict[RateClass, int] = {ANY_SIZE: 0}
        self._standby: tuple[dict[str, State], dict[RateClass, int]] | None = None

    def replicate(self) -> None:
        """Copy everything that is committed to the standby."""
        states = {stream: state.copy() for stream, state in self.states.items()}
        self._standby = states, dict(self.rate_classes)

    def fail_over(self) -> None:
        """Let the standby take over. Everything that was committed since `replicate` is lost."""
        if self._standby is not None:
            self.states, self.rate_classes = self._standby
            self.replicate()

    def state(self, stream: str) -> State:
        if stream not in self.states:  # asked for often, so no new state is made just to be thrown away
            self.states[stream] = State()
        return self.states[stream]


def in_bytes(label: tuple[int, str, str]) -> tuple[int, bytes, bytes]:
    """Labels are compared byte by byte."""
    return label[0], label[1].encode(), label[2].encode()


@final  # so that mypy reports a method of `Sink` that is missing
class MemorySink(Sink):
    """A connection to a `MemoryDatabase` for one stream."""

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        *,
        switch: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``switch`` is awaited at each place where the real sink waits for its server."""
        self.database = database or MemoryDatabase()
        self._switch = switch
        self._stream = ""
        self.down = False
        """If set, the database is away and every call fails."""
        self.fail_before_commit = 0
        """The next flushes, this many, fail before anything is written."""
        self.fail_after_commit = 0
        """The next flushes, this many, are written whole and then fail."""
        self.offset_apart = False
        """If set, the sink breaks its promise: the offset is committed even if the rows are not."""

    @property
    def state(self) -> State:
        return self.database.state(self._stream)

    async def close(self) -> None: ...

    async def check_schema(self) -> None:
        await self._reach()

    async def _reach(self) -> None:
        if self._switch is not None:
            await self._switch()
        if self.down:
            raise SinkUnavailable("away")

    async def claim(
        self,
        stream: str,
        dimensions: Sequence[Dimension] = (),
        split_hours: Sequence[int] = (),
        context_tiers: Sequence[int] | None = None,
    ) -> tuple[Claim, Position]:
        await self._reach()
        self._stream = stream
        self.state.epoch += 1
        position = self.state.position
        since = (position.newest_broker_us + FUTURE_US) // HOUR_US + 1 if position.accepted else 0
        known = self.state.dimensions
        self.state.dimensions = {
            one.name: known[one.name] if known.get(one.name, ("",))[0] == one.source else (one.source, since)
            for one in dimensions
        }
        self.state.split_hours = {hour: self.state.split_hours.get(hour, since) for hour in split_hours}
        number = list(self.database.states).index(stream)
        rate_classes = None if context_tiers is None else self._rate_classes(context_tiers)
        claim = Claim(stream, number, self.state.epoch, rate_classes=rate_classes)
        return claim, replace(self.state.position)

    def _rate_classes(self, boundaries: Sequence[int]) -> RateClasses:
        numbers = self.database.rate_classes
        for one in classes_of(boundaries):
            numbers.setdefault(one, len(numbers))
        return RateClasses(boundaries, numbers.__getitem__)

    async def holds(self, claim: Claim, *, offset: int) -> bool:
        await self._reach()
        return (self.state.epoch, self.state.position.next_offset) == (claim.epoch, offset)

    async def waiting_letters(self, claim: Claim, *, most: int) -> list[Letter]:
        await self._reach()
        return list(self.state.waiting.values())[:most]

    async def counted(self, claim: Claim, opened: Opened) -> CountedIds:
        await self._reach()
        wanted = opened.of_stored_hours()
        parts = [replay.among(wanted[hour], hour, ids) for hour, ids in self.state.ids if hour in wanted]
        parts.append(CountedIds.of_settled([one for _, one in self.state.settled]))
        return CountedIds.join(parts)

    async def resident_rows(self, claim: Claim, wanted: Iterable[tuple[Grain, int]]) -> list[StoredRows]:
        await self._reach()
        return [self._rows(grain, lambda key, b=bucket: key[1] >= b) for grain, bucket in wanted]

    async def high_days(self, claim: Claim, *, from_day: int, sum_least: int) -> list[Block]:
        await self._reach()
        sums: dict[Any, Any] = {}
        for (org, day, *_), (measures, _) in self.state.tables["usage_day"].items():
            if day >= from_day:
                sums[org, day] = sums.get((org, day), 0) + np.array(measures[5:9], object)
        halves = [
            ((org.int >> 64, org.int & (2**64 - 1)), day)
            for (org, day), four in sums.items()
            if max(four) >= sum_least
        ]
        return [Block(grain=GRAINS[2], org=org, bucket=day) for org, day in halves]

    async def load(self, claim: Claim, blocks: Sequence[Block]) -> list[StoredRows]:
        await self._reach()
        found = []
        for grain in dict.fromkeys(block.grain for block in blocks):
            mine = {(uuid_of(block.org), block.bucket) for block in blocks if block.grain == grain}
            found.append(self._rows(grain, lambda key, mine=mine: key[:2] in mine))
        return found

    async def live_ids_count(self, claim: Claim, *, from_hour: int) -> int:
        return sum(len(ids) for hour, ids in self.state.ids if hour >= from_hour) // BYTES_AT_REST

    async def live_ids(self, claim: Claim, *, from_hour: int) -> AsyncIterator[tuple[int, bytes]]:
        await self._reach()
        for pair in sorted((hour, ids) for hour, ids in self.state.ids if hour >= from_hour):
            yield pair

    async def org_models(self, claim: Claim) -> list[tuple[UUID, UUID, int, int]]:
        """Orgs and models with two times. The fake has no clock, so both are the time of the last event."""
        await self._reach()
        return [(*key, last_us, last_us) for key, (_, last_us) in self.state.seen["models_seen"].items()]

    async def merge_ids(self, claim: Claim, *, before_hour: int) -> int:
        await self._reach()
        if claim.epoch != self.state.epoch:
            raise Fenced("another epoch")
        for hour in sorted({hour for hour, _ in self.state.ids if hour < before_hour}):
            mine = [ids for at, ids in self.state.ids if at == hour]
            if len(mine) >= SEGMENTS_MANY:
                others = [(at, ids) for at, ids in self.state.ids if at != hour]
                self.state.ids = [*others, (hour, merge_segments(mine))]
                return len(mine)
        return 0

    async def released(self, claim: Claim) -> None:
        await self._reach()

    async def trying(self, claim: Claim, from_offset: int, to_offset: int) -> None:
        await self._reach()

    async def skips(self, claim: Claim, *, from_offset: int) -> dict[int, str]:
        await self._reach()
        return {}

    async def flush(self, claim: Claim, batch: Batch, *, well: bool = False) -> bool:
        await self._reach()
        self.write(claim, batch)
        waiting = bool(self.state.waiting)
        if self._switch is not None:
            await self._switch()  # the answer to COMMIT is on its way; a worker that dies here never hears it
        return waiting

    def write(self, claim: Claim, batch: Batch) -> None:
        """The transaction: writes all of the batch at once, as the clients of a database see it."""
        state = self.state
        if claim.epoch != state.epoch:
            raise Fenced("another epoch")
        standing = state.position.next_offset, state.position.replays
        if standing != (batch.from_offset, batch.from_replays):
            if standing == (batch.position.next_offset, batch.position.replays):
                return
            raise Fenced("another offset")
        if any((one.offset, one.position) not in state.waiting for one in batch.settled):
            raise Fenced("a failover lost the request")
        if self.fail_before_commit:
            self.fail_before_commit -= 1
            if self.offset_apart:
                state.position = replace(batch.position)
            raise SinkUnavailable("cut before the commit")
        state.position = replace(batch.position)
        for rows in batch.tables:
            self._write(rows)
        for name, seen in (
            ("orgs_seen", batch.orgs),
            ("models_seen", batch.models),
            ("clients_seen", batch.clients),
            *(("values_seen", values) for values in batch.values),
        ):
            for i in range(len(seen)):
                key: Key = (uuid_of(seen.org[i]),)
                if seen.model is not None:
                    key += (uuid_of(seen.model[i]),)
                elif seen.client:
                    key += (*([seen.dimension] if seen.dimension else []), seen.client[i])
                first, last = map(int, seen.span_us[i])
                known = state.seen[name].get(key, (first, last))
                state.seen[name][key] = (min(first, known[0]), max(last, known[1]))
                if seen.labelled_us is not None and seen.labelled_us[i]:
                    label = int(seen.labelled_us[i]), seen.provider[i], seen.model_name[i]
                    state.labels[key] = max(label, state.labels.get(key, label), key=in_bytes)
        state.ids.extend(batch.id_segments.items())
        state.dead_letters.extend(batch.dead_letters)
        for one in batch.settled:
            letter = state.waiting.pop((one.offset, one.position))
            state.settled.append((letter, one))
        if batch.accepted is not None:
            state.outbox.append(batch.accepted)
        if self.fail_after_commit:
            self.fail_after_commit -= 1
            raise SinkUnavailable("the answer to COMMIT was lost")

    def _write(self, rows: StoredRows) -> None:
        table = self.state.tables[rows.grain.name]
        for i in range(len(rows)):
            key: Key = (uuid_of(rows.org[i]), int(rows.bucket[i]), uuid_of(rows.model[i]))
            if rows.grain.dimension:
                key += (rows.grain.dimension,)
            if rows.grain.texts:
                key += (rows.client[i],)
            if rows.status is not None:
                key += (int(rows.status[i]), rows.error_code[i])
            key += (int(rows.rate_class[i]),)
            assert rows.known is not None
            assert key in table or not rows.known[i], f"{rows.grain.name} has no row {key}, but it is known"
            sketch = rows.sketches[i] if rows.sketches else b""
            table[key] = (tuple(map(int, rows.measures[i])), sketch)

    def _rows(self, grain: Grain, wanted: Any) -> StoredRows:
        found = [
            (key, row)
            for key, row in self.state.tables[grain.name].items()
            if wanted(key) and (not grain.dimension or key[3] == grain.dimension)
        ]

        def halves(column: int) -> Any:
            return np.array(
                [(key[column].int >> 64, key[column].int & (2**64 - 1)) for key, _ in found], np.uint64
            ).reshape(-1, 2)

        rows = StoredRows(
            grain=grain,
            org=halves(0),
            model=halves(2),
            bucket=np.array([key[1] for key, _ in found], np.int64),
            rate_class=np.array([key[-1] for key, _ in found], np.int32),
            measures=np.array([row[0] for _, row in found], np.int64).reshape(-1, len(grain.measures)),
        )
        if grain is not ERRORS:
            rows.sketches = [row[1] for _, row in found]
        if grain.texts:
            rows.client = [key[4 if grain.dimension else 3] for key, _ in found]
        if grain is ERRORS:
            rows.status = np.array([key[4] for key, _ in found], np.int32)
            rows.error_code = [key[5] for key, _ in found]
        return rows
