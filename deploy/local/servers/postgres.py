"""PostgreSQL 17 with TimescaleDB."""

import shutil
import signal
from typing import Any

from ..server import BinariesWay, Server


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
        return f"postgresql://postgres:postgres@{self.host}:{self.ports['sql']}/{database}"

    def create_database(self, database: str) -> str:
        """Make a database with the extension timescaledb; returns its URL."""
        # TimescaleDB's launcher connects to template1, and a template with a connection cannot be copied.
        # Nobody can connect to template0.
        self._execute("postgres", f'CREATE DATABASE "{database}" TEMPLATE template0')
        self._execute(database, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        return self.database_url(database)

    def drop_database(self, database: str) -> None:
        self._execute("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def prepare(self, way: BinariesWay) -> None:
        if not (self.data / "pg").exists():
            seen, password = way.data_seen(self), self.data / "password"
            shutil.rmtree(self.data / "pg.new", ignore_errors=True)  # left by an interrupted initdb
            password.write_text("postgres\n")
            auth = ("--username=postgres", "--auth=scram-sha-256", f"--pwfile={seen / 'password'}")
            kind = ("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
            way.run(self, str(way.binaries.pg_bin / "initdb"), f"--pgdata={seen / 'pg.new'}", *auth, *kind)
            password.unlink()
            (self.data / "pg.new").rename(self.data / "pg")

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        settings = {
            "listen_addresses": self.host,
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
        self._execute("postgres", "SELECT 1", patience_s=2)

    def settle(self) -> None:
        if not self._execute("postgres", "SELECT 1 FROM pg_database WHERE datname = 'spendstream'"):
            self._execute("postgres", "CREATE DATABASE spendstream TEMPLATE template0")
        # A hot standby has the extension already, and a standby cannot make one.
        if not self._execute("spendstream", "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
            self._execute("spendstream", "CREATE EXTENSION IF NOT EXISTS timescaledb")

    def _execute(self, database: str, sql: str, *, patience_s: int = 30) -> list[tuple[Any, ...]]:
        import psycopg

        url = self.database_url(database)
        with psycopg.connect(url, autocommit=True, connect_timeout=patience_s) as connection:
            done = connection.execute(sql.encode())
            return done.fetchall() if done.description else []
