"""The lexer of JSON, in compiled loops: strings, numbers and whole values.

Positions are indices into a text (`kernels.compile.handle`). `bodies.PADDING` ends the text, because up to
32 bytes are read at a time. A function that skips a token returns the place after the token, or `BAD` if the
token is not plainly right. The lexer knows nothing of the fields of an event. `pipeline.core.scan` knows
them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.kernels.compile import VECTOR, byte, compiled, inlined, plain_chars, trailing_zeros, word

BAD: Final = -1

SPACE, QUOTE, BACKSLASH, COMMA, COLON = map(ord, ' "\\,:')
BRACE, BRACE_END, BRACKET, BRACKET_END = map(ord, "{}[]")
PLUS, MINUS, POINT, ZERO, NINE = map(ord, "+-.09")
SMALL_A, SMALL_E, SMALL_F, SMALL_N, SMALL_T, SMALL_U, SMALL_Z = map(ord, "aefntuz")
LARGE_E, LARGE_T, LARGE_Z = map(ord, "ETZ")
"""Characters by their codes in ASCII."""

DIGITS_MAX: Final = 18
POWERS_OF_TEN: Final = np.array([10**power for power in range(DIGITS_MAX + 1)], np.int64)
_DEPTH_MAX: Final = 60

_EACH: Final = np.uint64(0x0101010101010101)
"""A word with 1 in each of its eight bytes. Multiplied by c, it is a word of eight characters c."""
_TOPS: Final = np.uint64(0x8080808080808080)
"""A word with the highest bit of each of its eight bytes."""
_IS_HEX: Final = np.array([chr(c) in "0123456789abcdefABCDEF" for c in range(256)])
_IS_SPACE: Final = np.array([chr(c) in "\t\n\r " for c in range(256)])
_IS_ESCAPED: Final = np.array([chr(c) in '"\\/bfnrt' for c in range(256)])
"""The characters that can follow a backslash alone."""
_NULL_WORD, _TRUE_WORD = (np.uint64(int.from_bytes(text, "little")) for text in (b"null", b"true"))
_FALSE_WORD: Final = np.uint64(int.from_bytes(b"false", "little"))
_FOUR, _FIVE = np.uint64(2**32 - 1), np.uint64(2**40 - 1)
"""The first four, and the first five, bytes of a word."""


# --- eight characters at a time --------------------------------------------------------------------------

# The first character is in the lowest byte of a word. The tests for a zero byte and for a small byte in a
# word come from Anderson, Bit Twiddling Hacks. The lowest byte that a test marks is right. Bytes above
# it may be marked wrongly, so only the lowest mark is used.


@inlined
def skip_plain(text: Any, at: int, end: int) -> int:
    """Skip plain characters: the place of the first quote, backslash, control or non-ASCII character."""
    while at < end:
        plain = plain_chars(text, at)
        at += plain
        if plain < VECTOR:
            break
    return min(at, end)


@compiled
def read_hex(digits: Any) -> Any:
    """The number in eight hex digits, and a word that is 0 if all eight characters are hex digits."""
    letter = digits >> np.uint64(6) & _EACH
    lower = digits | letter << np.uint64(5)
    not_digit = ~(lower + _EACH * np.uint64(128 - ZERO)) | lower + _EACH * np.uint64(127 - NINE)
    not_letter = ~(lower + _EACH * np.uint64(128 - SMALL_A)) | lower + _EACH * np.uint64(127 - SMALL_F)
    nibbles = (digits & _EACH * np.uint64(15)) + letter * np.uint64(9)
    octets = (nibbles << np.uint64(4) | nibbles >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    pairs = (octets << np.uint64(8) | octets >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    number = (pairs << np.uint64(16) | pairs >> np.uint64(32)) & np.uint64(0xFFFFFFFF)
    return number, (not_digit & not_letter | digits) & _TOPS


@compiled
def _number_of_digits(digits: Any, count: int) -> Any:
    """The number in the first ``count`` bytes (1 to 8) of a word. Each byte is the value of a digit, 0 to 9.

    Neighbours are joined three times: digits into pairs, pairs into fours, fours into eight (Lemire, "Quickly
    parsing eight digits", 2018).
    """
    digits <<= np.uint64(64 - 8 * count)  # zeros in front
    pairs = (digits * np.uint64(10) + (digits >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return np.int64((fours * np.uint64(10_000) + (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF))


@inlined
def read_digits(text: Any, at: int, end: int) -> tuple[int, int]:
    """Read the digits from ``at`` on: their number, and the place after them. No digits give 0.

    With more than `DIGITS_MAX` digits the number has overflowed. The caller must count the digits.
    """
    number = 0
    while True:
        digits = word(text, at) ^ _EACH * np.uint64(ZERO)
        others = ((digits & ~_TOPS) + _EACH * np.uint64(128 - 10) | digits) & _TOPS
        count = min(trailing_zeros(others) >> 3, end - at)
        if count <= 0:
            return number, at
        number = number * POWERS_OF_TEN[count] + _number_of_digits(digits, count)
        at += count
        if count < 8:
            return number, at


@compiled
def read_few_digits(text: Any, at: int, count: int) -> int:
    """The number in the ``count`` digits at ``at``, or -1 if one of them is no digit."""
    value = 0
    for j in range(at, at + count):
        c = byte(text, j)
        if c < ZERO or c > NINE:
            return -1
        value = value * 10 + (c - ZERO)
    return value


# --- strings and numbers ---------------------------------------------------------------------------------


@inlined
def skip_space(text: Any, at: int, end: int) -> int:
    """Skip white space: the place of the first other character."""
    while at < end and byte(text, at) <= SPACE and _IS_SPACE[byte(text, at)]:
        at += 1
    return at


@compiled
def skip_string(text: Any, at: int, end: int) -> int:
    """Skip a valid string that begins at ``at``."""
    if at >= end or byte(text, at) != QUOTE:
        return BAD
    at += 1
    while True:
        at = skip_plain(text, at, end)
        if at >= end:
            return BAD
        c = byte(text, at)
        if c == QUOTE:
            return at + 1
        if c == BACKSLASH:
            if at + 1 >= end:
                return BAD
            escaped = byte(text, at + 1)
            if escaped == SMALL_U:
                if at + 6 > end:
                    return BAD
                for j in range(at + 2, at + 6):
                    if not _IS_HEX[byte(text, j)]:
                        return BAD
                at += 6
            elif _IS_ESCAPED[escaped]:
                at += 2
            else:
                return BAD
        else:
            at = skip_utf8(text, at, end)
            if at < 0:
                return BAD


@compiled
def skip_utf8(text: Any, at: int, end: int) -> int:
    """Skip one valid character of two to four bytes (Unicode standard, table 3-7)."""
    c = byte(text, at)
    if 0xC2 <= c <= 0xDF:
        more = 1
    elif 0xE0 <= c <= 0xEF:
        more = 2
    elif 0xF0 <= c <= 0xF4:
        more = 3
    else:
        return BAD
    if at + more >= end:
        return BAD
    second = byte(text, at + 1)
    if (
        (c == 0xE0 and second < 0xA0)
        or (c == 0xED and second > 0x9F)
        or (c == 0xF0 and second < 0x90)
        or (c == 0xF4 and second > 0x8F)
    ):
        return BAD
    for j in range(at + 1, at + 1 + more):
        if byte(text, j) & 0xC0 != 0x80:
            return BAD
    return at + 1 + more


@compiled
def _skip_number(text: Any, at: int, end: int) -> int:
    """Skip a valid JSON number."""
    if at < end and byte(text, at) == MINUS:
        at += 1
    first = at
    while at < end and ZERO <= byte(text, at) <= NINE:
        at += 1
    if at == first or (at - first > 1 and byte(text, first) == ZERO):
        return BAD
    if at < end and byte(text, at) == POINT:
        at += 1
        first = at
        while at < end and ZERO <= byte(text, at) <= NINE:
            at += 1
        if at == first:
            return BAD
    if at < end and (byte(text, at) == SMALL_E or byte(text, at) == LARGE_E):
        at += 1
        if at < end and (byte(text, at) == PLUS or byte(text, at) == MINUS):
            at += 1
        first = at
        while at < end and ZERO <= byte(text, at) <= NINE:
            at += 1
        if at == first:
            return BAD
    return at


# --- values ------------------------------------------------------------------------------------------


@inlined
def skip_null(text: Any, at: int, end: int) -> int:
    """Skip ``null`` at ``at``."""
    return at + 4 if at + 4 <= end and word(text, at) & _FOUR == _NULL_WORD else BAD


@compiled
def _skip_true(text: Any, at: int, end: int) -> int:
    return at + 4 if at + 4 <= end and word(text, at) & _FOUR == _TRUE_WORD else BAD


@compiled
def _skip_false(text: Any, at: int, end: int) -> int:
    return at + 5 if at + 5 <= end and word(text, at) & _FIVE == _FALSE_WORD else BAD


@compiled
def skip_value(text: Any, at: int, end: int) -> int:
    """Skip a valid JSON value that is nested at most `_DEPTH_MAX` deep."""
    depth = 0
    objects = 0  # bit d: at depth d + 1 there is an object, else an array
    while True:
        at = skip_space(text, at, end)
        if at >= end:
            return BAD
        c = byte(text, at)
        is_object = c == BRACE
        if is_object or c == BRACKET:
            if depth == _DEPTH_MAX:
                return BAD
            after = skip_space(text, at + 1, end)
            if after >= end:
                return BAD
            if byte(text, after) == (BRACE_END if is_object else BRACKET_END):
                at = after + 1
            else:
                objects = objects | 1 << depth if is_object else objects & ~(1 << depth)
                depth += 1
                at = after
                if is_object:
                    at = skip_name_and_colon(text, at, end)
                    if at < 0:
                        return BAD
                continue
        elif c == QUOTE:
            at = skip_string(text, at, end)
        elif c == SMALL_T:
            at = _skip_true(text, at, end)
        elif c == SMALL_F:
            at = _skip_false(text, at, end)
        elif c == SMALL_N:
            at = skip_null(text, at, end)
        else:
            at = _skip_number(text, at, end)
        if at < 0:
            return BAD
        # After a value comes the next value, or the ends of the objects and arrays around the value.
        while depth:
            at = skip_space(text, at, end)
            if at >= end:
                return BAD
            in_object = objects >> (depth - 1) & 1
            c = byte(text, at)
            at += 1
            if c == COMMA:
                if in_object:
                    at = skip_name_and_colon(text, skip_space(text, at, end), end)
                    if at < 0:
                        return BAD
                break
            if c != (BRACE_END if in_object else BRACKET_END):
                return BAD
            depth -= 1
        if not depth:
            return at


@compiled
def skip_name_and_colon(text: Any, at: int, end: int) -> int:
    """Skip a string and the colon that follows it."""
    at = skip_string(text, at, end)
    if at < 0:
        return BAD
    at = skip_space(text, at, end)
    return at + 1 if at < end and byte(text, at) == COLON else BAD
