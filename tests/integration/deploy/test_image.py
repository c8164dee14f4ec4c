"""The image, built and run without an engine, with the commands, settings and secrets of the compose file.

Every process runs as the image's user on a root file system that nobody can write, against real servers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.local import Stack, processes
from deploy.local.ports import free_port
from deploy.local.ways.binaries import Processes
from tests.conftest import missing, or_missing
from tests.support import deployed, image
from tests.support.image import Container, Image
from tests.support.processes import get, wait_for

FOLDER: Final = image.ROOT / "deploy/compose"
SERVICES: Final[Mapping[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
READY_S: Final = 120
USER: Final = 10001
ORG: Final = "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e"


@pytest.fixture(scope="module")
def built() -> Image:
    if reason := image.impossible():
        missing(f"an image needs namespaces: {reason}")
    return image.build()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers of this module's own: roles belong to a whole PostgreSQL, and these begin without any."""
    with Stack(tmp_path_factory.mktemp("image-stack"), temporary=True) as stack:
        with or_missing():
            stack.start()
        yield stack


def inside(built: Image, folder: Path, script: str) -> str:
    """What a Python script prints in the image."""
    code, printed = built.run("-c", script, env={}, folder=folder, entrypoint=["python3"])
    assert code == 0, printed
    return printed


# --- what is in it --------------------------------------------------------------------------------------


def test_building_again_makes_no_layer_anew(built: Image) -> None:
    before = {path.name: path.stat().st_ino for path in built.store.iterdir()}
    again = image.build()
    assert again.layers == built.layers
    assert {path.name: path.stat().st_ino for path in built.store.iterdir()} == before


def test_the_process_is_a_plain_user_who_can_write_nowhere(built: Image, tmp_path: Path) -> None:
    script = """
import os, json
found = []
for folder, folders, _ in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    try:
        open(os.path.join(folder, "try"), "w").close()
        found.append(folder)
    except OSError as error:
        assert error.errno in (13, 30), error
print(json.dumps([os.getuid(), os.getgid(), os.getgroups(), os.getpid(), found]))
"""
    uid, gid, groups, pid, writable = json.loads(inside(built, tmp_path, script))
    assert (uid, gid, pid) == (USER, USER, 1)
    assert set(groups) <= {USER}
    assert writable == []


def test_there_is_no_compiler_no_pip_and_no_way_to_become_root(built: Image, tmp_path: Path) -> None:
    script = """
import importlib.util, os, shutil, stat
names = "cc gcc g++ c++ clang ld as make pip pip3 curl wget git".split()
print([name for name in names if shutil.which(name)])
print([name for name in ("pip", "setuptools", "Cython", "tests", "deploy") if importlib.util.find_spec(name)])
found = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    for name in files:
        mode = os.lstat(os.path.join(folder, name)).st_mode
        if stat.S_ISREG(mode) and mode & 0o6000:
            found.append(name)
print(found)
"""
    assert inside(built, tmp_path, script).splitlines() == ["[]", "[]", "[]"]


def test_a_process_that_is_killed_from_outside_leaves_nothing_behind(built: Image, tmp_path: Path) -> None:
    running = built.start(
        "-c", "import time; time.sleep(600)", env={}, folder=tmp_path, entrypoint=["python3"]
    )
    found: list[int] = []

    def is_up() -> bool:
        found[:] = processes.children(running.process.pid)
        return bool(found) and b"sleep(600)" in Path(f"/proc/{found[0]}/cmdline").read_bytes()

    wait_for(is_up, READY_S, running.printed)
    running.kill()
    wait_for(lambda: processes.start_mark(found[0]) is None, READY_S, lambda: "it still runs")


def test_the_version_is_that_of_the_project(built: Image, tmp_path: Path) -> None:
    code, printed = built.run("version", env={}, folder=tmp_path)
    assert (code, printed.strip()) == (0, f"spendstream {image.version()}")


def test_help_is_what_an_image_without_a_command_prints(built: Image, tmp_path: Path) -> None:
    code, printed = built.run(env={}, folder=tmp_path)
    assert code == 0
    assert "Usage: spendstream" in printed


def test_every_loop_is_there_compiled(built: Image, tmp_path: Path) -> None:
    code, printed = built.run("warm-up", env={}, folder=tmp_path)
    counts = re.fullmatch(r"(\d+) loops were loaded, 0 compiled\n", printed)
    assert code == 0
    assert counts, printed
    assert int(counts[1]) > 20


@pytest.mark.parametrize("other", [{"NUMBA_CPU_NAME": "x86-64-v2"}, {"NUMBA_CACHE_DIR": ""}], ids=str)
def test_a_process_compiles_for_itself_what_it_does_not_find_and_cannot_save(
    built: Image, tmp_path: Path, other: dict[str, str]
) -> None:
    """With loops of another machine, or without a folder at all."""
    script = """
from pipeline.core import checked
from pipeline.core.kernels import compile
checked.warm_up()
print(compile.counts())
"""
    code, printed = built.run("-c", script, env=other, folder=tmp_path, entrypoint=["python3"])
    assert code == 0, printed
    assert re.fullmatch(r"\(0, [1-9]\d*\)\n", printed)


# --- what it does -------------------------------------------------------------------------------------


class Deployment:
    """The services of the compose file that are ours, on servers of this machine."""

    def __init__(self, built: Image, stack: Stack, folder: Path) -> None:
        self._built = built
        self._folder = folder
        self._stack = stack
        self._running: dict[str, Container] = {}
        self.secrets = folder / "secrets"
        self.loops = folder / "loops"
        shutil.copytree(built.find(built.stage.environment["NUMBA_CACHE_DIR"]), self.loops)
        for path in (self.loops, *self.loops.rglob("*")):
            os.chown(path, USER, USER)
        subprocess.run(("sh", str(FOLDER / "secrets.sh"), str(self.secrets)), check=True)
        self._make_roles()
        self._name_our_servers()
        self.ports = {name: free_port() for name, one in deployed.PROCESSES.items() if one.port}

    def _make_roles(self) -> None:
        """Run roles.sql as the first start of PostgreSQL's container does."""
        server, way = self._stack.postgres, self._stack.way
        if not isinstance(way, Processes):
            missing("roles.sql is run by the psql of the local stack, which is in a container here")
        assert isinstance(way, Processes)
        place = server.data / "first-start"
        shutil.copytree(self.secrets, place / "secrets")
        shutil.copy(FOLDER / "roles.sql", place)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        seen = way.data_seen(server) / "first-start"
        psql = (str(way.binaries.pg_bin / "psql"), "-v", "ON_ERROR_STOP=1", "--no-psqlrc")
        way.run(server, *psql, "-v", f"secrets={seen}/secrets", "-f", f"{seen}/roles.sql", server.url)

    def _name_our_servers(self) -> None:
        """The secrets name the compose file's hosts. Here the servers are on ports of loopback."""
        stack = self._stack
        own = f"@127.0.0.1:{stack.postgres.ports['sql']}/"
        for path in self.secrets.glob("database_*_url"):
            self._write(path.name, path.read_text().replace("@postgres:5432/", own))
        self._write("rabbitmq_url", stack.rabbitmq.url)
        self._write("redis_url", stack.redis.url)
        self._write("s3_access_key", stack.s3.access_key)
        self._write("s3_secret_key", stack.s3.secret_key)
        for bucket in ("exports", "archive"):
            stack.s3.client().create_bucket(Bucket=bucket)

    def _write(self, name: str, text: str) -> None:
        (self.secrets / name).unlink()
        (self.secrets / name).write_text(text)
        (self.secrets / name).chmod(0o444)

    def environment(self, name: str) -> dict[str, str]:
        """The environment of the service: all ports and addresses are of loopback here."""
        given = {
            variable: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
            for variable, value in SERVICES[name]["environment"].items()
        }
        ours = {"S3_ENDPOINT": self._stack.s3.url} if "S3_ENDPOINT" in given else {}
        process = deployed.PROCESSES.get(name)  # none of `cli`, which listens nowhere
        if process is not None and process.port is not None and process.host is not None:
            ours |= {process.port: str(self.ports[name]), process.host: "127.0.0.1"}
        return {**given, **ours, "NUMBA_CACHE_DIR": "/run/loops"}

    def mounts(self, name: str) -> dict[str, Path]:
        """The secrets and volumes of the service, and the compiled loops where a new one would be seen."""
        handed = self._folder / f"secrets-of-{name}"
        if not handed.exists():
            handed.mkdir()
            for secret in SERVICES[name]["secrets"]:
                shutil.copy(self.secrets / secret, handed / secret)
        found = {"/run/secrets": handed, "/run/loops": self.loops}
        for volume in SERVICES[name].get("volumes", ()):
            outside = self._folder / volume.partition(":")[0]
            outside.mkdir(exist_ok=True)
            os.chown(outside, USER, USER)
            found[volume.partition(":")[2]] = outside
        return found

    def run(
        self, name: str, *command: str, entrypoint: list[str] | None = None, **more: str
    ) -> tuple[int, str]:
        """Run a command to its end with what the service has."""
        env = {**self.environment(name), **more}
        return self._built.run(
            *command, env=env, folder=self._folder, mounts=self.mounts(name), entrypoint=entrypoint
        )

    def run_line(self, line: str) -> tuple[int, str]:
        """Run a line of a page that begins with `docker compose run` or `docker run`, to its end.

        As an engine does, mount what the line mounts as it lies on the host. Its folder `secrets` is ours.
        """
        words = shlex.split(line)
        composed = words[1] == "compose"
        words = words[3:] if composed else words[2:]
        given: dict[str, str] = {}
        mounts: dict[str, Path] = {}
        while words[0].startswith("-"):
            option = words.pop(0)
            if option in ("-v", "-e", "--cap-drop", "--security-opt"):
                value = words.pop(0)
                if option == "-e":
                    name, _, given[name] = value.partition("=")
                elif option == "-v":
                    outside, inside, *_ = value.split(":")
                    mounts[inside] = self._folder / outside
            else:
                assert option in ("--rm", "--read-only"), line
        service, *command = words
        if composed:
            given = {**self.environment(service), **given}
            mounts = {**self.mounts(service), **mounts}
        else:
            assert service == f"spendstream:{image.version()}"
        return self._built.run(*command, env=given, folder=self._folder, mounts=mounts)

    def start(self, name: str) -> None:
        """Start the service, and wait until its page says that it is ready."""
        running = self._built.start(
            *SERVICES[name]["command"],
            env=self.environment(name),
            folder=self._folder,
            mounts=self.mounts(name),
        )
        self._running[name] = running
        if name in self.ports:
            wait_for(
                lambda: self._is_ready(name) or running.process.poll() is not None, READY_S, running.printed
            )
        assert running.process.poll() is None, running.printed()

    def _is_ready(self, name: str) -> bool:
        path = next(path for path in deployed.routes(name) if path.endswith("/readyz"))
        try:
            return get(f"http://127.0.0.1:{self.ports[name]}{path}", timeout_s=10)[0] == 200
        except OSError:
            return False

    def stop(self, name: str) -> tuple[int, str]:
        running = self._running.pop(name)
        return running.stop(), running.printed()

    def kill(self) -> None:
        for running in self._running.values():
            running.kill()


@pytest.fixture(scope="module")
def deployment(
    built: Image, servers: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    deployment = Deployment(built, servers, folder)
    yield deployment
    deployment.kill()


def request(url: str, key: str, body: bytes | None = None) -> tuple[int, Any]:
    import urllib.error
    import urllib.request

    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def lines(page: str, beginning: str) -> list[str]:
    """The lines of a page's shell blocks that begin so, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (image.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    written = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.partition(" #")[0] for line in written if line.startswith(beginning)]
    assert found, f"{page} has no line `{beginning}`"
    return found


def test_an_event_goes_through_every_process_of_the_image(deployment: Deployment) -> None:
    """Each process has its own role in the database. An event, its figures, a file of it; SIGTERM to each."""
    before = {path.name for path in deployment.loops.rglob("*")}
    (line,) = lines("docs/howto/image.md", "docker run --read-only --cap-drop")
    for code, printed in (deployment.run("migrate", "migrate"), deployment.run_line(line)):
        assert code == 0, printed
        assert "spendstream_reader may read rollups" in printed
    for name in ("worker", "api", "exporter", "alerts", "collector"):
        deployment.start(name)
    for name, port in deployment.ports.items():
        # The compose file's own check of health, as the engine would run it.
        test = [
            word.replace(f":{deployed.port(name)}/", f":{port}/")
            for word in SERVICES[name]["healthcheck"]["test"]
        ]
        code, printed = deployment.run(name, *test[2:], entrypoint=[test[1]])
        assert code == 0, printed

    for line in lines("docs/howto/compose.md", "docker compose run"):
        code, printed = deployment.run_line(line)
        assert code == 0, f"{line}\n{printed}"
        if " keys create " in line:
            assert re.search(r"^ssk_[\w-]+$", printed, re.MULTILINE), printed

    keys = {}
    for role in (
        "analytics:events:write",
        "analytics:usage:read",
        "analytics:exports:create",
        "analytics:exports:read",
    ):
        code, printed = deployment.run(
            "cli", "keys", "create", "--org", ORG, "--role", role, "--label", "test"
        )
        assert code == 0, printed
        (keys[role],) = re.findall(r"ssk_[\w-]+", printed)

    now = datetime.now(UTC)
    event = {
        "eventId": str(uuid.uuid4()),
        "orgId": ORG,
        "modelId": str(uuid.uuid4()),
        "occurredAt": now.isoformat(),
        "latencyMs": 12,
        "status": "success",
        "inputTokens": 800,
        "outputTokens": 50,
        "costEstimateCents": "0.25",
    }
    url = f"http://127.0.0.1:{deployment.ports['collector']}/v1/events"
    status, answer = request(url, keys["analytics:events:write"], json.dumps(event).encode())
    assert (status, answer["accepted"]) == (200, 1)

    api = f"http://127.0.0.1:{deployment.ports['api']}/analytics/v1/orgs/{ORG}"
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    start, end = (
        f"{day - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
        f"{day + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
    )
    asked = f"{api}/usage?start={start}&end={end}&granularity=day"

    def counted() -> bool:
        status, answer = request(asked, keys["analytics:usage:read"])
        assert status == 200, answer
        return bool(answer["totals"]["invocations"] == 1)

    wait_for(counted, READY_S, lambda: "the event is not in an answer")

    order = {"format": "csv", "granularity": "daily", "timeRange": {"start": start, "end": end}}
    status, job = request(f"{api}/exports", keys["analytics:exports:create"], json.dumps(order).encode())
    assert status == 202, job

    def exported() -> bool:
        status, answer = request(f"{api}/exports/{job['jobId']}", keys["analytics:exports:read"])
        assert status == 200, answer
        assert answer["status"] != "failed", answer
        return bool(answer["status"] == "succeeded")

    wait_for(exported, READY_S, lambda: "the export is not made")

    for name in ("collector", "alerts", "exporter", "api", "worker"):
        code, printed = deployment.stop(name)
        assert code == 0, printed
    assert "last_flush_committed" in printed
    assert {path.name for path in deployment.loops.rglob("*")} == before, "a process compiled a loop"


def test_a_secret_that_is_not_there_is_named(deployment: Deployment) -> None:
    code, printed = deployment.run("api", "api", CURSOR_SECRET_FILE="/run/secrets/nowhere")
    assert code == 2
    assert "CURSOR_SECRET_FILE='/run/secrets/nowhere': the file cannot be read" in printed
