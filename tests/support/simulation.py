"""A whole deployment under one seed: workers, a broker, a database, and everything that goes wrong with them.

`run(seed)` plays one schedule on a real event loop, and the seed decides how long each wait takes. Real
`PartitionWorker`s and ledgers run over the fakes `MemoryTransport` and `MemorySink`. At the end the faults
stop, everything drains, and the rows of each partition must equal the oracle's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.archive.gate import ArchiveGate
from pipeline.config import FlushConfig
from pipeline.core.dimensions import Dimension
from pipeline.core.replay import Letter
from pipeline.core.rules import Rules
from pipeline.worker.life import State
from pipeline.worker.partition import PartitionWorker
from tests.support import archives, books, event_details, replays
from tests.support import oracle as naive
from tests.support.memory_sink import MemoryDatabase, MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport

HOUR_US = 3_600_000_000
START_US = 1_790_000_000_000_000 // HOUR_US * HOUR_US
RULES = Rules(
    dedupe_window_us=3 * HOUR_US,
    clients_per_org_hour_max=2,
    models_per_org_hour_max=2,
    dimensions=(Dimension("team", "metadata.team"),),
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=2,
)
FLUSH = FlushConfig(interval_s=0, events_max=6, buffer_events_max=12, dirty_rows_max=60)
STEPS_TO_DRAIN = 2_000
LAST_FLUSH_STEPS = 100

_ORGS = [str(uuid.UUID(int=i + 1)) for i in range(2)]
_MODELS = [str(uuid.UUID(int=100 + i)) for i in range(3)]


@dataclass
class Outcome:
    """The counts of one schedule: how often each thing happened."""

    events: int
    faults: int
    replayed: int


class Worker:
    """One worker process, with a feeder and a flusher a partition, as in `pipeline.worker.agents`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.transport = MemoryTransport(world.broker, switch=world.switch)
        self.sinks = [MemorySink(world.database, switch=world.switch) for _ in world.broker.partitions]
        self.partitions = [
            PartitionWorker(
                index=i,
                stream=stored.name,
                transport=self.transport,
                sink=self.sinks[i],
                rules=RULES,
                flush=FLUSH,
                archive=ArchiveGate(),
                clock_us=lambda: world.now_us,
                backoff=lambda: world,
                apart=world.apart,
            )
            for i, stored in enumerate(world.broker.partitions)
        ]
        self._stopping = False
        self._feeders = [asyncio.create_task(self._feed(partition)) for partition in self.partitions]
        self._flushers = [asyncio.create_task(self._flush(partition)) for partition in self.partitions]

    async def _feed(self, partition: PartitionWorker) -> None:
        while True:
            delivery = await partition.receive()
            await self._world.switch()
            await partition.book(delivery)

    async def _flush(self, partition: PartitionWorker) -> None:
        while True:
            await self._world.switch()
            last = self._stopping
            await partition.flush()
            if last:
                return

    async def kill(self) -> None:
        """Kill the worker as kill -9 does: all its tasks end at once, and the broker notices."""
        for task in (*self._feeders, *self._flushers):
            task.cancel()
        self.transport.cut()
        await self._gather()

    async def terminate(self) -> None:
        """Stop the worker as SIGTERM does: stop reading, flush, let go of the partitions."""
        for feeder in self._feeders:
            feeder.cancel()
        self._stopping = True
        for _ in range(LAST_FLUSH_STEPS):
            if all(flusher.done() for flusher in self._flushers):
                break
            await asyncio.sleep(0)
        for flusher in self._flushers:
            flusher.cancel()  # the database is away for too long; the next owner reads the events again
        await self._gather()
        for partition in self.partitions:
            await partition.close()
        self.transport.cut()

    async def _gather(self) -> None:
        for task in (*self._feeders, *self._flushers):
            try:
                await task
            except asyncio.CancelledError:
                continue

    def crashed(self) -> BaseException | None:
        """The exception that ended a task too early. None if no task has failed."""
        for task in (*self._feeders, *self._flushers):
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None


class World:
    """Broker, database, clock and workers, and the luck that moves them. Also the workers' `Backoff`."""

    def __init__(self, seed: int, *, partitions: int) -> None:
        self.luck = random.Random(seed)
        self.broker = MemoryBroker("s", partitions)
        self.database = MemoryDatabase()
        self.now_us = START_US
        self.workers: list[Worker] = []
        self.events = 0
        self.faults = 0
        self.replayed = 0
        self._bodies: list[list[bytes]] = [[] for _ in range(partitions)]

    async def apart(self, work: Callable[..., Any], **arguments: Any) -> Any:
        """Run work as if in a thread: other tasks may go on before the work is done."""
        await self.switch()
        return work(**arguments)

    async def switch(self) -> None:
        """Let the other tasks run, for a time that luck decides."""
        for _ in range(self.luck.choice((0, 0, 1, 1, 2, 5))):
            await asyncio.sleep(0)

    async def wait(self) -> None:
        await asyncio.sleep(0)

    def reset(self) -> None: ...

    # --- what happens ------------------------------------------------------------------------------

    def replay(self) -> None:
        """Ask for the backfill of some dead letters of a partition, also of records that are under way."""
        luck = self.luck
        state = self.database.state(luck.choice(self.broker.partitions).name)
        done = {letter.offset for letter, one in state.settled if one.outcome in ("accepted", "duplicate")}
        letters = [letter for letter in state.dead_letters if letter.offset not in done]
        for letter in luck.sample(letters, min(len(letters), luck.choice((1, 2, 5)))):
            state.waiting.setdefault(
                (letter.offset, letter.position),
                Letter(
                    offset=letter.offset,
                    position=letter.position,
                    broker_us=letter.broker_us,
                    evidence="none",
                    reason=letter.reason,
                    body=letter.body,
                ),
            )

    def publish(self) -> None:
        luck, partition = self.luck, self.luck.randrange(len(self.broker.partitions))
        mine = self._bodies[partition]
        bodies = []
        for _ in range(luck.choice((1, 2, 4))):
            if mine and luck.random() < 0.25:
                bodies.append(luck.choice(mine))
            elif luck.random() < 0.05:
                bodies.append(b"{")
            else:
                bodies.append(self._event())
        mine.extend(bodies)
        self.events += len(bodies)
        self.broker.publish(partition, bodies, timestamp_us=self.now_us)
        self.now_us += luck.choice((1_000, 1_000_000, 40_000_000, 400_000_000, -60_000_000))

    def _event(self) -> bytes:
        luck = self.luck
        ago_us = luck.choice((0, 0, 5_000_000, 90_000_000, HOUR_US, 2 * HOUR_US + 1, 4 * HOUR_US))
        details: dict[str, Any] = {"inputTokens": 1, "outputTokens": 2}
        if luck.random() < 0.5:  # else as a producer for version 0.1.0
            details = {
                "inputTokens": luck.choice(event_details.INPUT_TOKENS),
                "outputTokens": luck.choice(event_details.OUTPUT_TOKENS),
                "serviceTier": luck.choice((None, *event_details.SERVICE_TIERS)),
                **luck.choice(({}, *event_details.KINDS)),
                **luck.choice(({}, *event_details.LABELS)),
            }
        return json.dumps(
            {
                "eventId": str(uuid.UUID(int=luck.getrandbits(128))),
                "orgId": luck.choice(_ORGS),
                "modelId": luck.choice(_MODELS),
                "clientId": luck.choice(("a", "b", "c", None)),
                "metadata": luck.choice((None, {"team": "a"}, {"team": "b"}, {"team": "c"})),
                "occurredAt": (naive.EPOCH + timedelta(microseconds=self.now_us - ago_us)).isoformat(),
                "latencyMs": luck.randrange(2000),
                "status": luck.choice(("success", "success", "error")),
                "costEstimateCents": luck.choice(("0.25", "0.25", None)),
                **details,
            }
        ).encode()

    async def misfortune(self) -> None:
        """Let one fault happen, of a kind that luck decides."""
        luck = self.luck
        self.faults += 1
        worker = luck.choice(self.workers)
        sink = luck.choice(worker.sinks)
        match luck.randrange(11):
            case 0:
                self.workers.remove(worker)
                await worker.kill()
                self.workers.append(Worker(self))
            case 1:
                self.workers.remove(worker)
                await worker.terminate()
                self.workers.append(Worker(self))
            case 2 if len(self.workers) < 3:
                self.workers.append(Worker(self))
            case 3:
                worker.transport.cut()
            case 4:
                worker.transport.cut(secretly=True)  # a zombie: SIGSTOP, or a half-open connection
            case 5:
                sink.fail_before_commit += luck.randrange(1, 3)
            case 6:
                sink.fail_after_commit += 1
            case 7:
                sink.down = not sink.down
            case 8:
                self.database.replicate()
            case 9:
                self.database.fail_over()
            case _:
                self.broker.move(luck.randrange(len(self.broker.partitions)))

    # --- the schedule --------------------------------------------------------------------------------

    async def play(self, steps: int) -> None:
        self.workers.append(Worker(self))
        for _ in range(steps):
            match self.luck.random():
                case chance if chance < 0.6:
                    self.publish()
                case chance if chance < 0.7:
                    self.replay()
                case _:
                    await self.misfortune()
            for _ in range(self.luck.choice((1, 5, 20))):
                await asyncio.sleep(0)
                self._no_crash()
        self._heal()
        await self._drain()
        for worker in self.workers:
            await worker.kill()
        await self.broker.close()

    def _heal(self) -> None:
        for worker in self.workers:
            worker.transport.reveal()
            for sink in worker.sinks:
                sink.down = False
                sink.fail_before_commit = sink.fail_after_commit = 0

    async def _drain(self) -> None:
        """Wait until all published events are committed and all credit is given back."""
        for _ in range(STEPS_TO_DRAIN):
            await asyncio.sleep(0)
            self._no_crash()
            owed = sum(worker.transport.credit_owed for worker in self.workers)
            standing = {
                stored.name: (self.database.state(stored.name).position.next_offset, stored.end)
                for stored in self.broker.partitions
            }
            waiting = sum(len(self.database.state(name).waiting) for name in standing)
            if not owed and not waiting and all(committed == end for committed, end in standing.values()):
                return
        raise AssertionError(
            f"stuck: (committed, published) offsets are {standing}, {owed} chunks not granted,"
            f" {waiting} letters not replayed"
        )

    def _no_crash(self) -> None:
        for worker in self.workers:
            error = worker.crashed()
            assert error is None, f"a worker crashed: {error!r}"
            for partition in worker.partitions:
                has_ledger = partition._life.state in (State.OWNING, State.HANDING_OVER)
                assert partition.active == has_ledger, f"{partition._life.state} with the wrong ledger"

    def compare(self) -> None:
        """Compare the rows of every partition with a recount of its stream."""
        for stored in self.broker.partitions:
            state = self.database.state(stored.name)
            records = list(naive.records(stored.chunks))
            oracle, accepted, differences = replays.follow(state, records, books.oracle_rules(RULES))
            self.replayed += len(state.settled)
            differences += books.difference(books.stored_state(state), books.expected(oracle))
            differences += archives.outbox_difference(state.outbox, oracle, accepted)
            assert not differences, f"{stored.name}: {differences[:3]}"


def run(seed: int, *, steps: int = 14) -> Outcome:
    """Play one schedule. Raises AssertionError with the seed if a figure differs from the oracle's."""
    logging.disable(logging.CRITICAL)
    world = World(seed, partitions=1 + seed % 2)
    try:
        asyncio.run(world.play(steps))
        world.compare()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    return Outcome(world.events, world.faults, world.replayed)
