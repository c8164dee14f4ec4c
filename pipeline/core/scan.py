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

import numpy as np

from pipeline.core import wire
from pipeline.core.kernels.compile import byte, compiled, trailing_zeros, word

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
_DIGITS_MAX: Final = 18
_POWERS_OF_TEN: Final = np.array([10**power for power in range(_DIGITS_MAX + 1)], np.int64)
_DEPTH_MAX: Final = 60

_IS_HEX: Final = np.array([chr(c) in "0123456789abcdefABCDEF" for c in range(256)])
_EACH: Final = np.uint64(0x0101010101010101)
"""A word with 1 in each of its eight bytes; times c, eight characters c."""
_TOPS: Final = np.uint64(0x8080808080808080)
_MINUTE_AT: Final = _START + 1
_SPACE: Final = np.array([c in (9, 10, 13, 32) for c in range(256)])
_days_from_civil = compiled(wire.days_from_civil)
_days_in_month = compiled(wire.days_in_month)


def new_guesses() -> Any:
    """What `scan` remembers (int64[...]): which key followed each key, and the minute of the last time."""
    guesses = np.full(_MINUTE_AT + 3, _UNKNOWN, np.int64)
    guesses[_MINUTE_AT:] = 0
    return guesses


@compiled
def _literal(text: Any, at: int, end: int, number: int) -> int:
    """After literal ``number``, if that is what stands at ``at``."""
    if at + _LENGTHS[number] > end:
        return _BAD
    differs = (
        (word(text, at) ^ _WORDS[number, 0]) & _MASKS[number, 0]
        | (word(text, at + 8) ^ _WORDS[number, 1]) & _MASKS[number, 1]
        | (word(text, at + 16) ^ _WORDS[number, 2]) & _MASKS[number, 2]
    )
    return at + _LENGTHS[number] if differs == 0 else _BAD


# --- eight characters at a time --------------------------------------------------------------------------

# The first one is in the lowest byte of a word. The tests for a zero and for a small byte in a word
# (Anderson, Bit Twiddling Hacks) may also mark bytes above the first one that they are right about.


@compiled
def _skip_plain(text: Any, at: int, end: int) -> int:
    """The first character from ``at`` on that is not plain: a quote, a backslash, a control, or not ASCII."""
    while at < end:
        chars = word(text, at)
        quote, slash = chars ^ _EACH * np.uint64(34), chars ^ _EACH * np.uint64(92)
        odd = (
            (quote - _EACH) & ~quote
            | (slash - _EACH) & ~slash
            | (chars - _EACH * np.uint64(32)) & ~chars
            | chars
        ) & _TOPS
        at += trailing_zeros(odd) >> 3
        if odd:
            break
    return min(at, end)


@compiled
def _hex(digits: Any) -> Any:
    """The number in eight hex digits, and 0 if that is what they all are."""
    letter = digits >> np.uint64(6) & _EACH
    lower = digits | letter << np.uint64(5)
    not_digit = ~(lower + _EACH * np.uint64(128 - 48)) | lower + _EACH * np.uint64(128 - 58)
    not_letter = ~(lower + _EACH * np.uint64(128 - 97)) | lower + _EACH * np.uint64(128 - 103)
    nibbles = (digits & _EACH * np.uint64(15)) + letter * np.uint64(9)
    octets = (nibbles << np.uint64(4) | nibbles >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    pairs = (octets << np.uint64(8) | octets >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    number = (pairs << np.uint64(16) | pairs >> np.uint64(32)) & np.uint64(0xFFFFFFFF)
    return number, (not_digit & not_letter | digits) & _TOPS


@compiled
def _number_of_digits(digits: Any, count: int) -> Any:
    """The number in the first ``count`` characters, 1 to 8, of a word of digits less 48 each.

    Neighbours are joined three times over: digits to pairs, to fours, to eight (Lemire, "Quickly parsing
    eight digits", 2018).
    """
    digits <<= np.uint64(64 - 8 * count)  # zeros in front
    pairs = (digits * np.uint64(10) + (digits >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return np.int64((fours * np.uint64(10_000) + (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF))


@compiled
def _digits(text: Any, at: int, end: int) -> tuple[int, int]:
    """The number in the digits from ``at`` on, 0 if there is none, and where they end.

    The number means nothing if there are more than `_DIGITS_MAX` of them.
    """
    number = 0
    while True:
        digits = word(text, at) ^ _EACH * np.uint64(48)
        others = ((digits & ~_TOPS) + _EACH * np.uint64(128 - 10) | digits) & _TOPS
        count = min(trailing_zeros(others) >> 3, end - at)
        if count <= 0:
            return number, at
        number = number * _POWERS_OF_TEN[count] + _number_of_digits(digits, count)
        at += count
        if count < 8:
            return number, at


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
        is_object = at < end and byte(text, at) == 123 and end - begin <= _BODY_BYTES_MAX
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
                if byte(text, at) == 110 and bit & _OPTIONAL:
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
                    close = _string(text, at, end) if byte(text, at) == 34 else _number_end(text, at, end)
                    quote = byte(text, at) == 34
                    cost[good] = _cost(text, at + quote, close - quote)
                    at = close if cost[good] >= 0 else _BAD
                else:
                    at = _metadata(text, at, end)
            elif meaning == _DATA and not wrapped and not seen and byte(text, at) == 123:
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
            if inside and at < end and byte(text, at) == 125:
                inside = False
                at = _skip_space(text, at + 1, end)
            if at >= end:
                break
            c = byte(text, at)
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
    while at < end and _SPACE[byte(text, at)]:
        at += 1
    return at


@compiled
def _key(text: Any, at: int, end: int, guess: int) -> Any:
    """A key and its colon: its number and where its value begins. The guess is tried first."""
    if guess < _UNKNOWN:
        after = _literal(text, at, end, guess)
        if after >= 0:
            return guess, after
    if at >= end or byte(text, at) != 34:
        return _UNKNOWN, _BAD
    close = _skip_plain(text, at + 1, end)
    colon = _skip_space(text, close + 1, end)
    if colon >= end or byte(text, close) != 34 or byte(text, colon) != 58:
        return _UNKNOWN, _BAD
    length = close + 1 - at
    for key in range(_UNKNOWN):
        if _LENGTHS[key] == length + 1:
            same = True
            for j in range(length):  # without the colon, which space may part from the name
                same = same and byte(text, at + j) == np.uint8(_WORDS[key, j >> 3] >> np.uint64(8 * (j & 7)))
            if same:
                return key, colon + 1
    return _UNKNOWN, colon + 1


@compiled
def _string(text: Any, at: int, end: int) -> int:
    """After any valid string that begins at ``at``."""
    if at >= end or byte(text, at) != 34:
        return _BAD
    at += 1
    while True:
        at = _skip_plain(text, at, end)
        if at >= end:
            return _BAD
        c = byte(text, at)
        if c == 34:
            return at + 1
        if c == 92:
            if at + 1 >= end:
                return _BAD
            escaped = byte(text, at + 1)
            if escaped == 117:
                if at + 6 > end:
                    return _BAD
                for j in range(at + 2, at + 6):
                    if not _IS_HEX[byte(text, j)]:
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
    c = byte(text, at)
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
    second = byte(text, at + 1)
    if (
        (c == 0xE0 and second < 0xA0)
        or (c == 0xED and second > 0x9F)
        or (c == 0xF0 and second < 0x90)
        or (c == 0xF4 and second > 0x8F)
    ):
        return _BAD
    for j in range(at + 1, at + 1 + more):
        if byte(text, j) & 0xC0 != 0x80:
            return _BAD
    return at + 1 + more


@compiled
def _number_end(text: Any, at: int, end: int) -> int:
    """After the characters that a JSON number can have; whether it is one, the reader of it says."""
    first = at
    while at < end:
        c = byte(text, at)
        if not (48 <= c <= 57 or c == 45 or c == 43 or c == 46 or c == 101 or c == 69):
            break
        at += 1
    return at if at > first else _BAD


@compiled
def _number(text: Any, at: int, end: int) -> int:
    """After any valid JSON number."""
    if at < end and byte(text, at) == 45:
        at += 1
    first = at
    while at < end and 48 <= byte(text, at) <= 57:
        at += 1
    if at == first or (at - first > 1 and byte(text, first) == 48):
        return _BAD
    if at < end and byte(text, at) == 46:
        at += 1
        first = at
        while at < end and 48 <= byte(text, at) <= 57:
            at += 1
        if at == first:
            return _BAD
    if at < end and (byte(text, at) == 101 or byte(text, at) == 69):
        at += 1
        if at < end and (byte(text, at) == 43 or byte(text, at) == 45):
            at += 1
        first = at
        while at < end and 48 <= byte(text, at) <= 57:
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
        c = byte(text, at)
        if c == 123 or c == 91:
            if depth == _DEPTH_MAX:
                return _BAD
            is_object = c == 123
            after = _skip_space(text, at + 1, end)
            if after >= end:
                return _BAD
            if byte(text, after) == (125 if is_object else 93):
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
            c = byte(text, at)
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
    return at + 1 if at < end and byte(text, at) == 58 else _BAD


# --- values ------------------------------------------------------------------------------------------


@compiled
def _uuid(text: Any, at: int, end: int) -> Any:
    """A UUID in quotes, as high and low half, and where it ends."""
    if at + 38 > end or byte(text, at) != 34 or byte(text, at + 37) != 34:
        return np.uint64(0), np.uint64(0), _BAD
    at += 1
    low_half = np.uint64(0xFFFFFFFF)
    first, odd_1 = _hex(word(text, at))
    second, odd_2 = _hex(word(text, at + 9) & low_half | word(text, at + 14) << np.uint64(32))
    third, odd_3 = _hex(word(text, at + 19) & low_half | word(text, at + 24) << np.uint64(32))
    fourth, odd_4 = _hex(word(text, at + 28))
    is_good = (
        byte(text, at + 8) == 45
        and byte(text, at + 13) == 45
        and byte(text, at + 18) == 45
        and byte(text, at + 23) == 45
        and odd_1 | odd_2 | odd_3 | odd_4 == 0
    )
    return first << np.uint64(32) | second, third << np.uint64(32) | fourth, at + 37 if is_good else _BAD


@compiled
def _name(text: Any, at: int, end: int, chars_max: int) -> Any:
    """A string of at most ``chars_max`` characters, without escapes: its range, and where its quotes end."""
    if at >= end or byte(text, at) != 34:
        return 0, 0, _BAD
    at += 1
    first = at
    beyond = 0  # bytes after the first of a character
    while True:
        at = _skip_plain(text, at, end)
        if at >= end:
            return 0, 0, _BAD
        if byte(text, at) == 34:
            return first, at, at + 1 if at - first - beyond <= chars_max else _BAD
        if byte(text, at) < 128:
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
    value, after = _digits(text, at, end)
    count = after - at
    if not 1 <= count <= _DIGITS_MAX or value > largest or (count > 1 and byte(text, at) == 48):
        return 0, _BAD
    return value, after


@compiled
def _metadata(text: Any, at: int, end: int) -> int:
    """After an object whose values are strings."""
    if byte(text, at) != 123:
        return _BAD
    at = _skip_space(text, at + 1, end)
    if at < end and byte(text, at) == 125:
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
        if byte(text, at) == 125:
            return at + 1
        if byte(text, at) != 44:
            return _BAD
        at = _skip_space(text, at + 1, end)


@compiled
def _few_digits(text: Any, at: int, count: int) -> int:
    """The number in ``count`` digits at ``at``, or -1."""
    value = 0
    for j in range(at, at + count):
        c = byte(text, j)
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
    date, clock = np.int64(word(text, at)), np.int64(word(text, at + 8))
    if date != guesses[_MINUTE_AT] or clock != guesses[_MINUTE_AT + 1]:
        minute_s = _minute(text, at)
        if minute_s < 0:
            return -1
        guesses[_MINUTE_AT], guesses[_MINUTE_AT + 1], guesses[_MINUTE_AT + 2] = date, clock, minute_s
    second = _few_digits(text, at + 17, 2)
    if byte(text, at + 16) != 58 or not 0 <= second <= 59:
        return -1
    at += 19
    micros = 0
    if byte(text, at) == 46:
        micros, after = _digits(text, at + 1, end)
        count = after - (at + 1)
        if not 1 <= count <= _DIGITS_MAX:
            return -1
        if count <= 6:
            micros *= _POWERS_OF_TEN[6 - count]
        else:
            micros //= _POWERS_OF_TEN[count - 6]
        at = after
    offset_s = 0
    if at + 1 == end and (byte(text, at) == 90 or byte(text, at) == 122):
        pass
    elif at + 6 == end and (byte(text, at) == 43 or byte(text, at) == 45) and byte(text, at + 3) == 58:
        hours, minutes = _few_digits(text, at + 1, 2), _few_digits(text, at + 4, 2)
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return -1
        offset_s = hours * 3600 + minutes * 60
        if byte(text, at) == 45:
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
    year, month, day = _few_digits(text, at, 4), _few_digits(text, at + 5, 2), _few_digits(text, at + 8, 2)
    hour, minute = _few_digits(text, at + 11, 2), _few_digits(text, at + 14, 2)
    if not (
        byte(text, at + 4) == 45
        and byte(text, at + 7) == 45
        and (byte(text, at + 10) == 84 or byte(text, at + 10) == 116 or byte(text, at + 10) == 32)
        and byte(text, at + 13) == 58
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
    mantissa, after = _digits(text, at, end)
    count = after - at
    if not 1 <= count <= _DIGITS_MAX or (count > 1 and byte(text, at) == 48):
        return -1
    at = after
    power = 6
    if at < end and byte(text, at) == 46:
        fraction, after = _digits(text, at + 1, end)
        decimals = after - (at + 1)
        if decimals < 1 or count + decimals > _DIGITS_MAX:
            return -1
        mantissa = mantissa * _POWERS_OF_TEN[decimals] + fraction
        power -= decimals
        at = after
    if at < end and (byte(text, at) == 101 or byte(text, at) == 69):
        at += 1
        sign = 1
        if at < end and (byte(text, at) == 43 or byte(text, at) == 45):
            sign = -1 if byte(text, at) == 45 else 1
            at += 1
        count = end - at
        exponent = _few_digits(text, at, count) if 1 <= count <= 3 else -1
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
