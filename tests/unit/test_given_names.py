"""The rules of the names that administrators give to orgs and values, without a database."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from click.testing import CliRunner

from api.names import orders
from api.reading import names as reading
from pipeline import cli
from pipeline.common import names
from pipeline.common.problems import Problem
from pipeline.core import wire

ORG = uuid.UUID(int=1)
GOOD = ["a", "Acme Ltd.", "Größe 東京", "x" * 128, " a ", "=1+1", "'; DROP TABLE names; --", "😀" * 128]
BAD: list[Any] = [
    "", " ", "\u3000", "x" * 129, "a\0", "a\n", "\x1b[31m", "\x85", "\ud800",
    "a\u2028b", "a\u202eb", "\u2066a", "\u200b", " \u200b\u3164", 7, True, [], {}, b"a",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_text_of_one_line_is_a_name(name: str) -> None:
    assert names.is_name(name)
    assert list(names.faults_of(name, value="t-17", dimension="team")) == []


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_is_refused_and_the_rule_is_said(name: Any) -> None:
    assert list(names.faults_of(name)) == [("name", names.NAME_RULE)]


def test_no_name_is_no_fault_because_it_removes_the_name() -> None:
    assert list(names.faults_of(None)) == []


@pytest.mark.parametrize("value", ["", "x" * 129, "a\0", "\ud800", 7, None, wire.OVERFLOW_VALUE])
def test_only_values_that_events_can_have_by_name_are_named(value: Any) -> None:
    assert list(names.faults_of("Search", value=value, dimension="team")) == [("value", names.VALUE_RULE)]
    assert names.is_value("a\nb\x1b"), "events may have such a value"


# --- bodies ---


def faults(read: Any, body: Any) -> list[str]:
    with pytest.raises(Problem) as raised:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return [fault.field for fault in raised.value.errors]


def of_org(body: bytes) -> names.Naming:
    return orders.of_org(body, ORG)


def of_values(body: bytes) -> names.Naming:
    return orders.of_values(body, ORG, "team")


def test_the_name_of_an_org_is_read() -> None:
    assert of_org(b'{"name": "Acme"}') == names.naming_of_org(ORG, "Acme")
    assert of_org(b'{"name": null}') == names.naming_of_org(ORG, None)
    assert faults(of_org, {}) == ["name"]
    assert faults(of_org, {"name": "", "more": 1}) == ["more", "name"]
    for junk in (b"", b"[]", b"null", b"\xff"):
        assert faults(of_org, junk) == [""]


def test_every_fault_of_the_names_of_values_is_named_at_once() -> None:
    items = [
        {"value": "a", "name": "A"},
        {"value": "", "name": "B"},
        {"value": "c", "name": "\n"},
        {"value": "d"},
        {"value": "e", "name": "E", "more": 1},
        "f",
        {"value": "a", "name": None},
        {"value": 7, "name": 7},
    ]
    assert faults(of_values, {"items": items}) == [
        "items[1].value",
        "items[2].name",
        "items[3]",
        "items[4]",
        "items[5]",
        "items[6].value",
        "items[7].value",
        "items[7].name",
    ]
    many = [{"value": "a", "name": "b"}] * (orders.ITEMS_MAX + 1)
    wrong: tuple[Any, ...] = (None, [], "a", {}, many)
    for given in wrong:
        assert faults(of_values, {"items": given}) == ["items"]


def test_names_of_values_keep_the_order_of_the_body() -> None:
    naming = of_values(b'{"items": [{"value": "b", "name": "B"}, {"value": "a", "name": null}]}')
    assert list(naming.names.items()) == [("b", "B"), ("a", None)]
    assert naming.needs_dimension
    assert not of_values(b'{"items": [{"value": "a", "name": null}]}').needs_dimension
    of_clients = orders.of_values(b'{"items": [{"value": "key-1", "name": "Mobile app"}]}', ORG, "client")
    assert not of_clients.needs_dimension, "clients are always counted"
    assert not of_org(b'{"name": "a"}').needs_dimension


# --- reading ---


def test_the_values_of_a_page_are_asked_for_once_each_and_with_room_for_the_org() -> None:
    asked = reading.asked(ORG, "team", ["b", None, "a", "", "b"])
    assert (asked["named"], asked["names_max"]) == (["a", "b"], 3)
    assert (reading.asked(ORG)["named"], reading.asked(ORG)["names_max"]) == ([], 1)
    assert reading.asked(ORG, "team", None)["named"] is None


def test_rows_are_the_name_of_the_org_and_of_values() -> None:
    found = reading.names_of([("", "", "Acme"), ("team", "t-17", "Search")])
    assert found == reading.Names(org="Acme", values={"t-17": "Search"})
    assert reading.names_of([]) == reading.NO_NAMES


# --- the command ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["Acme", "--dimension", "team"], ["--dimension and --value belong together"]),
        (["Acme", "--value", "a"], ["--dimension and --value belong together"]),
        (["Acme", "--dimension", "", "--value", "a"], ["--dimension and --value belong together"]),
        ([""], ["NAME expected a text of 1 to 128 characters"]),
        (["\n", "--dimension", "team", "--value", ""], ["NAME expected", "--value expected a value"]),
    ],
)
def test_the_command_names_every_fault(given: list[str], said: list[str]) -> None:
    result = CliRunner().invoke(cli.main, ["names", "set", "--org", str(ORG), *given])
    assert result.exit_code == 2
    for text in said:
        assert text in result.output, result.output
