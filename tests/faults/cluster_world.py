"""The world of faults on a cluster: three RabbitMQ nodes, a primary with a standby, all confirms remembered.

`World` starts and keeps the workers, drains them and compares the books. This module has what a cluster needs
in addition: workers that know all nodes, a load that is fast enough, the time that a takeover takes, and the
comparison of every confirmed record with what the streams hold at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psycopg

from deploy.local import Stack
from deploy.local.cluster import Broker, Cluster, Database
from pipeline.traffic import generator
from pipeline.traffic.simulate import PatientPublisher
from pipeline.transports import TransportError
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.faults import clock
from tests.faults.world import _AGAIN_SHARE, _CONFLICTS, RULES, Report, World, _block
from tests.support import mix, processes, streams
from tests.support.tcp_proxy import TcpProxy

TAKEOVER_S = 300.0
"""A fault after which the figures stand still for longer is a mismatch."""
MIX_SHARE = 0.1
"""Share of the events that are of the acceptance mix. The others are of the simulator, which is faster."""
BURSTS_PER_S = 15
_KEPT = 20_000
"""So many bodies are kept to be published again. A new body takes the place of any one of them."""
_LOOK_S = 0.1


class ClusterWorld(World):
    """See `World`. ``takeovers_s`` has a time for each fault that stopped the figures of a partition."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        seed: int,
        workers: int,
        partitions: int,
        rate: float,
        archive_interval: str,
        say: Callable[[str], None],
    ) -> None:
        # A cluster has the servers of a stack under the same names, and only these are used here.
        stack = cast(Stack, cluster)
        super().__init__(
            stack,
            folder,
            seed=seed,
            workers=workers,
            partitions=partitions,
            rate=rate,
            archive=True,
            archive_interval=archive_interval,
            say=say,
        )
        self.cluster = cluster
        self.takeovers_s: list[float] = []
        self.lost_by_standby: list[str] = []
        """Commits that a synchronous standby did not have: there must be none."""
        self._confirmed: array[int] = array("Q")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        transport = RabbitMQTransport(streams.config(self.cluster.rabbitmq_url, self.stream))
        try:
            with suppress(TransportError):
                await transport.delete()
        finally:
            await transport.close()

    # --- servers

    def _process(
        self, broker: TcpProxy, databases: tuple[TcpProxy, ...], its_clock: clock.Clock, folder: Path
    ) -> processes.Process:
        env = {
            "DATABASE_URL": self.cluster.database_url(self.database),
            "RABBITMQ_URL": self.cluster.rabbitmq_url,
            "RABBITMQ_STREAM": self.stream,
            "REDIS_URL": self.cluster.redis.url,
            "FLUSH_INTERVAL": "200ms",
            "DIMENSIONS": mix.DIMENSIONS_SETTING,
            "VALUES_PER_ORG_HOUR_MAX": str(RULES.values_per_org_hour_max),
            "PYTHONFAULTHANDLER": "1",
            **self._archive_env(),
        }
        return processes.worker(env, folder)

    def aim(self) -> None:
        """Point the proxy of S3 at its server. Nothing else has a proxy here."""
        self.s3_proxy.target = ("127.0.0.1", self.cluster.s3.ports["s3"])

    async def servers_up(self) -> None:
        """Bring everything back: networks, nodes, the primary and its standby."""
        await asyncio.to_thread(self.cluster.network.mend)
        await asyncio.to_thread(self.cluster.start, ("redis", "s3"))
        self.aim()

    async def whole(self) -> None:
        """Wait until every stream has all its members, and every worker is ready, also one that stands by."""
        await asyncio.to_thread(self.cluster.wait_in_sync, self.streams)
        await self.ready()

    async def leader(self, luck: random.Random) -> Broker:
        """The node that leads one of the partitions."""
        return await asyncio.to_thread(self.cluster.leader, luck.choice(self.streams))

    def others(self, broker: Broker) -> list[Broker]:
        return [one for one in self.cluster.brokers if one is not broker]

    # --- what is lost, and for how long

    async def taken_over(self) -> None:
        """Wait until every partition has committed a chunk that the broker stores from now on; note the time.

        The load goes on meanwhile, so the time is what a reader of the figures sees of the fault.
        """
        began, since_us = time.monotonic(), time.time_ns() // 1000
        while time.monotonic() - began < TAKEOVER_S:
            stored_us = await asyncio.to_thread(self._stored_us)
            if len(stored_us) == len(self.streams) and min(stored_us) > since_us:
                took_s = time.monotonic() - began
                self.takeovers_s.append(took_s)
                self.say(f"  taken over after {took_s:.1f} s")
                return
            await asyncio.sleep(_LOOK_S)
        logs = "\n".join(f"worker {slot.number}: {slot.process.log()[-3000:]}" for slot in self.slots)
        raise AssertionError(f"the figures stand still for {TAKEOVER_S:g} s\n{logs}")

    def _stored_us(self) -> list[int]:
        """The broker time of the last chunk that each partition has committed; empty while nobody answers."""
        with suppress(psycopg.Error), psycopg.connect(self.database_url, connect_timeout=2) as connection:
            rows = connection.execute(
                "SELECT (EXTRACT(EPOCH FROM broker_time) * 1000000)::bigint FROM analytics.partitions"
                " WHERE broker_time IS NOT NULL"
            ).fetchall()
            return [row[0] for row in rows]
        return []

    async def kill_primary(self, *, lose_s: float = 0.0) -> None:
        """Kill the primary, and let the standby take over. The commits of the last ``lose_s`` are lost.

        With a synchronous standby every commit that was seen before must be there afterwards.
        """
        old, new = self.cluster.postgres, self.cluster.standby
        if lose_s:
            await asyncio.to_thread(new.pause)
            await asyncio.sleep(lose_s)
        seen = await asyncio.to_thread(self.standing)
        await asyncio.to_thread(old.kill)
        if lose_s:
            await asyncio.to_thread(new.resume)
        takeover = asyncio.create_task(self.taken_over())
        await asyncio.to_thread(self.cluster.promote_standby)
        if self.cluster.synchronous:
            now = await asyncio.to_thread(self.standing)
            lost = {stream: row for stream, row in seen.items() if now.get(stream, (0, 0, 0))[2] < row[2]}
            if lost:
                self.lost_by_standby.append(f"a synchronous standby lost commits: {lost}, now {now}")
        await takeover
        await asyncio.to_thread(self.cluster.build_standby)

    async def make_synchronous(self, synchronous: bool) -> None:
        """Let commits wait for the standby, or not."""
        self.cluster.synchronous = synchronous
        primary: Database = self.cluster.postgres
        await asyncio.to_thread(primary.wait_for_standby, synchronous=synchronous)

    # --- load

    async def _publish(self) -> None:
        """Publish ``rate`` events a second until told to stop, and remember each confirmed body."""
        luck = random.Random(self.seed)
        transport = RabbitMQTransport(streams.config(self.cluster.rabbitmq_url, self.stream))
        publisher = PatientPublisher(transport, warn=lambda line: None)
        bulk = generator.Traffic(generator.World(seed=self.seed, orgs=40), seed=self.seed)
        mixed = _Mixed(self.seed)
        kept: list[bytes] = []
        count = round(self.rate / BURSTS_PER_S)
        due = time.monotonic()
        try:
            while self._loading.is_set():
                now_us = np.full(round(count * (1 - MIX_SHARE)), time.time_ns() // 1000, np.int64)
                burst = bulk.take(now_us) + await mixed.take(count - len(now_us))
                luck.shuffle(burst)
                burst += [luck.choice(kept) for _ in burst if kept and luck.random() < _AGAIN_SHARE]
                await publisher.publish(burst)
                self._confirmed.extend(map(_digest, burst))
                self.published += len(burst)
                for body in burst:
                    if len(kept) < _KEPT:
                        kept.append(body)
                    else:
                        kept[luck.randrange(_KEPT)] = body
                due = max(due + len(burst) / self.rate, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            await mixed.close()
            await publisher.close()
            await transport.close()

    # --- the end

    async def settle(self) -> Report:
        """See `World.settle`. A confirmed record that no stream holds is a mismatch, too."""
        report = await super().settle()
        lost = await self._lost()
        return replace(report, mismatches=[*report.mismatches, *lost, *self.lost_by_standby])

    async def _lost(self) -> list[str]:
        """Compare the confirmed bodies with the records of all streams, each as often as it was confirmed."""
        held: array[int] = array("Q")
        for stream, (_, _, committed) in sorted((await asyncio.to_thread(self.standing)).items()):
            for record in await streams.read_all(self.cluster.rabbitmq_url, stream, upto=committed):
                held.append(_digest(record.body))
        lost = missing(np.array(self._confirmed, np.uint64), np.array(held, np.uint64))
        return [f"{lost} of {len(self._confirmed)} confirmed records are in no stream"] if lost else []


def missing(confirmed: npt.NDArray[Any], held: npt.NDArray[Any]) -> int:
    """How many of the confirmed digests (uint64[n]) are not held (uint64[m]), each as often as confirmed."""
    wanted, wanted_counts = np.unique(confirmed, return_counts=True)
    found, found_counts = np.unique(held, return_counts=True)
    if not len(found):
        return len(confirmed)
    at = np.searchsorted(found, wanted).clip(max=len(found) - 1)
    have = np.where(found[at] == wanted, found_counts[at], 0)
    return int(np.maximum(wanted_counts - have, 0).sum())


def _digest(body: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")


class _Mixed:
    """Events of the acceptance mix, with conflicts. The next block is made while this one is taken."""

    def __init__(self, seed: int) -> None:
        self._luck = random.Random(seed)
        self._seeds: list[int] = []
        self._block: list[bytes] = []
        self._making = asyncio.create_task(self._make())

    async def take(self, count: int) -> list[bytes]:
        """At most ``count`` events: fewer while the machine is too slow to make them."""
        if not self._block and self._making.done():
            self._block = self._making.result()
            self._making = asyncio.create_task(self._make())
        some, self._block = self._block[:count], self._block[count:]
        return some

    async def _make(self) -> list[bytes]:
        luck, now_us = self._luck, time.time_ns() // 1000
        seed = luck.getrandbits(32)
        block = list((await asyncio.to_thread(_block, seed, now_us)).bodies)
        if self._seeds:  # the same ids again, with another event time
            other = (await asyncio.to_thread(_block, luck.choice(self._seeds), now_us)).bodies
            for body in luck.sample(other, _CONFLICTS):
                block.insert(luck.randrange(len(block)), body)
        self._seeds.append(seed)
        return block

    async def close(self) -> None:
        self._making.cancel()
        await asyncio.gather(self._making, return_exceptions=True)
