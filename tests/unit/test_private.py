"""What tenants did is nobody else's to read: files 0600 in folders 0700, whatever the umask."""

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.exports.stores import FolderStore
from pipeline.archive.store import open_store
from pipeline.common import private
from pipeline.config import ArchiveConfig, StreamConfig
from pipeline.transports.factory import open_transport
from pipeline.worker import id_files as spill


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """The worst one there is."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that an operator made, for everybody to see."""
    folder = tmp_path / "place"
    folder.mkdir(0o755)
    return folder


def modes(place: Path) -> set[tuple[bool, int]]:
    """(folder or not, mode) of all that is below."""
    found = {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in place.rglob("*")}
    assert stat.S_IMODE(place.stat().st_mode) == 0o755, "what the operator chose stays"
    return found


OURS = {(True, 0o700), (False, 0o600)}


def export(place: Path) -> None:
    org_id, job_id = uuid.uuid4(), uuid.uuid4()
    upload = FolderStore(place, b"secret", "/base").upload(
        f"exports/{org_id}/{job_id}.csv", org_id=org_id, job_id=job_id
    )
    upload.write(b"a,b\n")
    upload.seal()
    upload.commit()


def archive(place: Path) -> None:
    open_store(ArchiveConfig(url=f"file://{place}")).write("day=2026-11-23/hour=10/p0-0-1.parquet", b"PAR1")


async def publish(place: Path, *, partitions: int = 1) -> None:
    stream = StreamConfig(url=f"embedded://{place}", stream="events", consumer="c")
    transport = open_transport(stream)
    if partitions > 1:
        await transport.create_super_stream(partitions=partitions)
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish([b'{"orgId": "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69"}'])
    await publisher.close()
    await transport.close()


def test_exports_are_nobody_elses_to_read(place: Path) -> None:
    export(place)
    assert modes(place) == OURS


def test_archive_files_are_nobody_elses_to_read(place: Path) -> None:
    archive(place)
    assert modes(place) == OURS


@pytest.mark.parametrize("partitions", [1, 3])
async def test_segments_of_the_embedded_log_are_nobody_elses_to_read(place: Path, partitions: int) -> None:
    await publish(place, partitions=partitions)
    assert modes(place) == OURS


async def test_folders_from_before_are_tightened_where_they_are_ours_alone(place: Path) -> None:
    (place / "events").mkdir(0o755)
    (place / "exports").mkdir(0o775)
    (place / "day=2026-11-23").mkdir(0o755)
    export(place)
    archive(place)
    await publish(place)
    assert modes(place) == OURS


def test_a_folder_that_others_share_stays_as_it_is(place: Path) -> None:
    shared = place / "exports"
    shared.mkdir()
    shared.chmod(0o2775)
    export(place)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2775
    if os.geteuid() == 0:
        theirs = place / "theirs"
        theirs.mkdir(0o755)
        os.chown(theirs, 12345, 12345)
        private.make_folder(theirs / "ours", below=place)
        assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_a_folder_that_is_a_link_keeps_the_modes_of_where_it_leads(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o755)
    (place / "exports").symlink_to(elsewhere)
    export(place)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    assert modes(elsewhere) == OURS


def test_folders_above_are_made_as_private_as_those_below(place: Path) -> None:
    export(place / "not" / "there")
    assert modes(place) == OURS


def test_ids_on_a_disk_are_nobody_elses_to_read(place: Path) -> None:
    spill.logs_in(place)(10)
    assert list(place.iterdir()) == [], "the files of ids have no name"
