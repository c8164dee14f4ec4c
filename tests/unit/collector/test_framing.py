"""Bodies to items: arrays, lines, depth, and what is no JSON."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.collector.dialects import Unreadable, framing
from pipeline.core import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module", params=[3, framing._BLOCK_BYTES])
def block_bytes(request: pytest.FixtureRequest) -> Iterator[int]:
    """With blocks of 3 bytes, strings, escapes and brackets lie across their edges.

    Only tests of small bodies ask for them: a body of 4 MB has 1.4 million such blocks, which take minutes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "_BLOCK_BYTES", request.param)
        yield request.param


of_small_blocks_too = pytest.mark.usefixtures("block_bytes")


@of_small_blocks_too
@given(st.lists(JSON, max_size=5), st.booleans())
def test_an_array_is_cut_into_its_elements_both_ways(elements: list[object], is_ascii: bool) -> None:
    """Also with halves of surrogate pairs, which msgspec refuses."""
    text = json.dumps(elements, ensure_ascii=is_ascii)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    assert [json.loads(one) for one in framing.elements(body)] == elements
    assert [json.loads(one) for one in framing._cut(body)] == elements


@of_small_blocks_too
@given(st.binary(max_size=40) | st.text('[]{},:"\\ 1ae-.ud8', max_size=40).map(str.encode))
def test_what_is_taken_as_json_is_what_the_contract_takes_as_json(text: bytes) -> None:
    try:
        framing.check_text(text)
    except Unreadable:
        is_json = False
    else:
        is_json = framing.fault_of(text) is None
    verdict = wire.read(text)
    said = verdict.faults[0].message if isinstance(verdict, wire.Invalid) else ""
    assert is_json == (not said.startswith("not ") or said == "not a JSON object")


@of_small_blocks_too
@pytest.mark.parametrize(
    "body",
    [
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1",
        b"[1]]",
        b"[1] 2",
        b'["\\ud800" 1]',
        b'["\\ud800", NaN]',
        b'["\\ud800",]',
        b'["\\ud800"',
        b'["\\ud800"}',
        b'["a\\"]',
        b"[01]",
        b"[" * 100_000,
    ],
)
def test_a_broken_array_is_no_array(body: bytes) -> None:
    for cut in (framing.elements, _lazily):
        with pytest.raises(Unreadable):
            list(cut(body))


def _lazily(body: bytes) -> list[bytes]:
    """As a body with many commas is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "_COMMAS_MAX", -1)
        return list(framing.elements(body))


def test_lines_are_cut_without_blank_ones() -> None:
    body = b'\n \n{"a": 1}\r\n\t\nbroken \n\n{"b": "x\xc2\x85y"}'
    assert list(framing.lines(body)) == [b'{"a": 1}', b"broken", b'{"b": "x\xc2\x85y"}']


@of_small_blocks_too
@pytest.mark.parametrize("depth", [199, 200, 201, 30_000])
def test_depth_is_counted_as_the_contract_counts_it(depth: int) -> None:
    text = b'{"a":' * (depth - 1) + b'["\\"]["' + b',"]]]]"' * 300 + b"]" + b"}" * (depth - 1)
    assert framing.is_too_deep(text) == (depth > wire.DEPTH_MAX)
    if len(text) < wire.BODY_BYTES_MAX:
        assert (wire.check(text)[0].message == framing.TOO_DEEP) == (depth > wire.DEPTH_MAX)


@pytest.mark.parametrize("element", [b"1", b"{}", b'""', b"[[],[]]"])
def test_a_body_of_tiny_elements_needs_no_memory_for_those_that_nobody_takes(element: bytes) -> None:
    body = b"[" + b",".join([element] * (2_000_000 // len(element))) + b"]"
    tracemalloc.start()
    try:
        assert len(list(islice(framing.elements(body), 1000))) == 1000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@given(st.text(st.sampled_from("a\\u\ud83d\ude00\ud800\n"), max_size=12))
def test_mending_replaces_halves_of_pairs_and_nothing_else(text: str) -> None:
    given = json.dumps(text).encode()
    mended = framing.mended(given)
    assert len(mended) == len(given)
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    whole = json.loads(mended)
    assert "\ud800" not in whole
    assert whole == expected or "\ufffd" in whole
    if wire.is_storable(json.loads(given)):
        assert mended == given
