"""How the tests are laid out: what tests share is in `tests/support`, and a unit test starts nothing."""

from __future__ import annotations

import ast
import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SOURCES = sorted(TESTS.rglob("*.py"))


def imported_tests(source: str) -> Iterator[str]:
    """The modules of tests that a module of ours imports, by any form of the statement."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            names = [package, *(f"{package}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            ours = name.startswith(("tests.", "."))
            if ours and name.rpartition(".")[2].startswith("test_"):
                yield name


def test_an_import_of_a_test_would_be_found() -> None:
    for source, found in (
        ("import tests.unit.test_names", "tests.unit.test_names"),
        ("from tests.unit.test_names import NAMES", "tests.unit.test_names"),
        ("from tests.unit import test_names", "tests.unit.test_names"),
        ("def f():\n    from . import test_names", "..test_names"),
        ("from .test_names import NAMES", ".test_names"),
    ):
        assert found in imported_tests(source), source
    assert list(imported_tests("from aiohttp.test_utils import TestClient")) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(TESTS)))
def test_nothing_imports_from_a_test(source: Path) -> None:
    assert list(imported_tests(source.read_text())) == []


REFUSED = "belongs in tests/integration"


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "--version"], check=True),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: multiprocessing.Process(target=print).start(),
        lambda: socket.create_server(("127.0.0.1", 0)),
    ],
    ids=["command", "spawn", "process", "socket"],
)
def test_a_unit_test_can_start_neither_a_process_nor_a_server(start: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=REFUSED):
        start()


async def test_nor_can_it_by_asyncio() -> None:
    with pytest.raises(AssertionError, match=REFUSED):
        await asyncio.create_subprocess_exec(sys.executable, "--version")
    with pytest.raises(AssertionError, match=REFUSED):
        await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
