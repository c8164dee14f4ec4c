"""A stream with dead letters, its database, and a worker that can be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from pipeline.config import StreamConfig
from pipeline.core.replay import Letter
from pipeline.core.rules import Rules
from pipeline.transports.factory import open_transport
from tests.support import books, migrated, processes
from tests.support import oracle as naive
from tests.support.replays import ReplayingOracle

HOUR_US = 3_600_000_000
EVERYTHING = ("--from", "2020-01-01", "--to", "2100-01-01")


class World:
    """A stream, a database, and a worker that can be had."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env = env
        self.worker = processes.worker(env, folder)
        migrated.upgrade(env["DATABASE_URL"])

    async def publish(self, bodies: list[bytes]) -> None:
        transport = open_transport(self._config())
        try:
            await transport.open()
            await (await transport.publisher()).publish(bodies)
        finally:
            await transport.close()

    async def records(self, partition: int, *, count: int) -> list[tuple[int, int, bytes]]:
        """The whole stream of one of the transport's partitions."""
        transport = open_transport(self._config())
        try:
            subscription = await transport.subscribe(partition=partition, offset=0)
            found: list[tuple[int, int, bytes]] = []
            while len(found) < count:
                chunk = await subscription.receive()
                subscription.grant()
                found += naive.records([chunk])
            return found
        finally:
            await transport.close()

    def _config(self) -> StreamConfig:
        return StreamConfig(
            url=self.env["RABBITMQ_URL"], stream=self.env["RABBITMQ_STREAM"], consumer="tests"
        )

    def offered(self) -> int:
        return int(self.ask("SELECT COALESCE(sum(offered), 0)::bigint FROM analytics.partitions")[0][0])

    def settled(self) -> int:
        """Letters whose replay has an outcome."""
        return int(self.ask("SELECT count(*) FROM analytics.replays WHERE settled_at IS NOT NULL")[0][0])

    def wait_offered(self, count: int) -> None:
        processes.wait_for(lambda: self.offered() >= count, 400, self.worker.log)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.env["DATABASE_URL"]) as connection:
            return connection.execute(statement).fetchall()

    def do(self, statement: str) -> None:
        with psycopg.connect(self.env["DATABASE_URL"]) as connection:
            connection.execute(statement)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a dead-letters command says."""
        done = processes.command("dead-letters", *arguments, env=self.env)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stdout + done.stderr

    def replay(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = processes.command("dead-letters", "replay", "--json", *arguments, env=self.env)
        assert done.returncode == code, done
        return dict(json.loads(done.stdout))

    async def check(self) -> ReplayingOracle:
        """Every row of every partition against a recount of its stream and of its replays, in their order."""
        transport = open_transport(self._config())
        streams = list(await transport.partitions())
        await transport.close()
        oracle = ReplayingOracle()
        for number, name, offered in self.ask("SELECT partition, stream, offered FROM analytics.partitions"):
            records = await self.records(streams.index(name), count=offered)
            oracle = self._recounted(number, records)
            stored = books.stored_in_database(self.env["DATABASE_URL"], number)
            expected = {**books.expected(oracle), "dead_letters": stored["dead_letters"]}
            assert not books.difference(stored, expected), name
        return oracle

    def _recounted(self, number: int, records: list[tuple[int, int, bytes]]) -> ReplayingOracle:
        oracle = ReplayingOracle(books.oracle_rules(Rules()))
        rest = iter(records)
        bodies = {offset: (broker_us, body) for offset, broker_us, body in records}
        settled = self.ask(
            'SELECT at_offset, "offset", evidence, outcome FROM analytics.replays'
            f" WHERE settled_at IS NOT NULL AND partition = {number}"
            ' ORDER BY at_offset, requested_at, "offset"'
        )
        reasons: dict[int, str] = {}
        for at_offset, offset, evidence, outcome in settled:
            while oracle.next_offset < at_offset:
                oracle.feed(*next(rest))
            reasons.update((refused.offset, refused.reason) for refused in oracle.dead_letters)
            broker_us, body = bodies[offset]
            letter = Letter(
                offset=offset,
                position=0,
                broker_us=broker_us,
                evidence=evidence,
                reason=reasons[offset],
                body=body,
            )
            assert oracle.replay(letter) == outcome, offset
        oracle.feed_all(rest)
        return oracle

    def move_archive(self, old: str, new: str) -> None:
        folder = Path(self.env["ARCHIVE_URL"].removeprefix("file://")).parent
        (folder / old).rename(folder / new)

    def reconcile(self) -> str:
        done = processes.command("reconcile", *EVERYTHING, env=self.env)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout
