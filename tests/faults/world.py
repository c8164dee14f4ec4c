"""A deployment for faults: real servers, a super stream under load, workers behind proxies, and the books.

    async with World(stack, folder, seed=1) as world:
        ...faults...
        await world.heal()
        report = await world.settle()      # every bucket of every grain, against the oracle

Each worker reaches broker and database through proxies of its own, so that one worker alone can have a bad
network. Each worker also has a clock of its own. With a second stack the database has two places, and one of
them holds the primary. Half of the workers know both places. The others know one name that leads to the
primary.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg

from deploy.local import Stack
from deploy.local.servers import Postgres
from pipeline import config
from pipeline.archive.store import open_store
from pipeline.core.rules import Rules
from pipeline.core.warm_up import warm_up
from pipeline.traffic.simulate import PatientPublisher
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from sql import migrate
from tests.faults import clock, failover
from tests.support import archives, books, mix, processes, streams
from tests.support import oracle as naive
from tests.support.tcp_proxy import TcpProxy

READY_S = 400.0
DRAIN_S = 600.0
ARCHIVED_S = 400.0
STOP_S = 120.0
"""A worker must have stopped after this time. It tries its last flush for 25 s."""
_BLOCK_EVENTS = 5_000
_AGAIN_SHARE = 0.02
"""Share of bodies, in addition to the mix, that were published at any time before and are published again."""
_CONFLICTS = 40
"""Events in a block, in addition to the mix, that have the id of an earlier event and another time."""
RULES = Rules(dimensions=mix.DIMENSIONS, values_per_org_hour_max=20)
"""The rules of every worker. An org's hour has more than 20 actors, so the rest is counted under `other`."""


@dataclass(slots=True)
class Slot:
    """The place of one worker. Its proxies stay while processes come and go."""

    number: int
    broker: TcpProxy
    databases: tuple[TcpProxy, ...]
    """A proxy to each place of the database, or a single proxy that always leads to the primary."""
    process: processes.Process
    clock: clock.Clock
    place: int = 0
    """The place of the primary."""
    wanted: bool = False
    """Should the worker run? If so, it is started again when it dies by itself."""
    busy: bool = False
    """Is a fault hurting the worker just now?"""
    stopped: bool = False
    """Has the worker been stopped by SIGSTOP?"""
    crashes: list[str] = field(default_factory=list)

    @property
    def database(self) -> TcpProxy:
        """The proxy that leads to the primary."""
        return self.databases[min(self.place, len(self.databases) - 1)]

    def running(self) -> bool:
        with suppress(AssertionError):
            return self.process.process.poll() is None
        return False

    def has_log(self) -> bool:
        return self.process.has_log()

    def events(self) -> list[dict[str, Any]]:
        """The lines of the log. A line that a kill has cut off is left out."""
        events = []
        for line in self.process.log(None).splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]

    def owned(self) -> set[str]:
        """The streams of the partitions that the worker owns, by its log."""
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
    """The comparison at the end of a world.

    ``mismatches`` are the differences between stored and counted figures. ``crashes`` are workers that ended
    by themselves. ``late`` counts late events, which are among the accepted. ``reasons`` counts the rejected
    events by reason. ``archived`` is the number of events that the archive holds, each in its place. It is
    None for a world without an archive.
    """

    events: int
    accepted: int
    duplicate: int
    rejected: int
    late: int
    reasons: Counter[str]
    archived: int | None
    mismatches: list[str]
    crashes: list[str]


class World:
    """A deployment with ``workers`` slots, ``partitions`` partitions and ``rate`` events a second.

    Use it as an async context manager. ``second`` is a stack whose PostgreSQL may become the primary. With
    ``archive`` the workers archive to the stack's S3. With ``disks_small`` each PostgreSQL has its data on a
    file system that can be filled. Without ``clocks`` workers start faster, and the slots' clocks do nothing.
    """

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        *,
        seed: int,
        workers: int = 4,
        partitions: int = 4,
        rate: float = 300.0,
        second: Stack | None = None,
        archive: bool = False,
        disks_small: bool = False,
        archive_interval: str = "15s",
        settings: dict[str, str] | None = None,
        clocks: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.seed = seed
        self.rate = rate
        self.slots: list[Slot] = []
        self.published = 0
        self.flooded = False
        """Have dead letters been too many or too large to keep all bodies?"""
        self.publisher_proxy = TcpProxy("127.0.0.1", 1)
        self.s3_proxy = TcpProxy("127.0.0.1", 1)
        self.archive = archive
        self.database = f"faults_{uuid.uuid4().hex}"
        self.stream = f"faults.{uuid.uuid4().hex[:12]}"
        self.streams = [f"{self.stream}-{number}" for number in range(partitions)]
        can_follow = second is not None and failover.possible(stack, second)
        self._places = (stack, second) if second is not None and can_follow else (stack,)
        self._place = 0
        self._first_is_whole = True
        """Does the first place still have a primary's data, although that server may be down?"""
        has = {"second": can_follow, "archive": archive, "disk": disks_small}
        self.able = {need for need, there in has.items() if there}
        """The abilities of this world that some faults need."""
        self._workers = workers
        self._archive_interval = archive_interval
        self._clocks = clocks
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
        await asyncio.to_thread(stack.start, self._servers)
        for other in self._places[1:]:
            await asyncio.to_thread(other.start, ("postgres",))
        await asyncio.to_thread(self.postgres.create_database, self.database)
        await asyncio.to_thread(migrate.upgrade, self.database_url)
        transport = RabbitMQTransport(streams.config(stack.rabbitmq.url, self.stream))
        try:
            await transport.create_super_stream(partitions=len(self.streams))
        finally:
            await transport.close()
        await self.publisher_proxy.__aenter__()
        await self.s3_proxy.__aenter__()
        for number in range(self._workers):
            broker = TcpProxy("127.0.0.1", 1)
            ways = len(self._places) if number % 2 == 0 else 1
            databases = tuple(TcpProxy("127.0.0.1", 1) for _ in range(ways))
            for proxy in (broker, *databases):
                await proxy.__aenter__()
            folder = self.folder / f"worker-{number}"
            folder.mkdir(parents=True)
            its_clock = clock.Clock(folder / "clock")
            process = self._process(broker, databases, its_clock, folder)
            self.slots.append(Slot(number, broker, databases, process, its_clock))
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
        if (
            self._place != 0 and self._first_is_whole
        ):  # the next user of the stack expects it to be the primary
            await asyncio.to_thread(self.postgres.kill)
            self._place = 0
        await self.servers_up()
        if self._place != 0:
            await self.fail_over(lose_s=0, demote=False)
        await asyncio.to_thread(self.postgres.drop_database, self.database)

    @property
    def _servers(self) -> tuple[str, ...]:
        return ("rabbitmq", "postgres", "redis", *(["s3"] if self.archive else []))

    @property
    def primary(self) -> Stack:
        """The place that holds the primary."""
        return self._places[self._place]

    @property
    def postgres(self) -> Postgres:
        """The primary."""
        return self.primary.postgres

    @property
    def database_url(self) -> str:
        return self.postgres.database_url(self.database)

    def _process(
        self, broker: TcpProxy, databases: tuple[TcpProxy, ...], its_clock: clock.Clock, folder: Path
    ) -> processes.Process:
        env = {
            "DATABASE_URL": through(self.database_url, *databases),
            "RABBITMQ_URL": through(self.stack.rabbitmq.url, broker),
            "RABBITMQ_STREAM": self.stream,
            "REDIS_URL": self.stack.redis.url,
            "FLUSH_INTERVAL": "200ms",
            "DIMENSIONS": mix.DIMENSIONS_SETTING,
            "VALUES_PER_ORG_HOUR_MAX": str(RULES.values_per_org_hour_max),
            "PYTHONFAULTHANDLER": "1",
            **self._archive_env(),
            **(its_clock.env() if self._clocks else {}),
            **self._settings,
        }
        return processes.worker(env, folder)

    def _archive_env(self) -> dict[str, str]:
        if not self.archive:
            return {}
        s3 = self.stack.s3
        return {
            **s3.env,
            "S3_ENDPOINT": f"http://127.0.0.1:{self.s3_proxy.port}",
            "ARCHIVE_URL": f"s3://{s3.bucket}/{self.stream}",
            "ARCHIVE_INTERVAL": self._archive_interval,
        }

    def _proxies(self) -> Iterable[TcpProxy]:
        yield self.publisher_proxy
        yield self.s3_proxy
        for slot in self.slots:
            yield slot.broker
            yield from slot.databases

    def aim(self) -> None:
        """Point the proxies at the servers. A server may have come back on other ports."""
        broker = ("127.0.0.1", self.stack.rabbitmq.ports["stream"])
        places = [("127.0.0.1", stack.postgres.ports["sql"]) for stack in self._places]
        self.publisher_proxy.target = broker
        if self.archive:
            self.s3_proxy.target = ("127.0.0.1", self.stack.s3.ports["s3"])
        for slot in self.slots:
            slot.broker.target = broker
            slot.place = self._place
            for i, proxy in enumerate(slot.databases):
                proxy.target = places[i if len(slot.databases) > 1 else self._place]

    async def servers_up(self) -> None:
        await asyncio.to_thread(self.postgres.start)
        await asyncio.to_thread(self.stack.start, [name for name in self._servers if name != "postgres"])
        self.aim()

    @property
    def spare(self) -> Stack:
        """The place that does not hold the primary. Only a world with a second stack has one."""
        return self._places[1 - self._place]

    def move_to_spare(self) -> None:
        """From now on the primary is in the other place, whose server must run."""
        self._place = 1 - self._place
        self.aim()

    async def fail_over(self, *, lose_s: float, demote: bool) -> None:
        """Let a fresh standby in the other place take over.

        With ``lose_s`` 0 the switch is clean. Otherwise the commits of the last ``lose_s`` seconds are lost.
        With ``demote`` the old primary comes back as a standby. Otherwise it stays dead.
        """
        old, new = self._places[self._place], self._places[1 - self._place]
        self._first_is_whole = False
        await asyncio.to_thread(failover.follow, new, old)
        if lose_s:
            await asyncio.to_thread(new.postgres.pause)
            await asyncio.sleep(lose_s)
            await asyncio.to_thread(old.postgres.kill)
            await asyncio.to_thread(new.postgres.resume)
        else:
            await asyncio.to_thread(old.postgres.stop)  # it waits until the standby has everything
        await asyncio.to_thread(failover.promote, new)
        self._place = 1 - self._place
        self.aim()
        if demote:
            await asyncio.to_thread(failover.follow, old, new)
            self.aim()

    # --- workers

    def start(self, slot: Slot) -> None:
        slot.wanted = True
        if not slot.running():
            slot.process.start(wait=False)

    async def stop(self, slot: Slot, *, timeout_s: float = STOP_S) -> int:
        """Stop a worker by SIGTERM; returns its exit code.

        A worker that does not end writes where its threads are, and counts as crashed.
        """
        slot.wanted = False
        if not slot.running():
            return 0
        try:
            return await asyncio.to_thread(slot.process.stop, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            slot.signal(signal.SIGABRT)
            await asyncio.to_thread(slot.process.process.wait)
            slot.crashes.append(
                f"worker {slot.number} did not end in {timeout_s:g} s: {slot.process.log(12_000)}"
            )
            return 0

    def wanted(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.wanted]

    async def ready(self, slots: Iterable[Slot] | None = None) -> None:
        """Wait until the workers say that they are ready."""
        for slot in list(self.slots if slots is None else slots):
            if slot.wanted:
                await asyncio.to_thread(
                    processes.wait_for,
                    lambda slot=slot: slot.process.status() == 200,
                    READY_S,
                    slot.process.log,
                )

    async def _keep_workers(self) -> None:
        """Start a worker again when it has died by itself, as a supervisor would, and note the crash."""
        while True:
            for slot in self.slots:
                if slot.wanted and not slot.busy and not slot.running():
                    ended = [line for line in slot.events() if line["level"] == "critical"]
                    code = slot.process.process.poll()
                    slot.crashes.append(
                        f"worker {slot.number} exit code {code}: {str(ended[-1:])[-1500:]}\n"
                        + ("" if ended else slot.process.log()[-1500:])
                    )
                    self.say(f"worker {slot.number} ended by itself with {code}")
                    self.start(slot)
            await asyncio.sleep(0.3)

    def logged(self) -> dict[int, int]:
        """The length of each worker's log, for `has_logged`."""
        return {slot.number: len(slot.process.log(None)) for slot in self.slots if slot.has_log()}

    async def has_logged(self, *texts: str, since: dict[int, int], within_s: float) -> bool:
        """Does any worker log one of the texts within ``within_s``?"""
        until = time.monotonic() + within_s
        while True:
            for slot in self.slots:
                new = slot.process.log(None)[since.get(slot.number, 0) :] if slot.has_log() else ""
                if any(text in new for text in texts):
                    return True
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.1)

    # --- load

    def start_load(self) -> None:
        self._loading.set()
        self._load = asyncio.create_task(self._publish())

    async def stop_load(self) -> None:
        """Wait until the current publication is done, then end the load."""
        self._loading.clear()
        load, self._load = self._load, None
        if load is not None:
            async with asyncio.timeout(READY_S):
                await load

    async def _publish(self) -> None:
        """Publish steadily, in bursts, with the mix's duplicates and late events. Retry until all are in."""
        luck = random.Random(self.seed)
        url = through(self.stack.rabbitmq.url, self.publisher_proxy)
        transport = RabbitMQTransport(streams.config(url, self.stream))
        publisher = PatientPublisher(transport, warn=lambda line: None)
        sent: list[bytes] = []
        seeds: list[int] = []
        block: list[bytes] = []
        due = time.monotonic()
        try:
            while self._loading.is_set():
                if not block:
                    seed = luck.getrandbits(32)
                    now_us = time.time_ns() // 1000
                    block = (await asyncio.to_thread(_block, seed, now_us)).bodies
                    if seeds:  # the same ids again, with another event time
                        other = (await asyncio.to_thread(_block, luck.choice(seeds), now_us)).bodies
                        for body in luck.sample(other, _CONFLICTS):
                            block.insert(luck.randrange(len(block)), body)
                    seeds.append(seed)
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
        """Make everything work again: servers, networks, and every worker that should run."""
        for proxy in self._proxies():
            proxy.cut_at = None
            proxy.thaw()
        await self.servers_up()
        for slot in self.slots:
            slot.clock.set(0)
            if slot.stopped and slot.running():
                slot.signal(signal.SIGCONT)

    async def ends(self) -> dict[str, int]:
        """The end of each partition's stream."""
        transport = RabbitMQTransport(streams.config(self.stack.rabbitmq.url, self.stream))
        try:
            return {extent.stream: extent.end_offset for extent in await transport.extents()}
        finally:
            await transport.close()

    def standing(self) -> dict[str, tuple[int, int, int]]:
        """Partition, epoch and committed offset by stream; empty while the database is away."""
        with suppress(psycopg.Error), psycopg.connect(self.database_url, connect_timeout=5) as connection:
            rows = connection.execute(
                "SELECT stream, partition, epoch, committed_offset FROM analytics.partitions"
            ).fetchall()
            return {row[0]: row[1:] for row in rows}
        return {}

    async def drained(self, *, timeout_s: float = DRAIN_S) -> None:
        """Wait until the database has all records of the streams."""
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

    async def _archived(self, *, timeout_s: float = ARCHIVED_S) -> None:
        """Wait until no event waits for the archive."""
        until = time.monotonic() + timeout_s
        while waiting := (await asyncio.to_thread(self.sql, _WAITING))[0][0]:
            if time.monotonic() > until:
                held = await asyncio.to_thread(self.sql, _SESSIONS)
                for slot in self.slots:
                    if slot.running():
                        slot.signal(signal.SIGABRT)  # each worker writes where its threads are
                        await asyncio.to_thread(slot.process.process.wait)
                logs = "\n".join(f"worker {slot.number}: {slot.process.log(9000)}" for slot in self.slots)
                raise AssertionError(f"{waiting} rows wait for the archive: {held}\n{logs}")
            await asyncio.sleep(0.2)

    def _reconcile(self, accepted: int) -> list[str]:
        """Run ``spendstream reconcile`` over everything; returns its complaints."""
        env = {"DATABASE_URL": self.database_url, **self._archive_env()}
        span = ("--from", "2020-01-01", "--to", "2040-01-01")
        done = processes.command("reconcile", *span, env=env)
        if done.returncode == 0 and f"compared with {accepted} archived events" in done.stdout:
            return []
        return [f"reconcile, exit code {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}"]

    async def settle(self) -> Report:
        """End the load, drain, stop the workers, and compare partitions and archive with the oracle."""
        await self.stop_load()
        await self.drained()
        if self.archive:
            await self._archived()
        for slot in self.wanted():
            code = await self.stop(slot)
            if code != 0:
                slot.crashes.append(f"worker {slot.number} was stopped with exit code {code}")
        totals = [0, 0, 0, 0]
        mismatches: list[str] = []
        reasons: Counter[str] = Counter()
        late = archived = 0
        archive = config.load({**self._archive_env(), **_UNUSED}).archive
        for stream, (partition, _, committed) in sorted((await asyncio.to_thread(self.standing)).items()):
            records = await streams.read_all(self.stack.rabbitmq.url, stream, upto=committed)
            counted, accepted_rows = await asyncio.to_thread(oracle_of, records)
            stored = await asyncio.to_thread(books.stored_in_database, self.database_url, partition)
            want = books.expected(counted)
            mismatches += [
                f"{stream}: {line}" for line in books.difference(stored, want, flooded=self.flooded)
            ]
            noted = await asyncio.to_thread(self.sql, _SINCE.format(partition=partition))
            if noted != _COMPLETE:
                mismatches.append(f"{stream}: since when dimensions are complete: {noted}")
            reasons.update(letter.reason for letter in counted.dead_letters)
            late += sum(row.revision for row in counted.usage_minute.values())
            if archive is not None:
                held = await asyncio.to_thread(
                    archives.archived, self.database_url, open_store(archive), partition=partition
                )
                archived += len(held)
                if held != accepted_rows:
                    wrong = Counter(held) - Counter(accepted_rows), Counter(accepted_rows) - Counter(held)
                    mismatches.append(f"{stream}: archive: too much, too little {wrong!s:.2000}")
            for i, count in enumerate(want["counters"]):
                totals[i] += count
        offered, accepted, duplicate, rejected = totals
        if offered != accepted + duplicate + rejected or offered < self.published:
            mismatches.append(f"published {self.published}, (offered, accepted, ...) {totals}")
        if archive is not None:
            mismatches += await asyncio.to_thread(self._reconcile, accepted)
        return Report(
            events=offered,
            accepted=accepted,
            duplicate=duplicate,
            rejected=rejected,
            late=late,
            reasons=reasons,
            archived=None if archive is None else archived,
            mismatches=mismatches,
            crashes=[crash for slot in self.slots for crash in slot.crashes],
        )

    def sql(self, *statements: str) -> list[Any]:
        """Run statements, each alone and under fixed settings; returns the rows of the last one."""
        options = "-c lock_timeout=5s -c default_transaction_read_only=off"
        with psycopg.connect(
            self.database_url, connect_timeout=5, autocommit=True, options=options
        ) as connection:
            for statement in statements:
                done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []


def _block(seed: int, now_us: int) -> mix.Mix:
    return mix.make(_BLOCK_EVENTS, seed=seed, now_us=now_us, orgs=40)


def oracle_of(records: list[streams.Record]) -> tuple[naive.Oracle, list[archives.Row]]:
    """Feed an oracle with all records; returns the oracle, and the accepted events in order."""
    oracle = naive.Oracle(books.oracle_rules(RULES))
    accepted: list[archives.Row] = []
    for r in records:
        if r.unreadable:
            oracle.feed_unreadable(r.offset, r.unreadable, r.broker_us, r.body)
        else:
            accepted += archives.accepted(oracle, [(r.offset, r.broker_us, r.body)])
    return oracle, accepted


def through(url: str, *proxies: TcpProxy) -> str:
    """The URL with the addresses of the proxies. If there are several, one of them leads to the primary."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    query = "target_session_attrs=read-write" if len(proxies) > 1 else parts.query
    return parts._replace(netloc=f"{user}@{hosts}", query=query).geturl()


_SESSIONS = (
    "SELECT pid, application_name, client_port, state, state_change, wait_event, query FROM pg_stat_activity"
    " WHERE datname = current_database()"
)
_SINCE = (
    "SELECT name, source, since = 'epoch' FROM analytics.dimensions"
    " WHERE partition = {partition} ORDER BY name"
)
_COMPLETE = sorted((one.name, one.source, True) for one in mix.DIMENSIONS)
"""What `_SINCE` finds where every event of a partition was counted by all dimensions."""
_WAITING = "SELECT count(*) FROM analytics.archive_outbox"
_UNUSED = {"DATABASE_URL": "postgresql://127.0.0.1/", "RABBITMQ_URL": "rabbitmq-stream://127.0.0.1/"}
