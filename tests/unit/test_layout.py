"""How the tests are laid out: what tests share is in `tests/support`, and no test reads another one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
