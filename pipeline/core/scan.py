"""Bodies to columns in one compiled pass: a strict JSON scanner that knows the contract's fields.

It owns the common case: any order and any spacing of the fields, all three variants, unknown fields of any
kind, UTF-8 in every string. What is not plainly right it leaves to `wire.read`: an event is ``ok`` only if
`wire.read` would give the same values (``tests/unit/test_events.py`` holds the two together). Escapes in
names or keys, a key that comes twice and both spellings in one event are left to `wire.read`, too.

Positions are indices into ``text`` uint8[...], which `bodies.PADDING` ends, because literals are compared
eight bytes at a time. A function that scans returns where it stopped, or -1 if what it found is not plainly
right. Nothing is allocated and no state is kept, but for the guess of which key follows which.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numba.extending
import numpy as np
from llvmlite import ir

from pipeline.core import wire
from pipeline.core.kernels import compiled

_FIELDS: Final = tuple(wire.CAMEL_NAMES)
(
    _EVENT,
    _ORG,
    _MODEL,
    _ACTOR,
    _CLIENT,
    _OCCURRED,
    _LATENCY,
    _STATUS,
    _CODE,
    _TOKENS_IN,
    _TOKENS_OUT,
    _COST,
    _METADATA,
) = range(len(_FIELDS))
_SPECVERSION, _TYPE, _DATA, _IGNORED = range(len(_FIELDS), len(_FIELDS) + 4)

_OPTIONAL: Final = 1 << _ACTOR | 1 << _CLIENT | 1 << _CODE | 1 << _METADATA
_REQUIRED: Final = (1 << len(_FIELDS)) - 1 - _OPTIONAL
_CAMEL, _SNAKE = 1, 2
_HAS_VERSION, _HAS_TYPE = 1, 2

# Keys by number: the text with its quotes and colon, what it means, and in which spelling.
_KEYS: Final = (
    [(name, field, _CAMEL if wire.SNAKE_NAMES[name] != name else 0) for field, name in enumerate(_FIELDS)]
    + [(snake, field, _SNAKE) for field, snake in enumerate(wire.SNAKE_NAMES.values()) if "_" in snake]
    + [(wire.SHORT_COST_NAMES["costEstimateCents"], _COST, _SNAKE)]
    + [("specversion", _SPECVERSION, 0), ("type", _TYPE, 0), ("data", _DATA, 0)]
    + [(name, _IGNORED, 0) for name in ("id", "source", "subject", "time", "datacontenttype", "dataschema")]
)
_KEY_MEANING: Final = np.array([meaning for _, meaning, _ in _KEYS])
_KEY_SPELLING: Final = np.array([spelling for _, _, spelling in _KEYS])
_UNKNOWN: Final = len(_KEYS)
_START: Final = len(_KEYS) + 1
_BAD: Final = -1

# Every text that is compared as a whole: the keys first, by their numbers, then these.
_LITERALS: Final = [
    *(f'"{name}":' for name, _, _ in _KEYS),
    *(f'"{word}"' for word in wire.STATUSES),
    '"1.0"',
    f'"{wire.EVENT_TYPE}"',
    "null",
    "true",
    "false",
]
_FIRST_STATUS: Final = len(_KEYS)
_STATUSES: Final = len(wire.STATUSES)
_VERSION_TEXT, _TYPE_TEXT, _NULL, _TRUE, _FALSE = range(_FIRST_STATUS + _STATUSES, len(_LITERALS))
_LENGTHS: Final = np.array([len(literal) for literal in _LITERALS])
_WORDS: Final = np.array([list(np.frombuffer(text.encode().ljust(24, b"\0"), "<u8")) for text in _LITERALS])
_MASKS: Final = np.array(
    [list(np.frombuffer((b"\xff" * len(text)).ljust(24, b"\0"), "<u8")) for text in _LITERALS]
)

_BODY_BYTES_MAX: Final = wire.BODY_BYTES_MAX
_NUMBER_CHARS_MAX: Final = wire.NUMBER_CHARS_MAX
_CLIENT_CHARS_MAX: Final = wire.CLIENT_ID_CHARS_MAX
_CODE_CHARS_MAX: Final = wire.ERROR_CODE_CHARS_MAX
_LATENCY_MAX: Final = wire.LATENCY_MS_MAX
_TOKENS_MAX: Final = wire.TOKENS_MAX
_COST_MAX: Final = wire.COST_MICROCENTS_MAX
_POWERS_OF_TEN: Final = np.array([10**power for power in range(19)], np.int64)
_DEPTH_MAX: Final = 60

_PLAIN_CHAR: Final = np.array([32 <= c < 128 and c not in (34, 92) for c in range(256)])
_HEX: Final = np.array(
    [int(chr(c), 16) if chr(c) in "0123456789abcdefABCDEF" else 0x100 for c in range(256)], np.uint64
)
_EACH: Final = np.uint64(0x0101010101010101)
_MINUTE_AT: Final = _START + 1
_SPACE: Final = np.array([c in (9, 10, 13, 32) for c in range(256)])
_days_from_civil = compiled(wire.days_from_civil)
_days_in_month = compiled(wire.days_in_month)


def new_guesses() -> Any:
    """What `scan` remembers (int64[...]): which key followed each key, and the minute of the last time."""
    guesses = np.full(_MINUTE_AT + 3, _UNKNOWN, np.int64)
    guesses[_MINUTE_AT:] = 0
    return guesses


# --- how text is read -----------------------------------------------------------------------------------


def _loader(bits: int) -> Any:
    """A function that loads an unsigned integer from an address plus ``at``."""

    def load(typing_context: Any, address: Any, at: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.add(arguments[0], arguments[1])
            loaded = builder.load(builder.inttoptr(place, ir.IntType(bits).as_pointer()))
            loaded.align = 1
            return loaded

        integer = numba.types.Integer.from_bitwidth(bits, signed=False)
        return integer(numba.types.int64, numba.types.int64), build

    return numba.extending.intrinsic(load)


@compiled
def _checked_word(text: Any, at: int) -> Any:
    word = np.uint64(0)
    for j in range(8):
        word |= np.uint64(text[at + j]) << np.uint64(8 * j)
    return word


@compiled
def _checked_byte(text: Any, at: int) -> Any:
    return text[at]


_CHECKED: Final = bool(numba.config.BOUNDSCHECK)
_byte: Final = _checked_byte if _CHECKED else _loader(8)
_word: Final = _checked_word if _CHECKED else _loader(64)
"""The byte, and the eight bytes (the first lowest), at a place in the text.

By address, because numba counts references to an array wherever it is passed on, which would take most of the
time. Under NUMBA_BOUNDSCHECK, as in the tests, the same code reads the array, and every access is checked.
"""


def handle(text: Any) -> Any:
    """What `scan` takes for ``text`` uint8[...]. Keep the array alive while it runs."""
    return text if _CHECKED else text.ctypes.data


@compiled
def _literal(text: Any, at: int, end: int, number: int) -> int:
    """After literal ``number``, if that is what stands at ``at``."""
    if at + _LENGTHS[number] > end:
        return _BAD
    differs = (
        (_word(text, at) ^ _WORDS[number, 0]) & _MASKS[number, 0]
        | (_word(text, at + 8) ^ _WORDS[number, 1]) & _MASKS[number, 1]
        | (_word(text, at + 16) ^ _WORDS[number, 2]) & _MASKS[number, 2]
    )
    return at + _LENGTHS[number] if differs == 0 else _BAD


@compiled
def _skip_plain(text: Any, at: int, end: int) -> int:
    """The first character from ``at`` on that is not plain: a quote, a backslash, a control, or not ASCII.

    Eight at a time by the tests for a zero and for a small byte in a word (Anderson, Bit Twiddling Hacks).
    """
    while at + 8 <= end:
        word = _word(text, at)
        quote, slash = word ^ _EACH * np.uint64(34), word ^ _EACH * np.uint64(92)
        odd = (
            (quote - _EACH) & ~quote
            | (slash - _EACH) & ~slash
            | (word - _EACH * np.uint64(32)) & ~word
            | word
        )
        if odd & (_EACH * np.uint64(128)):
            break
        at += 8
    while at < end and _PLAIN_CHAR[_byte(text, at)]:
        at += 1
    return at


@compiled
def scan(
    text: Any,
    begins: Any,
    ends: Any,
    guesses: Any,
    event: Any,
    org: Any,
    model: Any,
    occurred_us: Any,
    latency_ms: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    client: Any,
    code: Any,
    source: Any,
    doubtful: Any,
) -> int:
    """Read the bodies ``text[begins[i]:ends[i]]``, int64[n] each; returns how many are plainly right.

    Of those, one after another: ``event``, ``org``, ``model`` uint64[n, 2] (high, low); ``occurred_us``,
    ``latency_ms``, ``status``, ``tokens_in``, ``tokens_out``, ``cost`` (microcents) int64[n]; ``client``,
    ``code`` int64[n, 2], the range of the name in ``text`` (empty: absent); ``source`` int64[n], the place of
    the body. The places of the others go to ``doubtful`` int64[n].
    """
    good = bad = 0
    for i in range(len(ends)):
        begin, end = begins[i], ends[i]
        at = _skip_space(text, begin, end)
        client[good, 0] = client[good, 1] = code[good, 0] = code[good, 1] = 0
        is_good = False
        is_object = at < end and _byte(text, at) == 123 and end - begin <= _BODY_BYTES_MAX
        at += 1
        seen = spelling = envelope = 0
        inside = wrapped = False  # of the envelope's data; there is an envelope
        last = _START
        while is_object:
            at = _skip_space(text, at, end)
            key, at = _key(text, at, end, guesses[last])
            if at < 0:
                break
            guesses[last] = key
            last = key
            at = _skip_space(text, at, end)
            if at >= end:
                break
            meaning = _IGNORED if key == _UNKNOWN else _KEY_MEANING[key]
            if meaning <= _METADATA:
                bit = 1 << meaning
                if seen & bit or (wrapped and not inside):
                    break
                seen |= bit
                spelling |= _KEY_SPELLING[key]
                if _byte(text, at) == 110 and bit & _OPTIONAL:
                    at = _literal(text, at, end, _NULL)
                elif meaning == _EVENT:
                    event[good, 0], event[good, 1], at = _uuid(text, at, end)
                elif meaning == _ORG:
                    org[good, 0], org[good, 1], at = _uuid(text, at, end)
                elif meaning == _MODEL:
                    model[good, 0], model[good, 1], at = _uuid(text, at, end)
                elif meaning == _ACTOR:
                    _, _, at = _uuid(text, at, end)
                elif meaning == _CLIENT:
                    client[good, 0], client[good, 1], at = _name(text, at, end, _CLIENT_CHARS_MAX)
                elif meaning == _CODE:
                    code[good, 0], code[good, 1], at = _name(text, at, end, _CODE_CHARS_MAX)
                elif meaning == _OCCURRED:
                    close = _string(text, at, end)
                    occurred_us[good] = _time(text, at + 1, close - 1, guesses)
                    at = close if occurred_us[good] >= 0 else _BAD
                elif meaning == _STATUS:
                    status[good], at = _status(text, at, end)
                elif meaning == _LATENCY:
                    latency_ms[good], at = _integer(text, at, end, _LATENCY_MAX)
                elif meaning == _TOKENS_IN:
                    tokens_in[good], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _TOKENS_OUT:
                    tokens_out[good], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _COST:
                    close = _string(text, at, end) if _byte(text, at) == 34 else _number_end(text, at, end)
                    quote = _byte(text, at) == 34
                    cost[good] = _cost(text, at + quote, close - quote)
                    at = close if cost[good] >= 0 else _BAD
                else:
                    at = _metadata(text, at, end)
            elif meaning == _DATA and not wrapped and not seen and _byte(text, at) == 123:
                inside = wrapped = True
                at += 1
                continue
            elif meaning == _DATA and wrapped and not inside:
                break
            elif meaning == _SPECVERSION and not inside:
                if envelope & _HAS_VERSION:
                    break
                envelope |= _HAS_VERSION
                at = _literal(text, at, end, _VERSION_TEXT)
            elif meaning == _TYPE and not inside and (wrapped or not seen):
                if envelope & _HAS_TYPE:
                    break
                envelope |= _HAS_TYPE
                at = _literal(text, at, end, _TYPE_TEXT)
            else:
                at = _value(text, at, end)
            if at < 0:
                break
            at = _skip_space(text, at, end)
            if inside and at < end and _byte(text, at) == 125:
                inside = False
                at = _skip_space(text, at + 1, end)
            if at >= end:
                break
            c = _byte(text, at)
            at += 1
            if c == 44:
                continue
            if c == 125 and not inside:
                is_good = (
                    _skip_space(text, at, end) == end
                    and seen & _REQUIRED == _REQUIRED
                    and spelling in (_CAMEL, _SNAKE)
                    and (not wrapped or envelope == _HAS_VERSION | _HAS_TYPE)
                )
            break
        if is_good:
            source[good] = i
            good += 1
        else:
            doubtful[bad] = i
            bad += 1
    return good


# --- structure ---------------------------------------------------------------------------------------


@compiled
def _skip_space(text: Any, at: int, end: int) -> int:
    while at < end and _SPACE[_byte(text, at)]:
        at += 1
    return at


@compiled
def _key(text: Any, at: int, end: int, guess: int) -> Any:
    """A key and its colon: its number and where its value begins. The guess is tried first."""
    if guess < _UNKNOWN:
        after = _literal(text, at, end, guess)
        if after >= 0:
            return guess, after
    if at >= end or _byte(text, at) != 34:
        return _UNKNOWN, _BAD
    close = _skip_plain(text, at + 1, end)
    colon = _skip_space(text, close + 1, end)
    if colon >= end or _byte(text, close) != 34 or _byte(text, colon) != 58:
        return _UNKNOWN, _BAD
    length = close + 1 - at
    for key in range(_UNKNOWN):
        if _LENGTHS[key] == length + 1:
            same = True
            for j in range(length):  # without the colon, which space may part from the name
                same = same and _byte(text, at + j) == np.uint8(_WORDS[key, j >> 3] >> np.uint64(8 * (j & 7)))
            if same:
                return key, colon + 1
    return _UNKNOWN, colon + 1


@compiled
def _string(text: Any, at: int, end: int) -> int:
    """After any valid string that begins at ``at``."""
    if at >= end or _byte(text, at) != 34:
        return _BAD
    at += 1
    while True:
        at = _skip_plain(text, at, end)
        if at >= end:
            return _BAD
        c = _byte(text, at)
        if c == 34:
            return at + 1
        if c == 92:
            if at + 1 >= end:
                return _BAD
            escaped = _byte(text, at + 1)
            if escaped == 117:
                if at + 6 > end:
                    return _BAD
                for j in range(at + 2, at + 6):
                    if _HEX[_byte(text, j)] > 15:
                        return _BAD
                at += 6
            elif (
                escaped == 34
                or escaped == 92
                or escaped == 47
                or escaped == 98
                or escaped == 102
                or escaped == 110
                or escaped == 114
                or escaped == 116
            ):
                at += 2
            else:
                return _BAD
        else:
            at = _utf8(text, at, end)
            if at < 0:
                return _BAD


@compiled
def _utf8(text: Any, at: int, end: int) -> int:
    """After one valid character of two to four bytes (Unicode standard, table 3-7)."""
    c = _byte(text, at)
    if 0xC2 <= c <= 0xDF:
        more = 1
    elif 0xE0 <= c <= 0xEF:
        more = 2
    elif 0xF0 <= c <= 0xF4:
        more = 3
    else:
        return _BAD
    if at + more >= end:
        return _BAD
    second = _byte(text, at + 1)
    if (
        (c == 0xE0 and second < 0xA0)
        or (c == 0xED and second > 0x9F)
        or (c == 0xF0 and second < 0x90)
        or (c == 0xF4 and second > 0x8F)
    ):
        return _BAD
    for j in range(at + 1, at + 1 + more):
        if _byte(text, j) & 0xC0 != 0x80:
            return _BAD
    return at + 1 + more


@compiled
def _number_end(text: Any, at: int, end: int) -> int:
    """After the characters that a JSON number can have; whether it is one, the reader of it says."""
    first = at
    while at < end:
        c = _byte(text, at)
        if not (48 <= c <= 57 or c == 45 or c == 43 or c == 46 or c == 101 or c == 69):
            break
        at += 1
    return at if at > first else _BAD


@compiled
def _number(text: Any, at: int, end: int) -> int:
    """After any valid JSON number."""
    if at < end and _byte(text, at) == 45:
        at += 1
    first = at
    while at < end and 48 <= _byte(text, at) <= 57:
        at += 1
    if at == first or (at - first > 1 and _byte(text, first) == 48):
        return _BAD
    if at < end and _byte(text, at) == 46:
        at += 1
        first = at
        while at < end and 48 <= _byte(text, at) <= 57:
            at += 1
        if at == first:
            return _BAD
    if at < end and (_byte(text, at) == 101 or _byte(text, at) == 69):
        at += 1
        if at < end and (_byte(text, at) == 43 or _byte(text, at) == 45):
            at += 1
        first = at
        while at < end and 48 <= _byte(text, at) <= 57:
            at += 1
        if at == first:
            return _BAD
    return at


@compiled
def _value(text: Any, at: int, end: int) -> int:
    """After any valid JSON value, nested at most `_DEPTH_MAX` deep."""
    depth = 0
    objects = 0  # bit d: at depth d + 1 there is an object, else an array
    while True:
        at = _skip_space(text, at, end)
        if at >= end:
            return _BAD
        c = _byte(text, at)
        if c == 123 or c == 91:
            if depth == _DEPTH_MAX:
                return _BAD
            is_object = c == 123
            after = _skip_space(text, at + 1, end)
            if after >= end:
                return _BAD
            if _byte(text, after) == (125 if is_object else 93):
                at = after + 1
            else:
                objects = objects | 1 << depth if is_object else objects & ~(1 << depth)
                depth += 1
                at = after
                if is_object:
                    at = _name_and_colon(text, at, end)
                    if at < 0:
                        return _BAD
                continue
        elif c == 34:
            at = _string(text, at, end)
        elif c == 116:
            at = _literal(text, at, end, _TRUE)
        elif c == 102:
            at = _literal(text, at, end, _FALSE)
        elif c == 110:
            at = _literal(text, at, end, _NULL)
        else:
            at = _number(text, at, end)
        if at < 0:
            return _BAD
        # What follows a value: the next one, or the ends of what it is in.
        while depth:
            at = _skip_space(text, at, end)
            if at >= end:
                return _BAD
            in_object = objects >> (depth - 1) & 1
            c = _byte(text, at)
            at += 1
            if c == 44:
                if in_object:
                    at = _name_and_colon(text, _skip_space(text, at, end), end)
                    if at < 0:
                        return _BAD
                break
            if c != (125 if in_object else 93):
                return _BAD
            depth -= 1
        if not depth:
            return at


@compiled
def _name_and_colon(text: Any, at: int, end: int) -> int:
    at = _string(text, at, end)
    if at < 0:
        return _BAD
    at = _skip_space(text, at, end)
    return at + 1 if at < end and _byte(text, at) == 58 else _BAD


# --- values ------------------------------------------------------------------------------------------


@compiled
def _uuid(text: Any, at: int, end: int) -> Any:
    """A UUID in quotes, as high and low half, and where it ends."""
    if at + 38 > end or _byte(text, at) != 34 or _byte(text, at + 37) != 34:
        return np.uint64(0), np.uint64(0), _BAD
    at += 1
    if (
        _byte(text, at + 8) != 45
        or _byte(text, at + 13) != 45
        or _byte(text, at + 18) != 45
        or _byte(text, at + 23) != 45
    ):
        return np.uint64(0), np.uint64(0), _BAD
    high = low = odd = np.uint64(0)
    four = np.uint64(4)
    for j in range(8):
        digit = _HEX[_byte(text, at + j)]
        odd |= digit
        high = high << four | digit
    for j in range(9, 13):
        digit = _HEX[_byte(text, at + j)]
        odd |= digit
        high = high << four | digit
    for j in range(14, 18):
        digit = _HEX[_byte(text, at + j)]
        odd |= digit
        high = high << four | digit
    for j in range(19, 23):
        digit = _HEX[_byte(text, at + j)]
        odd |= digit
        low = low << four | digit
    for j in range(24, 36):
        digit = _HEX[_byte(text, at + j)]
        odd |= digit
        low = low << four | digit
    return high, low, at + 37 if odd < np.uint64(16) else _BAD


@compiled
def _name(text: Any, at: int, end: int, chars_max: int) -> Any:
    """A string of at most ``chars_max`` characters, without escapes: its range, and where its quotes end."""
    if at >= end or _byte(text, at) != 34:
        return 0, 0, _BAD
    at += 1
    first = at
    beyond = 0  # bytes after the first of a character
    while True:
        at = _skip_plain(text, at, end)
        if at >= end:
            return 0, 0, _BAD
        if _byte(text, at) == 34:
            return first, at, at + 1 if at - first - beyond <= chars_max else _BAD
        if _byte(text, at) < 128:
            return 0, 0, _BAD
        after = _utf8(text, at, end)
        if after < 0:
            return 0, 0, _BAD
        beyond += after - at - 1
        at = after


@compiled
def _status(text: Any, at: int, end: int) -> Any:
    for status in range(_STATUSES):
        after = _literal(text, at, end, _FIRST_STATUS + status)
        if after >= 0:
            return status, after
    return 0, _BAD


@compiled
def _integer(text: Any, at: int, end: int, largest: int) -> Any:
    """A whole number from 0 to ``largest``, and where it ends; what comes after it the caller checks."""
    first = at
    value = 0
    while at < end and 48 <= _byte(text, at) <= 57 and at - first < 18:
        value = value * 10 + (_byte(text, at) - 48)
        at += 1
    if at == first or value > largest or (at - first > 1 and _byte(text, first) == 48):
        return 0, _BAD
    return value, at


@compiled
def _metadata(text: Any, at: int, end: int) -> int:
    """After an object whose values are strings."""
    if _byte(text, at) != 123:
        return _BAD
    at = _skip_space(text, at + 1, end)
    if at < end and _byte(text, at) == 125:
        return at + 1
    while True:
        at = _name_and_colon(text, at, end)
        if at < 0:
            return _BAD
        at = _string(text, _skip_space(text, at, end), end)
        if at < 0:
            return _BAD
        at = _skip_space(text, at, end)
        if at >= end:
            return _BAD
        if _byte(text, at) == 125:
            return at + 1
        if _byte(text, at) != 44:
            return _BAD
        at = _skip_space(text, at + 1, end)


@compiled
def _digits(text: Any, at: int, count: int) -> int:
    """The number in ``count`` digits at ``at``, or -1."""
    value = 0
    for j in range(at, at + count):
        c = _byte(text, j)
        if c < 48 or c > 57:
            return -1
        value = value * 10 + (c - 48)
    return value


@compiled
def _time(text: Any, at: int, end: int, guesses: Any) -> int:
    """UTC microseconds of the RFC 3339 time from ``at`` to ``end``, or -1."""
    if end - at < 20 or end - at > _NUMBER_CHARS_MAX:
        return -1
    # Most events are of the minute of the one before: compare its sixteen characters instead of reading them.
    date, clock = np.int64(_word(text, at)), np.int64(_word(text, at + 8))
    if date != guesses[_MINUTE_AT] or clock != guesses[_MINUTE_AT + 1]:
        minute_s = _minute(text, at)
        if minute_s < 0:
            return -1
        guesses[_MINUTE_AT], guesses[_MINUTE_AT + 1], guesses[_MINUTE_AT + 2] = date, clock, minute_s
    second = _digits(text, at + 17, 2)
    if _byte(text, at + 16) != 58 or not 0 <= second <= 59:
        return -1
    at += 19
    micros = 0
    if _byte(text, at) == 46:
        at += 1
        first = at
        scale = 100_000
        while at < end and 48 <= _byte(text, at) <= 57:
            micros += (_byte(text, at) - 48) * scale
            scale //= 10
            at += 1
        if at == first:
            return -1
    offset_s = 0
    if at + 1 == end and (_byte(text, at) == 90 or _byte(text, at) == 122):
        pass
    elif at + 6 == end and (_byte(text, at) == 43 or _byte(text, at) == 45) and _byte(text, at + 3) == 58:
        hours, minutes = _digits(text, at + 1, 2), _digits(text, at + 4, 2)
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return -1
        offset_s = hours * 3600 + minutes * 60
        if _byte(text, at) == 45:
            offset_s = -offset_s
    else:
        return -1
    seconds: int = guesses[_MINUTE_AT + 2] + second - offset_s
    if seconds < 0 or seconds >= 253_402_300_800:
        return -1
    return seconds * 1_000_000 + micros


@compiled
def _minute(text: Any, at: int) -> int:
    """Seconds since 1970 of ``YYYY-MM-DDThh:mm``, or -1."""
    year, month, day = _digits(text, at, 4), _digits(text, at + 5, 2), _digits(text, at + 8, 2)
    hour, minute = _digits(text, at + 11, 2), _digits(text, at + 14, 2)
    if not (
        _byte(text, at + 4) == 45
        and _byte(text, at + 7) == 45
        and (_byte(text, at + 10) == 84 or _byte(text, at + 10) == 116 or _byte(text, at + 10) == 32)
        and _byte(text, at + 13) == 58
        and year >= 1970
        and 1 <= month <= 12
        and 1 <= day <= 31
        and 0 <= hour <= 23
        and 0 <= minute <= 59
        and day <= _days_in_month(year, month)
    ):
        return -1
    return _days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60


@compiled
def _cost(text: Any, at: int, end: int) -> int:
    """Microcents of the JSON decimal from ``at`` to ``end``, rounded half-even, or -1.

    More than 18 digits, a sign and anything near the bound are left to `wire.read`.
    """
    if not 0 < end - at <= _NUMBER_CHARS_MAX:
        return -1
    mantissa = 0
    digits = 0
    first = at
    while at < end and 48 <= _byte(text, at) <= 57 and digits < 19:
        mantissa = mantissa * 10 + (_byte(text, at) - 48)
        digits += 1
        at += 1
    if digits == 0 or (digits > 1 and _byte(text, first) == 48):
        return -1
    power = 6
    if at < end and _byte(text, at) == 46:
        at += 1
        fraction = at
        while at < end and 48 <= _byte(text, at) <= 57 and digits < 19:
            mantissa = mantissa * 10 + (_byte(text, at) - 48)
            digits += 1
            at += 1
        power -= at - fraction
        if at == fraction:
            return -1
    if digits > 18:
        return -1
    if at < end and (_byte(text, at) == 101 or _byte(text, at) == 69):
        at += 1
        sign = 1
        if at < end and (_byte(text, at) == 43 or _byte(text, at) == 45):
            sign = -1 if _byte(text, at) == 45 else 1
            at += 1
        count = end - at
        exponent = _digits(text, at, count) if 1 <= count <= 3 else -1
        if exponent < 0:
            return -1
        power += sign * exponent
        at = end
    if at != end:
        return -1
    if mantissa == 0:
        return 0
    if power >= 0:
        if power > 14 or mantissa > _COST_MAX // _POWERS_OF_TEN[power]:
            return -1
        scale: int = _POWERS_OF_TEN[power]
        return mantissa * scale
    if power < -18:
        return -1
    unit: int = _POWERS_OF_TEN[-power]
    quotient = mantissa // unit
    rest = mantissa - quotient * unit
    if quotient >= _COST_MAX:
        return -1
    if rest > unit - rest or (rest == unit - rest and quotient % 2 == 1):
        return quotient + 1
    return quotient
