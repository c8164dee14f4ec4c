"""While tracing is off, nothing is worked out for a span."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.common import traces

ROOT = Path(__file__).resolve().parents[3]
CHEAP = {"len"}
"""Functions that an attribute may call although nobody has asked whether the span is recorded."""


def costly(tree: ast.AST, *, asked: bool = False) -> Iterator[int]:
    """The lines on which an attribute of a span calls something, and no ``if span:`` stands above it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("span"):
            for part in node.body:
                yield from costly(part, asked=True)
            for part in node.orelse:
                yield from costly(part, asked=asked)
            continue
        if isinstance(node, ast.Call) and not asked and gives_attributes(node.func):
            for keyword in node.keywords:
                called = [one for one in ast.walk(keyword.value) if isinstance(one, ast.Call)]
                if any(ast.unparse(one.func) not in CHEAP for one in called) and keyword.arg != "links":
                    yield node.lineno
        yield from costly(node, asked=asked)


def gives_attributes(function: ast.expr) -> bool:
    return ast.unparse(function) in ("traces.span", "traces.child", "span.set", "span.add")


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("span.set(rows=sum(map(len, found)))", [1]),
        ("if span:\n    span.set(rows=sum(map(len, found)))", []),
        ("if span:\n    pass\nelse:\n    span.set(rows=sum(found))", [4]),
        ("with traces.span('flush', rows=batch.count()) as span:\n    span.add(rows=len(found))", [1]),
    ],
)
def test_the_rule_finds_what_is_worked_out(code: str, lines: list[int]) -> None:
    assert list(costly(ast.parse(code))) == lines


def test_what_has_to_be_worked_out_for_a_span_is_worked_out_for_one_that_is_recorded() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("pipeline", "api")
        for path in (ROOT / folder).rglob("*.py")
        if "traces." in (text := path.read_text())
        and path.parent.name != "traces"  # these know that it is on
        for line in costly(ast.parse(text))
    ]
    assert found == []
    assert not traces.OFF
