"""Numbering of ids and names: the loops of `events.Uuids` and `events.Names`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.kernels.compile import VECTOR, byte, compiled, inlined, same_chars, word
from pipeline.core.kernels.hashing import mix, pair_sum


@compiled
def intern_pairs(secret: Any, slots: Any, keys: Any, numbers: Any, used: int, wanted: Any, out: Any) -> int:
    """Number 128-bit values: ``out`` int32[n] gets the place of ``wanted`` uint64[n, 2] in ``keys``.

    The first ``used`` of ``numbers`` int32[...] are taken. A new value gets the next number. Returns how many
    numbers are taken afterwards.
    """
    mask = np.uint64(len(slots) - 1)
    k0, k1, k2, k3, k4 = secret[0], secret[1], secret[2], secret[3], secret[4]
    for i in range(len(wanted)):
        high, low = wanted[i, 0], wanted[i, 1]
        slot = mix(k0 + pair_sum(high, low, k1, k2, k3, k4)) & mask
        while True:
            row = slots[slot]
            if row < 0:
                row = numbers[used]
                keys[row, 0] = high
                keys[row, 1] = low
                slots[slot] = row
                out[i] = row
                used += 1
                break
            if keys[row, 0] == high and keys[row, 1] == low:
                out[i] = row
                break
            slot = (slot + np.uint64(1)) & mask
    return used


@inlined
def _masked_word(text: Any, at: int, length: int) -> Any:
    """The eight bytes at a place, with zeros in place of the bytes from ``length`` (at least 1) on."""
    whole = word(text, at)
    return whole if length >= 8 else whole & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))


@inlined
def _same_bytes(text: Any, at: int, other: Any, other_at: int, length: int) -> bool:
    """Are the ``length`` bytes at a place of one text those at a place of another?"""
    for j in range(0, length, VECTOR):
        if same_chars(text, at + j, other, other_at + j) < min(length - j, VECTOR):
            return False
    return True


MEMO_SLOTS: Final = 4096
_MEMO_WORDS: Final = 8
"""A slot of a memo: one word with the number and the length of a name, and seven words with its text."""
_MEMO_BYTES: Final = 8 * _MEMO_WORDS
_MEMO_CHARS: Final = _MEMO_BYTES - 8


def new_memo() -> Any:
    """Room for names that came lately: int64[...] for `intern_texts`, which remembers them for `recall`."""
    return np.zeros((MEMO_SLOTS + 1, _MEMO_WORDS), np.int64)  # one more, because readers look ahead


@inlined
def _memo_slot(text: Any, first: int, length: int) -> Any:
    """The slot of a name: eight characters of its begin and of its end decide.

    Names that meet in one slot push each other out, and `intern_texts` finds them all the same. So the slot
    needs no secret.
    """
    head = _masked_word(text, first, length)
    tail = _masked_word(text, first + max(length - 8, 0), length)
    return np.int64(
        (head * np.uint64(0x9E3779B97F4A7C15) ^ tail * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(52)
    )


@inlined
def recall(memo: Any, text: Any, first: int, end: int) -> Any:
    """The number of the name ``text[first:end]`` if the memo has it, else -1. The empty name is number 0.

    ``memo`` and ``text`` are a `compile.handle` each.
    """
    length = end - first
    if length == 0:
        return 0
    at = _MEMO_BYTES * _memo_slot(text, first, length)
    known = np.int64(word(memo, at))
    if known & 0xFF == length and _same_bytes(memo, at + 8, text, first, length):
        return known >> 8
    return -1


@compiled
def intern_texts(
    secret: Any,
    slots: Any,
    memo: Any,
    pool: Any,
    pool_text: Any,
    edges: Any,
    used: int,
    text: Any,
    ranges: Any,
    out: Any,
    begin: int,
) -> Any:
    """Number the names ``text[ranges[i, 0] : ranges[i, 1]]`` for i from ``begin``: ``out`` int32[n].

    ``memo`` is a `new_memo`. It remembers the names that are short enough, one in each slot.

    ``text`` is a `compile.handle`. ``pool_text`` is the handle of ``pool`` uint8[...]. In both, up to 31
    bytes behind a name are read. Name ``k`` is ``pool[edges[k] : edges[k + 1]]``, and name 0 is the empty
    one. Returns how many names there are afterwards, and the place where the loop stopped. The loop stops
    short of n only when ``pool`` is full.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(begin, len(ranges)):
        first = ranges[i, 0]
        length = ranges[i, 1] - first
        if length == 0:
            out[i] = 0
            continue
        h = secret[0] + secret[1] * np.uint64(length)
        for j in range(0, length, 8):
            part = _masked_word(text, first + j, length - j)
            k = 2 + ((j >> 2) & 127)  # a name has at most 512 bytes, as 128 characters
            h += secret[k] * (part >> np.uint64(32)) + secret[k + 1] * (part & np.uint64(0xFFFFFFFF))
        slot = mix(h) & mask
        while True:
            name = slots[slot]
            if name < 0:
                at = edges[used]
                if at + length + VECTOR > len(pool):
                    return used, i
                for j in range(length):
                    pool[at + j] = byte(text, first + j)
                slots[slot] = used
                out[i] = used
                used += 1
                edges[used] = at + length
                break
            if edges[name + 1] - edges[name] == length and _same_bytes(
                pool_text, edges[name], text, first, length
            ):
                out[i] = name
                break
            slot = (slot + np.uint64(1)) & mask
        if length <= _MEMO_CHARS:
            slot_of_memo = _memo_slot(text, first, length)
            memo[slot_of_memo, 0] = np.int64(out[i]) << 8 | length
            for j in range(0, length, 8):
                memo[slot_of_memo, 1 + (j >> 3)] = np.int64(_masked_word(text, first + j, length - j))
    return used, len(ranges)


_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)


@compiled
def write_uuids(ids: Any, out: Any) -> None:
    """Write ids uint64[n, 2] (high, low) into ``out``, as texts of 36 characters, one after the other."""
    at = 0
    for i in range(len(ids)):
        for nibble in range(32):
            if nibble == 8 or nibble == 12 or nibble == 16 or nibble == 20:
                out[at] = 45  # a hyphen
                at += 1
            half = ids[i, nibble >> 4] >> np.uint64(60 - 4 * (nibble & 15))
            out[at] = _HEX[half & np.uint64(15)]
            at += 1
