"""One place opens connections, and what a session is told."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.connect import Session

ROOT = Path(__file__).parents[2]
OPENERS = {"create_engine", "create_async_engine", "ConnectionPool", "AsyncConnectionPool"}


def openings(source: str) -> Iterator[str]:
    """Calls that open a connection of psycopg or SQLAlchemy by themselves."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "psycopg",
            "psycopg_pool",
        ):
            yield from (f"from {node.module} import connect" for name in node.names if name.name == "connect")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if last in OPENERS or (called.startswith("psycopg") and last == "connect"):
            yield called


def test_every_connection_is_opened_in_one_place() -> None:
    found = {
        str(path.relative_to(ROOT)): calls
        for folder in ("api", "pipeline", "sql")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (calls := list(openings(path.read_text())))
    }
    assert found == {"pipeline/common/connect.py": ["create_engine"]}


def test_an_opening_would_be_found() -> None:
    for source in (
        "psycopg.connect(url)",
        "await psycopg.AsyncConnection.connect(url)",
        "create_engine(url)",
    ):
        assert list(openings(f"async def f(): {source}")), source


def test_limits_are_said_in_milliseconds_and_none_is_zero() -> None:
    settings = Session(application_name="a", statement_timeout_s=1.5).settings()
    assert (settings["statement_timeout"], settings["lock_timeout"]) == ("1500", "0")
    assert settings["application_name"] == "a"
