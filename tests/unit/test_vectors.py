"""The loops that look at 32 characters at once agree with plain Python, at every place of a character."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.core.bodies import PADDING
from pipeline.core.events import IntArray, Names
from pipeline.core.kernels.compile import compiled, handle
from pipeline.core.kernels.names import recall
from pipeline.core.lexer import skip_plain

_LENGTHS = range(1, 70)


@pytest.mark.parametrize("odd", [*b'"\\\x00\x1f', 0x80, 0xC3, 0xFF])
def test_plain_characters_end_at_the_first_odd_one(odd: int) -> None:
    for length in _LENGTHS:
        for place in range(length):
            chars = bytearray(b"~ az09[]" * 9)[:length]
            chars[place] = odd
            text = np.frombuffer(bytes(chars) + PADDING, np.uint8)
            assert skip_plain(handle(text), 0, length) == place
            assert skip_plain(handle(text), place, length) == place
            assert skip_plain(handle(text), 0, place) == place, "nothing behind the end counts"


@pytest.mark.parametrize("plain", [*b" !#[]~\x7f"])
def test_plain_characters_are_skipped_up_to_the_end(plain: int) -> None:
    for length in _LENGTHS:
        text = np.frombuffer(bytes([plain]) * length + PADDING, np.uint8)
        assert skip_plain(handle(text), 0, length) == length


def test_names_that_differ_in_one_byte_have_numbers_of_their_own() -> None:
    names = Names()
    for length in _LENGTHS:
        base = "a" * length
        texts = [base, *(f"{base[:place]}b{base[place + 1 :]}" for place in range(length))]
        numbers = names.numbers(texts)
        assert len(set(numbers.tolist())) == len(texts)
        assert names.numbers(texts).tolist() == numbers.tolist()
        assert [names.texts[number] for number in numbers.tolist()] == texts


def test_a_memo_never_gives_a_wrong_number() -> None:
    names = Names()
    texts = [f"{begin}{length}".ljust(length, "x") for length in range(70) for begin in ("p", "q", "pq", "é")]
    numbers = names.numbers(texts)
    joined, ranges = _joined(texts)
    recalled = np.empty(len(texts), np.int32)
    _recall_all(names.memo, handle(joined), ranges, recalled)
    assert set(recalled.tolist()) <= {-1, *numbers.tolist()}
    assert (recalled == numbers)[recalled >= 0].all()
    assert np.count_nonzero(recalled >= 0) > 100, "the memo has the short ones"
    assert names.complete(joined, ranges, recalled).tolist() == numbers.tolist()


def test_a_memo_knows_no_name_of_before_it() -> None:
    texts = ["a", "b" * 8, "c" * 31, "d" * 32, "e" * 33, "f" * 56, "g" * 57, "h" * 128]
    joined, ranges = _joined(texts)
    recalled = np.empty(len(texts), np.int32)
    names = Names()
    _recall_all(names.memo, handle(joined), ranges, recalled)
    assert recalled.tolist() == [-1] * len(texts)


def _joined(texts: list[str]) -> tuple[IntArray, IntArray]:
    encoded = [text.encode() for text in texts]
    edges = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join(encoded) + PADDING, np.uint8), np.stack((edges[:-1], edges[1:]), axis=1)


@compiled
def _recall_all(memo: Any, text: Any, ranges: Any, out: Any) -> None:
    for i in range(len(ranges)):
        out[i] = recall(memo, text, ranges[i, 0], ranges[i, 1])
