"""Ids made of names: the published vectors, and what keeps two things apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import NAMESPACE_DNS, UUID, uuid5

from hypothesis import given
from hypothesis import strategies as st

from pipeline.collector import ids

PAGE = Path(__file__).resolve().parents[3] / "docs/ids.md"
ORG = UUID("5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e")


def test_the_published_vectors_are_what_the_code_makes() -> None:
    text = PAGE.read_text()
    for name, namespace in (
        ("org", ids.ORG_NAMESPACE),
        ("model", ids.MODEL_NAMESPACE),
        ("event", ids.EVENT_NAMESPACE),
    ):
        assert namespace == uuid5(NAMESPACE_DNS, f"{name}.spendstream.example")
        assert f"| {name} | `{namespace}` |" in text
    rows = re.findall(r"^\| (org|model|event) \| `(.*)` \| `([0-9a-f-]{36})` \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    for kind, made_of, expected in rows:
        if kind == "org":
            made = ids.org_id(made_of)
        elif kind == "model":
            made = ids.model_id(*made_of.split("/", 1))
        else:
            org, dialect, source = made_of.split("/", 2)
            made = ids.event_id(UUID(org), dialect, source)
        assert str(made) == expected, made_of


def test_a_uuid_stays_in_lower_case_and_a_name_is_taken_exactly() -> None:
    assert ids.org_id(str(ORG).upper()) == ORG
    assert ids.event_id(ORG, "litellm", str(ORG)) == ORG
    names = ["acme", "Acme", "acme ", f"{{{ORG}}}", str(ORG).replace("-", ""), f"urn:uuid:{ORG}"]
    assert len({ids.org_id(name) for name in names}) == len(names)
    assert ORG not in {ids.org_id(name) for name in names}


def test_two_orgs_two_dialects_and_two_ids_make_different_events() -> None:
    made = {
        ids.event_id(org, dialect, source)
        for org in (ORG, UUID(int=1))
        for dialect in ("litellm", "otlp")
        for source in ("1", "2")
    }
    assert len(made) == 8


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_an_id_that_postgresql_makes_too(name: str) -> None:
    """RFC 9562: version 5, variant 10, of the name's UTF-8 bytes."""
    made = ids.model_id("p", name)
    assert made.version == 5
    assert json.dumps(str(made)) == f'"{made}"'
