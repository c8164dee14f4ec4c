"""A cluster: three RabbitMQ nodes, a PostgreSQL primary and a standby, each on a host of a private network.

    enter(…)                              # first: namespaces of our own
    with Cluster(folder) as cluster:
        cluster.start()
        cluster.brokers[0].kill()
        cluster.fail_over()

Redis and S3 run beside the cluster as in a `Stack`. A node of the broker has a fixed address, so it comes
back under the address that clients know. The settings of the cluster are those that
``docs/howto/cluster.md`` recommends.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import network, ways
from .network import PREFIX, Network
from .server import ENDED, BinariesWay, Server, ServerFailed, Unavailable, Way
from .servers import S3, Postgres, RabbitMQ, Redis
from .stack import SERVICES, Stack
from .ways import binaries
from .ways.binaries import Processes

NODES: Final = 3
COOKIE: Final = "SPENDSTREAMLOCALCLUSTER"
TICK_S: Final = 10
"""A node that is silent for about this long is taken for down by the others (``net_ticktime``)."""
IN_SYNC_S: Final = 180.0
PROMOTE_S: Final = 60


class _Fixed(Server):
    """A server on a host of its own, so its ports are the well-known ones."""

    fixed: dict[str, int]

    def _choose_ports(self) -> None:
        self._save(ports=self.fixed)


class Broker(_Fixed, RabbitMQ):
    """One node of the broker's cluster."""

    fixed: dict[str, int] = {  # noqa: RUF012
        "stream": 5552,
        "amqp": 5672,
        "management": 15672,
        "prometheus": 15692,
        "epmd": 4369,
        "distribution": 25672,
    }

    def __init__(self, folder: Path, way: Callable[[], Way], *, host: str, namespace: str) -> None:
        super().__init__(folder, "rabbit", way, durable=True)
        self.host, self.namespace = host, namespace

    def prepare(self, way: BinariesWay) -> None:
        super().prepare(way)
        cookie = way.data_seen(self) / ".erlang.cookie"
        script = f"umask 077; test -e {cookie} || printf {COOKIE} >{cookie}"
        way.run(self, "/bin/sh", "-ec", script)

    def _start(self, timeout_s: float) -> None:
        """Start the node, and start it again if it ends, as systemd does.

        A node that starts while the majority of the nodes is down may end: two nodes that start at the same
        time may each find that the other one's tables are not there yet.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                super()._start(deadline - time.monotonic())
                return
            except ServerFailed as error:
                if ENDED not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def control(self, program: str, *argv: str) -> None:
        """Run one of RabbitMQ's programs on this node's host. Raises RuntimeError with its output."""
        way = self._way()
        assert isinstance(way, Processes)
        home = way.data_seen(self)
        env = (f"HOME={home}", f"ERL_EPMD_PORT={self.ports['epmd']}", "RABBITMQ_USE_LONGNAME=true")
        path = str(way.binaries.rabbitmq_server.with_name(program))
        way.run(self, "/usr/bin/env", *env, path, "--node", self.node, *argv)

    def wipe(self) -> None:
        """Delete the data of the node, which must be down: the node comes back empty."""
        shutil.rmtree(self.data)


class Database(_Fixed, Postgres):
    """A PostgreSQL server that may be the primary or a standby."""

    fixed: dict[str, int] = {"sql": 5432}  # noqa: RUF012

    def __init__(
        self, folder: Path, way: Callable[[], Way], *, host: str, namespace: str, durable: bool
    ) -> None:
        super().__init__(folder, namespace, way, durable=durable)
        self.host, self.namespace = host, namespace

    def prepare(self, way: BinariesWay) -> None:
        fresh = not (self.data / "pg").exists()
        super().prepare(way)
        if fresh:
            with (self.data / "pg" / "pg_hba.conf").open("a") as file:
                for what in ("all", "replication"):
                    file.write(f"host {what} all {PREFIX}.0/24 scram-sha-256\n")

    def follow(self, primary: Database) -> None:
        """Become a standby of ``primary``, from a new base backup. The old data go."""
        way = self._way()
        assert isinstance(way, Processes)
        self.kill()
        shutil.rmtree(self.data / "pg", ignore_errors=True)
        self.data.mkdir(parents=True, exist_ok=True)
        shutil.chown(self.data, *way._ids(self))
        way.run(
            self,
            str(way.binaries.pg_bin / "pg_basebackup"),
            f"--pgdata={way.data_seen(self) / 'pg'}",
            f"--dbname={primary.database_url('postgres')}",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        )
        self.start()

    def promote(self) -> None:
        """Become a primary; returns when the server accepts writes."""
        done = self._execute("postgres", f"SELECT pg_promote(true, {PROMOTE_S})")
        if done != [(True,)]:
            raise ServerFailed("the standby was not promoted in time")

    def wait_for_standby(self, *, synchronous: bool) -> None:
        """With ``synchronous`` a commit waits until the standby has it. Returns when that holds, or not."""
        names = "*" if synchronous else ""
        self._execute("postgres", f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self._execute("postgres", "SELECT pg_reload_conf()")
        wanted = "sync_state IN ('sync', 'quorum')" if synchronous else "state = 'streaming'"
        deadline = time.monotonic() + PROMOTE_S
        while not self._execute("postgres", f"SELECT 1 FROM pg_stat_replication WHERE {wanted}"):
            if time.monotonic() > deadline:
                raise ServerFailed("the standby does not follow the primary")
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Brokers:
    """The broker's cluster, as clients see it."""

    url: str


def enter(argv: Sequence[str]) -> None:
    """Run this command in our place, where it may make a `Cluster`. Raises RuntimeError, `Unavailable`.

    The binaries are fetched now: no package registry can be reached from the namespaces.
    """
    _processes()
    network.enter(argv)


def _processes() -> Way:
    """The way in which the servers run. It builds the root folder that it needs, if that is missing."""
    return ways.first_possible({"host": binaries.host, "rootfs": binaries.debian})


class Cluster:
    """The servers, in ``folder``. The end of the ``with`` block stops them and deletes their data."""

    def __init__(self, folder: Path, *, synchronous: bool = False, durable: bool = True) -> None:
        """With ``synchronous`` a commit waits for the standby. Needs `enter` before."""
        self.folder = folder.resolve()
        self.synchronous = synchronous
        self.beside = Stack(self.folder / "beside", way=_processes().name, durable=durable, temporary=True)
        """The stack that has Redis and S3."""
        self.way = self.beside.way
        if not isinstance(self.way, Processes) or self.way.root is None:
            raise Unavailable("a cluster needs servers that run as processes, in a root folder")
        self.network = Network()

        def way() -> Way:
            return self.way

        self.brokers: list[Broker] = []
        self.databases: list[Database] = []
        for i in range(NODES):
            name = f"mq-{i}"
            host = self.network.add(name, 11 + i)
            self.brokers.append(Broker(self.folder / name, way, host=host, namespace=name))
        for i in range(2):
            name = f"db-{i}"
            host = self.network.add(name, 21 + i)
            database = Database(self.folder / name, way, host=host, namespace=name, durable=durable)
            self.databases.append(database)
        for broker in self.brokers:
            broker.more_conf = self._broker_conf()
        self._primary = 0

    # -- life

    def start(self, services: Iterable[str] = SERVICES, timeout_s: float = 300) -> None:
        """Start all nodes and both databases, and those of Redis and S3 that are wanted."""
        beside = [name for name in services if name in ("redis", "s3")]
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(broker.start, timeout_s) for broker in self.brokers]
            started.append(pool.submit(self._start_databases))
            started.append(pool.submit(self.beside.start, beside, timeout_s))
        for outcome in started:
            outcome.result()
        # With Mnesia, the default of RabbitMQ 4.0, a node that was frozen may name the leaders of before.
        enable = ("rabbitmqctl", "enable_feature_flag", "--opt-in", "khepri_db")
        _insist(partial(self.brokers[0].control, *enable))

    def _start_databases(self) -> None:
        self.postgres.start()
        if not self.standby.is_running():
            self.build_standby()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (*self.brokers, *self.databases):
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)
        self.beside.purge()

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which programs find the servers."""
        return self.beside.env | {
            "RABBITMQ_URL": self.rabbitmq_url,
            "DATABASE_URL": self.database_url("spendstream"),
        }

    @property
    def redis(self) -> Redis:
        return self.beside.redis

    @property
    def s3(self) -> S3:
        return self.beside.s3

    # -- the broker

    @property
    def rabbitmq(self) -> Brokers:
        """All nodes together, in the place that a single server has in a `Stack`."""
        return Brokers(self.rabbitmq_url)

    @property
    def rabbitmq_url(self) -> str:
        """The URL with all nodes."""
        hosts = ",".join(f"{broker.host}:{broker.ports['stream']}" for broker in self.brokers)
        return f"rabbitmq-stream://guest:guest@{hosts}/%2F"

    def views(self) -> list[dict[str, dict[str, Any]]]:
        """What each node that answers says of the streams, by name.

        A node that was frozen or cut off may still say what was true before.
        """
        found = []
        for broker in self.brokers:
            with suppress(OSError, json.JSONDecodeError):
                queues = broker.management("/api/queues", patience_s=5)
                found.append({queue["name"]: queue for queue in queues if queue.get("type") == "stream"})
        return found

    def leader(self, stream: str) -> Broker:
        """The node that leads a stream, as most nodes say. Raises ServerFailed if they do not agree."""
        names = Counter(view.get(stream, {}).get("leader") for view in self.views())
        for broker in self.brokers:
            if names[broker.node] > NODES // 2:
                return broker
        raise ServerFailed(f"the nodes do not agree who leads {stream}: {names}")

    def wait_in_sync(self, streams: Sequence[str], timeout_s: float = IN_SYNC_S) -> None:
        """Wait until all nodes say of each stream that it has one leader, and a running member on every node.

        Raises ServerFailed at the deadline.
        """
        nodes = {broker.node for broker in self.brokers}
        deadline = time.monotonic() + timeout_s
        while True:
            views = self.views()
            said = {stream: [view.get(stream, {}) for view in views] for stream in streams}
            lacking = {stream: what for stream, what in said.items() if not _runs_on(nodes, what)}
            if not lacking:
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"not in sync in {timeout_s:g} s: {lacking}")
            time.sleep(0.5)

    def move_leader(self, stream: str, target: Broker) -> None:
        """Have another node lead a stream, as an operator would by hand."""
        target.control(
            "rabbitmq-streams",
            "restart_stream",
            stream,
            "--preferred-leader-node",
            target.node,
            "--vhost",
            "/",
        )

    def replace_empty(self, broker: Broker, streams: Sequence[str]) -> None:
        """Kill a node, delete its data, and let it join as a new and empty node.

        The order is what `docs/howto/cluster.md` says: the others forget the node first, so that nobody
        takes the empty node for a member that has the records.
        """
        other = next(one for one in self.brokers if one is not broker and one.is_running())
        broker.kill()
        for stream in streams:
            _insist(partial(other.control, "rabbitmq-streams", "delete_replica", stream, broker.node))
        _insist(partial(other.control, "rabbitmqctl", "forget_cluster_node", broker.node))
        broker.wipe()
        broker.start()
        for stream in streams:
            _insist(partial(other.control, "rabbitmq-streams", "add_replica", stream, broker.node))

    def _broker_conf(self) -> str:
        nodes = [
            f"cluster_formation.classic_config.nodes.{i} = {broker.node}"
            for i, broker in enumerate(self.brokers, 1)
        ]
        return "\n".join(
            (
                "cluster_formation.peer_discovery_backend = classic_config",
                *nodes,
                "cluster_partition_handling = pause_minority",
                f"net_ticktime = {TICK_S}",
                "loopback_users = none",
            )
        )

    # -- the database

    @property
    def postgres(self) -> Database:
        """The primary."""
        return self.databases[self._primary]

    @property
    def standby(self) -> Database:
        return self.databases[1 - self._primary]

    def database_url(self, database: str) -> str:
        """The URL with both hosts, which leads to the primary."""
        hosts = ",".join(f"{server.host}:{server.ports['sql']}" for server in self.databases)
        query = urllib.parse.urlencode({"target_session_attrs": "read-write"})
        return f"postgresql://postgres:postgres@{hosts}/{database}?{query}"

    def build_standby(self) -> None:
        """Build the standby anew from the primary."""
        self.standby.follow(self.postgres)
        self.postgres.wait_for_standby(synchronous=self.synchronous)

    def promote_standby(self) -> None:
        """Let the standby take over. The old primary must be down, or kept away from its clients."""
        self.standby.promote()
        self._primary = 1 - self._primary


def _runs_on(nodes: set[str], said: Sequence[dict[str, Any]]) -> bool:
    """Does every node say that a stream has these members, all of them running, and the same leader?"""
    on = [(set(one.get("members") or ()), set(one.get("online") or ()), one.get("state")) for one in said]
    leaders = {one.get("leader") for one in said}
    return on == [(nodes, nodes, "running")] * len(nodes) and len(leaders) == 1 and leaders <= nodes


def _insist(work: Callable[[], None], *, timeout_s: float = 120.0) -> None:
    """Repeat a command until the cluster is ready for it. Raises its last error at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return work()
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)
