"""The archive: every accepted event once, whatever crashes between the outbox and the manifest."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.servers import S3
from pipeline.archive import archiver as archiver_module
from pipeline.archive import store as store_module
from pipeline.archive.archiver import Archiver
from pipeline.archive.files import File
from pipeline.archive.gate import ArchiveGate
from pipeline.archive.store import Missing, Store, StoreError, open_store
from pipeline.common.connect import Session, connect_async
from pipeline.common.object_store import ObjectStore
from pipeline.config import ArchiveConfig
from tests.support import archives, books, mix
from tests.support.archives import NOW_US, Partition


@pytest.fixture(params=["folder", "s3"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ArchiveConfig:
    """An empty archive of each kind."""
    if request.param == "folder":
        return ArchiveConfig(url=f"file://{tmp_path}/archive", interval_s=3600)
    s3: S3 = request.getfixturevalue("s3")
    return ArchiveConfig(
        url=f"s3://{s3.bucket}/{tmp_path.name}-{tmp_path.parent.name}",
        interval_s=3600,
        store=ObjectStore(endpoint=s3.url, access_key=s3.access_key, secret_key=s3.secret_key),
    )


class Crash(Exception):
    """The process dies here."""


class Fuse:
    """Lets some steps happen, then crashes at each one that follows."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


class FusedStore:
    def __init__(self, store: Store, fuse: Fuse) -> None:
        self._store, self._fuse = store, fuse
        self.read, self.delete = store.read, store.delete

    def write(self, name: str, data: bytes) -> None:
        self._fuse.burn()
        self._store.write(name, data)
        self._fuse.burn()


class FusedArchiver(Archiver):
    """Crashes before or after any write to the store or to the database, once its fuse has burnt down."""

    def __init__(self, url: str, store: Store, config: ArchiveConfig, fuse: Fuse) -> None:
        super().__init__(url, FusedStore(store, fuse), config)
        self._fuse = fuse

    async def _settle(self, *arguments: Any, **options: Any) -> int | None:
        self._fuse.burn()
        cut = await super()._settle(*arguments, **options)
        self._fuse.burn()
        return cut

    async def _enter(self, *arguments: Any) -> None:
        self._fuse.burn()
        await super()._enter(*arguments)
        self._fuse.burn()


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_store_keeps_whole_files_and_says_what_it_lacks(config: ArchiveConfig) -> None:
    store = open_store(config)
    with pytest.raises(Missing):
        store.read("day=2026-01-01/hour=00/p0-0-1.parquet")
    for data in (b"first", b"second, longer"):
        store.write("day=2026-01-01/hour=00/p0-0-1.parquet", data)
        assert store.read("day=2026-01-01/hour=00/p0-0-1.parquet") == data


async def test_a_crash_at_every_step_leaves_each_event_in_the_archive_once(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    bodies = mix.make(3000, seed=31, now_us=NOW_US, late=0.2, bad=0.05).bodies
    partition = Partition(embedded_postgres_url, bodies)
    store = open_store(config)
    steps = fed = 0
    while fed < len(bodies):
        fed = min(fed + 60, len(bodies))
        await partition.feed(fed)  # what came meanwhile must not change files that were begun
        try:
            await FusedArchiver(partition.url, store, config, Fuse(steps)).round(everything=True)
        except Crash:
            steps += 1
        else:
            steps = 0
    await Archiver(partition.url, store, config).round(everything=True)

    assert archives.archived(partition.url, store) == partition.accepted()
    assert partition.ask("SELECT 1 FROM analytics.archive_outbox") == []
    accepted = partition.oracle.accepted
    assert partition.ask("SELECT accepted_from, accepted_to, complete_from FROM analytics.archive_spans") == [
        (0, accepted, None)
    ]
    if config.url.startswith("file:"):
        assert names_below(Path(config.url.removeprefix("file://"))) == {
            path for (path,) in partition.ask("SELECT path FROM analytics.archive_files")
        }
    assert await Archiver(partition.url, store, config).round(everything=True) == 0


async def test_two_archivers_at_once_do_the_work_of_one(
    config: ArchiveConfig, embedded_postgres_url: str
) -> None:
    bodies = mix.make(600, seed=32, now_us=NOW_US).bodies
    partition = Partition(embedded_postgres_url, bodies)
    await partition.feed(600)
    store = open_store(config)

    class Interrupted(Archiver):
        """Another archiver, which does not know of the lock, does all the work before our last step."""

        async def _enter(self, connection: Any, taken: Any, uploaded: Any) -> None:
            zombie = Archiver(partition.url, store, config)
            async with await connect_async(
                partition.url, Session(application_name="zombie"), autocommit=True
            ) as other:
                await Archiver._enter(zombie, other, taken, uploaded)
            await super()._enter(connection, taken, uploaded)

    await Interrupted(partition.url, store, config).round(everything=True)
    assert archives.archived(partition.url, store) == partition.accepted()


async def test_a_store_that_is_away_lets_the_outbox_grow_to_its_bound_and_no_further(
    embedded_postgres_url: str, tmp_path: Path
) -> None:
    bodies = mix.make(1200, seed=33, now_us=NOW_US).bodies
    partition = Partition(embedded_postgres_url, bodies)
    (tmp_path / "away").write_text("a file where the folder should be")
    config = ArchiveConfig(url=f"file://{tmp_path}/away", interval_s=0.1, outbox_bytes_max=20_000)
    gate = ArchiveGate()
    store = open_store(config)
    fed = 0
    while not gate.full:
        fed += 100
        await partition.feed(fed)
        with pytest.raises(StoreError):
            await Archiver(partition.url, store, config, gate).round(everything=True)
    assert 100 < fed < 1000
    await partition.feed(1000, leave_out=gate.full)

    (tmp_path / "away").unlink()
    archiver = Archiver(partition.url, store, config, gate)
    await archiver.round(everything=True)
    assert not gate.full
    assert archiver.waiting_bytes == 0
    await partition.feed(1200)
    await archiver.round(everything=True)

    want = partition.accepted()
    assert archives.archived(partition.url, store) == [r for r in want if r[0] < fed or r[0] >= 1000]
    spans = partition.ask("SELECT accepted_from, accepted_to FROM analytics.archive_spans ORDER BY 1")
    before = [sum(row[0] < offset for row in want) for offset in (fed, 1000)]
    assert spans == [(0, before[0]), (before[1], len(want))]
    assert not books.difference(
        books.stored_in_database(partition.url), books.expected(partition.oracle)
    )  # the figures know nothing of it


async def test_what_need_not_go_yet_waits_for_company(embedded_postgres_url: str, tmp_path: Path) -> None:
    partition = Partition(embedded_postgres_url, mix.make(200, seed=34, now_us=NOW_US).bodies)
    config = ArchiveConfig(url=f"file://{tmp_path}/archive", interval_s=3600)
    archiver = Archiver(partition.url, open_store(config), config)
    for upto in (50, 100, 200):
        await partition.feed(upto)
        assert await archiver.round() == 0
    assert archiver.waiting_bytes > 0
    partition_aged = (
        "UPDATE analytics.archive_outbox SET flushed_at = flushed_at - interval '2 h' RETURNING 1"
    )
    assert len(partition.ask(partition_aged)) == 3
    assert await archiver.round() == 1
    assert archives.archived(partition.url, open_store(config)) == partition.accepted()


@pytest.fixture
def silent_store() -> Iterator[Store]:
    """A bucket at an address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        store = ObjectStore(endpoint=endpoint, access_key="a", secret_key="b")
        yield open_store(ArchiveConfig(url="s3://bucket/p", store=store))


def test_a_store_that_never_answers_is_given_up(silent_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_CALL_S", 0.5)
    for call in (lambda: silent_store.write("x", b"x"), lambda: silent_store.read("x")):
        began = time.monotonic()
        with pytest.raises(StoreError):
            call()
        assert time.monotonic() - began < 25


def test_a_worker_ends_though_its_upload_does_not(silent_store: Store) -> None:
    def upload() -> list[File]:
        silent_store.write("x", b"x")
        return []

    async def end_amid_an_upload() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await archiver_module._abandonable(upload)

    began = time.monotonic()
    asyncio.run(end_amid_an_upload())
    assert time.monotonic() - began < 25


async def test_a_store_that_our_own_loop_drops_closes_its_session_where_the_session_runs(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(endpoint=s3.url, access_key=s3.access_key, secret_key=s3.secret_key)
    files = store.files(connect_s=5, read_s=5, attempts=1)
    await asyncio.to_thread(files.ls, s3.bucket)
    session, runs_on = files._s3creator, files.loop
    leave = type(session).__aexit__
    closed: concurrent.futures.Future[Any] = concurrent.futures.Future()

    async def noted(self: Any, *error: Any) -> None:
        try:
            await leave(self, *error)
            closed.set_result(asyncio.get_running_loop())
        except BaseException as failure:
            closed.set_exception(failure)

    monkeypatch.setattr(type(session), "__aexit__", noted)
    del files
    gc.collect()
    assert await asyncio.wait_for(asyncio.wrap_future(closed), 60) is runs_on
