"""``spendstream doctor`` about a collector: its credentials, its spool and its health."""

from pathlib import Path

import pytest

from pipeline.admin import doctor
from pipeline.admin.doctor import Finding, Level
from tests.support import collectors, processes

NOWHERE = "postgresql://127.0.0.1:1/d"
DISK = "/dev/sda1 / ext4 rw 0 0\n"


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of mounted file systems that the doctor reads."""
    path = tmp_path / "mounts"
    path.write_text(DISK)
    monkeypatch.setattr("pipeline.admin.doctor.collector._MOUNTS", path)
    return path


def examine(tmp_path: Path, **environment: str) -> list[Finding]:
    (tmp_path / "stream").mkdir(exist_ok=True)
    stream = {"DATABASE_URL": NOWHERE, "RABBITMQ_URL": f"embedded://{tmp_path}/stream"}
    return [one for one in doctor.examine(stream | environment) if one.name == "collector"]


def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


def test_a_deployment_without_a_collector_hears_nothing_of_one(tmp_path: Path) -> None:
    assert examine(tmp_path) == []


def test_a_collector_without_a_spool_or_without_authentication_is_a_warning(tmp_path: Path) -> None:
    found = examine(tmp_path, COLLECTOR_PORT="0")
    assert [one.level for one in found] == [Level.WARN, Level.WARN, Level.OK]
    assert "AUTH_MODE=none" in found[0].detail
    assert "COLLECTOR_SPOOL" in found[1].remedy


def test_api_keys_without_a_database_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "stream").mkdir()
    settings = {"AUTH_MODE": "gateway", "API_KEY_SECRET": "s" * 32}
    stream = {"RABBITMQ_URL": f"embedded://{tmp_path}/stream"}
    for database, level in (({}, Level.WARN), ({"DATABASE_URL": NOWHERE}, None)):
        findings = doctor.examine(stream | settings | database, ["collector"])
        levels = [one.level for one in findings if "API_KEY_SECRET" in one.detail]
        assert levels == ([level] if level else [])


def test_a_spool_on_a_disk_with_room_is_fine(tmp_path: Path, mounts: Path) -> None:
    folder = spool(tmp_path)
    (folder / "1.seg").write_bytes(bytes(2**20))
    found = examine(
        tmp_path,
        AUTH_MODE="gateway",
        TRUSTED_PROXIES="127.0.0.1/32",
        COLLECTOR_SPOOL=str(folder),
        COLLECTOR_SPOOL_BYTES_MAX="2MiB",
        COLLECTOR_PORT="0",
    )
    assert {one.level for one in found} == {Level.OK}
    assert "holds 1.0 of 2 MiB" in found[1].detail


def test_a_spool_in_memory_fails_and_one_on_a_small_disk_is_a_warning(tmp_path: Path, mounts: Path) -> None:
    folder = spool(tmp_path)
    settings = {"AUTH_MODE": "gateway", "COLLECTOR_SPOOL": str(folder), "COLLECTOR_PORT": "0"}
    found = examine(tmp_path, **settings, COLLECTOR_SPOOL_BYTES_MAX="1000000GiB")
    assert found[1].level is Level.WARN
    assert "COLLECTOR_SPOOL_BYTES_MAX" in found[1].remedy
    mounts.write_text(f"{DISK}tmpfs {tmp_path} tmpfs rw 0 0\n")
    assert examine(tmp_path, **settings)[1].level is Level.FAIL


def test_a_spool_that_is_still_to_be_made_is_fine(tmp_path: Path, mounts: Path) -> None:
    folder = tmp_path / "not" / "there"
    settings = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32", "COLLECTOR_PORT": "0"}
    found = examine(tmp_path, COLLECTOR_SPOOL=str(folder), **settings)
    assert {one.level for one in found} == {Level.OK}
    assert "is not there yet, and will be made" in found[1].detail
    assert not folder.exists(), "the doctor changes nothing"


def test_a_spool_that_is_nearly_full_is_a_warning(tmp_path: Path, mounts: Path) -> None:
    folder = spool(tmp_path)
    (folder / "1.spool").write_bytes(bytes(2**20))
    settings = {"AUTH_MODE": "gateway", "COLLECTOR_SPOOL": str(folder), "COLLECTOR_PORT": "0"}
    for bytes_max, level in (("1310720", Level.WARN), ("1310721", Level.OK)):  # 80 % of 1,310,720 is 1 MiB
        assert examine(tmp_path, **settings, COLLECTOR_SPOOL_BYTES_MAX=bytes_max)[1].level is level


@pytest.mark.parametrize("place", ["/proc/spool", "{}/file/spool"])
def test_a_spool_that_the_collector_cannot_make_fails(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = place.format(tmp_path)
    found = examine(tmp_path, AUTH_MODE="gateway", COLLECTOR_SPOOL=folder, COLLECTOR_PORT="0")[1]
    assert found.level is Level.FAIL
    assert folder in found.detail
    env = {"RABBITMQ_URL": f"embedded://{tmp_path}/stream", "COLLECTOR_SPOOL": folder}
    ended = processes.command("collector", env=env | {"COLLECTOR_PORT": "0"})
    assert ended.returncode == 1, "the collector itself refuses the folder"
    assert folder in ended.stderr


def test_the_health_of_a_collector_is_asked_for(tmp_path: Path, mounts: Path) -> None:
    settings = {"COLLECTOR_SPOOL": str(spool(tmp_path)), "COLLECTOR_PORT": "1"}
    assert "spendstream collector" in examine(tmp_path, **settings)[-1].remedy
    env = {"RABBITMQ_URL": f"embedded://{tmp_path}/stream", **settings}
    with collectors.collector(env, tmp_path) as collector:
        settings["COLLECTOR_PORT"] = str(collector.port)
        found = examine(tmp_path, **settings)[-1]
        assert (found.level, "ready at" in found.detail) == (Level.OK, True)
