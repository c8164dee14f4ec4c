"""A deployment to be hurt: real servers, a super stream under load, workers behind proxies, and the books.

    async with World(stack, folder, seed=1) as world:
        ...faults...
        await world.heal()
        report = await world.settle()      # every bucket of every grain, against the oracle

Each worker reaches broker and database through two proxies of its own, so that its network alone can be bad.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psycopg

from deploy.local import Stack
from pipeline.core.ledger import warm_up
from pipeline.core.rules import Rules
from pipeline.simulate import PatientPublisher
from pipeline.transports.rabbitmq import RabbitMQTransport
from sql import migrate
from tests import books, mix, processes, streams
from tests import oracle as naive
from tests.tcp_proxy import TcpProxy

Made = TypeVar("Made")

READY_S = 180.0
DRAIN_S = 240.0
_BLOCK_EVENTS = 5_000
_AGAIN_SHARE = 0.02
"""On top of the mix: bodies of any time before, published once more."""


@dataclass(slots=True)
class Slot:
    """Where one worker runs, or could: its proxies stay while processes come and go."""

    number: int
    broker: TcpProxy
    database: TcpProxy
    process: processes.Process
    wanted: bool = False
    """Should it run? Then it is started again when it dies by itself."""
    busy: bool = False
    """A fault has it in hand."""
    stopped: bool = False
    """By SIGSTOP."""
    crashes: list[str] = field(default_factory=list)

    def running(self) -> bool:
        with suppress(AssertionError):
            return self.process.process.poll() is None
        return False

    def events(self) -> list[dict[str, Any]]:
        """The log's lines; one that a kill cut off is left out."""
        events = []
        for line in self.process.log(None).splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]

    def owned(self) -> set[str]:
        """The partitions' streams that it holds, as far as its log tells."""
        owned: set[str] = set()
        for line in self.events():
            if line["event"] == "worker_starting":
                owned.clear()
            elif line["event"] == "partition_recovered":
                owned.add(line["stream"])
            elif line["event"] == "partition_released":
                owned.discard(line["stream"])
        return owned

    def signal(self, number: signal.Signals) -> None:
        self.process.process.send_signal(number)
        self.stopped = number == signal.SIGSTOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``mismatches``: differences of stored and counted. ``crashes``: workers that ended by themselves."""

    events: int
    accepted: int
    duplicate: int
    rejected: int
    mismatches: list[str]
    crashes: list[str]


class World:
    """``workers`` slots, ``partitions`` partitions, ``rate`` events a second. An async context manager."""

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        *,
        seed: int,
        workers: int = 4,
        partitions: int = 4,
        rate: float = 300.0,
        settings: dict[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.seed = seed
        self.rate = rate
        self.slots: list[Slot] = []
        self.published = 0
        self.publisher_proxy = TcpProxy("127.0.0.1", 1)
        self.database = f"faults_{uuid.uuid4().hex}"
        self.stream = f"faults.{uuid.uuid4().hex[:12]}"
        self.streams = [f"{self.stream}-{number}" for number in range(partitions)]
        self._workers = workers
        self._settings = settings or {}
        self._began = time.monotonic()
        self._say = say
        self._tasks: list[asyncio.Task[None]] = []
        self._load: asyncio.Task[None] | None = None
        self._loading = asyncio.Event()

    def say(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._began:7.1f} s  {line}")

    # --- life

    async def __aenter__(self) -> Self:
        stack = self.stack
        await asyncio.to_thread(warm_up)  # once, not in each worker at the same time
        await asyncio.to_thread(stack.start, ("rabbitmq", "postgres", "redis"))
        await asyncio.to_thread(stack.postgres.create_database, self.database)
        await asyncio.to_thread(migrate.upgrade, self.database_url)
        transport = RabbitMQTransport(streams.config(stack.rabbitmq.url, self.stream))
        try:
            await transport.create_super_stream(partitions=len(self.streams))
        finally:
            await transport.close()
        await self.publisher_proxy.__aenter__()
        for number in range(self._workers):
            broker, database = TcpProxy("127.0.0.1", 1), TcpProxy("127.0.0.1", 1)
            await broker.__aenter__()
            await database.__aenter__()
            folder = self.folder / f"worker-{number}"
            folder.mkdir(parents=True)
            self.slots.append(Slot(number, broker, database, self._process(broker, database, folder)))
        self.aim()
        self._tasks.append(asyncio.create_task(self._keep_workers()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._load] if self._load else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self.slots:
            if slot.running():
                slot.process.kill()
        for proxy in self._proxies():
            await proxy.__aexit__(None, None, None)
        await self.servers_up()
        await asyncio.to_thread(self.stack.postgres.drop_database, self.database)

    @property
    def database_url(self) -> str:
        return self.stack.postgres.database_url(self.database)

    def _process(self, broker: TcpProxy, database: TcpProxy, folder: Path) -> processes.Process:
        env = {
            "DATABASE_URL": through(self.database_url, database),
            "RABBITMQ_URL": through(self.stack.rabbitmq.url, broker),
            "RABBITMQ_STREAM": self.stream,
            "REDIS_URL": self.stack.redis.url,
            "FLUSH_INTERVAL": "200ms",
            **self._settings,
        }
        return processes.worker(env, folder)

    def _proxies(self) -> Iterable[TcpProxy]:
        yield self.publisher_proxy
        for slot in self.slots:
            yield slot.broker
            yield slot.database

    def aim(self) -> None:
        """Point the proxies at the servers, which may have come back on other ports."""
        broker, database = self.stack.rabbitmq.ports["stream"], self.stack.postgres.ports["sql"]
        self.publisher_proxy.target = ("127.0.0.1", broker)
        for slot in self.slots:
            slot.broker.target = ("127.0.0.1", broker)
            slot.database.target = ("127.0.0.1", database)

    async def servers_up(self) -> None:
        stack = self.stack
        for server in (stack.rabbitmq, stack.postgres, stack.redis):
            await asyncio.to_thread(server.start)
        self.aim()

    # --- workers

    def start(self, slot: Slot) -> None:
        slot.wanted = True
        if not slot.running():
            slot.process.start(wait=False)

    async def stop(self, slot: Slot, *, timeout_s: float = 90) -> int:
        """SIGTERM; the exit code."""
        slot.wanted = False
        if not slot.running():
            return 0
        return await asyncio.to_thread(slot.process.stop, timeout_s=timeout_s)

    def wanted(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.wanted]

    async def ready(self, slots: Iterable[Slot] | None = None) -> None:
        """Wait until the workers say that they are."""
        for slot in list(self.slots if slots is None else slots):
            if slot.wanted:
                await asyncio.to_thread(
                    processes.wait_for,
                    lambda slot=slot: slot.process.status() == 200,
                    READY_S,
                    slot.process.log,
                )

    async def _keep_workers(self) -> None:
        """As a supervisor would: what died by itself is started again, and noted."""
        while True:
            for slot in self.slots:
                if slot.wanted and not slot.busy and not slot.running():
                    ended = [line for line in slot.events() if line["level"] == "CRITICAL"]
                    code = slot.process.process.poll()
                    slot.crashes.append(
                        f"worker {slot.number} exit code {code}: {str(ended[-1:])[-1500:]}\n"
                        + ("" if ended else slot.process.log()[-1500:])
                    )
                    self.say(f"worker {slot.number} ended by itself with {code}")
                    self.start(slot)
            await asyncio.sleep(0.3)

    # --- load

    def start_load(self) -> None:
        self._loading.set()
        self._load = asyncio.create_task(self._publish())

    async def stop_load(self) -> None:
        """Wait for what is being published, and end."""
        self._loading.clear()
        load, self._load = self._load, None
        if load is not None:
            await load

    async def _publish(self) -> None:
        """Steadily, in bursts, with the mix's duplicates and late events; retried until they are in."""
        luck = random.Random(self.seed)
        url = through(self.stack.rabbitmq.url, self.publisher_proxy)
        transport = RabbitMQTransport(streams.config(url, self.stream))
        publisher = PatientPublisher(transport, warn=lambda line: None)
        sent: list[bytes] = []
        block: list[bytes] = []
        due = time.monotonic()
        try:
            while self._loading.is_set():
                if not block:
                    seed = luck.getrandbits(32)
                    made = await asyncio.to_thread(
                        mix.make, _BLOCK_EVENTS, seed=seed, now_us=time.time_ns() // 1000, orgs=40
                    )
                    block = made.bodies
                count = luck.choice((1, 10, 50, 100)) * max(1, round(self.rate / 600))
                burst, block = block[:count], block[count:]
                sent.extend(burst)
                burst += [luck.choice(sent) for _ in burst if luck.random() < _AGAIN_SHARE]
                await publisher.publish(burst)
                self.published += len(burst)
                due = max(due + len(burst) / self.rate, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            await publisher.close()
            await transport.close()

    # --- the end

    async def heal(self) -> None:
        """Everything works again: servers, networks, and every worker that should run."""
        for proxy in self._proxies():
            proxy.cut_at = None
            proxy.thaw()
        await self.servers_up()
        for slot in self.slots:
            if slot.stopped and slot.running():
                slot.signal(signal.SIGCONT)

    async def ends(self) -> dict[str, int]:
        """Where each partition's stream ends."""
        transport = RabbitMQTransport(streams.config(self.stack.rabbitmq.url, self.stream))
        try:
            return {extent.stream: extent.end_offset for extent in await transport.extents()}
        finally:
            await transport.close()

    def standing(self) -> dict[str, tuple[int, int, int]]:
        """Partition, epoch and committed offset by stream; empty while the database is away."""
        with suppress(psycopg.Error), psycopg.connect(self.database_url, connect_timeout=2) as connection:
            rows = connection.execute(
                "SELECT stream, partition, epoch, committed_offset FROM analytics.partitions"
            ).fetchall()
            return {row[0]: row[1:] for row in rows}
        return {}

    async def drained(self, *, timeout_s: float = DRAIN_S) -> None:
        """Wait until the database has all that the streams hold."""
        ends = await self.ends()
        until = time.monotonic() + timeout_s
        while True:
            standing = await asyncio.to_thread(self.standing)
            behind = {
                stream: (standing.get(stream, (0, 0, 0))[2], end)
                for stream, end in ends.items()
                if standing.get(stream, (0, 0, 0))[2] < end
            }
            if not behind:
                return
            if time.monotonic() > until:
                logs = "\n".join(f"worker {slot.number}: {slot.process.log()[-1500:]}" for slot in self.slots)
                raise AssertionError(f"not drained in {timeout_s:g} s: (committed, end) {behind}\n{logs}")
            await asyncio.sleep(0.2)

    async def settle(self) -> Report:
        """End the load, drain, stop the workers, and hold every partition to the oracle."""
        await self.stop_load()
        await self.drained()
        for slot in self.wanted():
            code = await self.stop(slot)
            if code != 0:
                slot.crashes.append(f"worker {slot.number} was stopped with exit code {code}")
        totals = [0, 0, 0, 0]
        mismatches: list[str] = []
        for stream, (partition, _, committed) in sorted((await asyncio.to_thread(self.standing)).items()):
            records = await streams.read_all(self.stack.rabbitmq.url, stream, upto=committed)
            counted = await asyncio.to_thread(oracle_of, records)
            stored = await asyncio.to_thread(books.stored_in_database, self.database_url, partition)
            want = books.expected(counted)
            mismatches += [f"{stream}: {line}" for line in books.difference(stored, want)]
            for i, count in enumerate(want["counters"]):
                totals[i] += count
        offered, accepted, duplicate, rejected = totals
        if offered != accepted + duplicate + rejected or offered < self.published:
            mismatches.append(f"published {self.published}, (offered, accepted, ...) {totals}")
        return Report(
            events=offered,
            accepted=accepted,
            duplicate=duplicate,
            rejected=rejected,
            mismatches=mismatches,
            crashes=[crash for slot in self.slots for crash in slot.crashes],
        )

    def sql(self, *statements: str) -> list[Any]:
        """Run statements, each alone; the rows of the last."""
        with psycopg.connect(self.database_url, connect_timeout=5, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '5s'")
            for statement in statements:
                done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []


def oracle_of(records: list[streams.Record]) -> naive.Oracle:
    oracle = naive.Oracle(books.oracle_rules(Rules()))
    oracle.feed_all((record.offset, record.broker_us, record.body) for record in records)
    return oracle


def through(url: str, proxy: TcpProxy) -> str:
    """The URL with the proxy's address."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl()
