"""Bodies to columns in one compiled pass: a strict JSON scanner that knows the contract's fields.

It owns the common case: any order and any spacing of the fields, all three variants, unknown fields of any
kind, UTF-8 in every string. What is not plainly right it leaves to `wire.read`: an event is ``ok`` only if
`wire.read` would give the same values (``tests/unit/test_events.py`` holds the two together). Escapes in
names or keys, a key that comes twice and both spellings in one event are left to `wire.read`, too.

Positions are indices into ``text`` uint8[...], the bodies one after another; a function that scans returns
where it stopped, or -1 if what it found is not plainly right. Nothing is allocated and no state is kept,
but for the guess of which key follows which.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

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
_KEY_TEXTS: Final = [f'"{name}":'.encode() for name, _, _ in _KEYS]
_KEY_TEXT: Final = np.frombuffer(b"".join(_KEY_TEXTS), np.uint8)
_KEY_EDGES: Final = np.cumsum([0, *map(len, _KEY_TEXTS)])
_KEY_MEANING: Final = np.array([meaning for _, meaning, _ in _KEYS])
_KEY_SPELLING: Final = np.array([spelling for _, _, spelling in _KEYS])
_UNKNOWN: Final = len(_KEYS)
_START: Final = len(_KEYS) + 1
_BAD: Final = -1

_STATUS_TEXTS: Final = [f'"{word}"'.encode() for word in wire.STATUSES]
_STATUS_TEXT: Final = np.frombuffer(b"".join(_STATUS_TEXTS), np.uint8)
_STATUS_EDGES: Final = np.cumsum([0, *map(len, _STATUS_TEXTS)])
_VERSION_TEXT: Final = np.frombuffer(b'"1.0"', np.uint8)
_TYPE_TEXT: Final = np.frombuffer(f'"{wire.EVENT_TYPE}"'.encode(), np.uint8)
_NULL: Final = np.frombuffer(b"null", np.uint8)
_TRUE: Final = np.frombuffer(b"true", np.uint8)
_FALSE: Final = np.frombuffer(b"false", np.uint8)

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
_SPACE: Final = np.array([c in (9, 10, 13, 32) for c in range(256)])
_days_from_civil = compiled(wire.days_from_civil)
_days_in_month = compiled(wire.days_in_month)


def new_follows() -> Any:
    """What `scan` remembers: the key that last followed each key (int64[keys + 2])."""
    return np.full(_START + 1, _UNKNOWN, np.int64)


@compiled
def scan(
    text: Any,
    ends: Any,
    follows: Any,
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
    actor: Any,
    ok: Any,
) -> None:
    """Read the bodies that end at ``ends`` int64[n].

    Out: ``event``, ``org``, ``model`` uint64[n, 2] (high, low); ``occurred_us``, ``latency_ms``, ``status``,
    ``tokens_in``, ``tokens_out``, ``cost`` (microcents) int64[n]; ``client``, ``code`` int64[n, 2], the range
    of the name in ``text`` (empty: absent); ``ok`` bool[n]. Rows that are not ok hold anything, and so does
    ``actor`` uint64[2], because actors are checked and not counted.
    """
    begin = 0
    for i in range(len(ends)):
        end = ends[i]
        at = _skip_space(text, begin, end)
        ok[i] = False
        client[i, 0] = client[i, 1] = code[i, 0] = code[i, 1] = 0
        too_large = end - begin > _BODY_BYTES_MAX
        begin = end
        if too_large or at >= end or text[at] != 123:
            continue
        at += 1
        seen = spelling = envelope = 0
        inside = wrapped = False  # of the envelope's data; there is an envelope
        last = _START
        while True:
            at = _skip_space(text, at, end)
            key, at = _key(text, at, end, follows[last])
            if at < 0:
                break
            follows[last] = key
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
                if text[at] == 110 and bit & _OPTIONAL:
                    at = _match(text, at, end, _NULL, 0, 4)
                elif meaning == _EVENT:
                    at = _uuid(text, at, end, event[i])
                elif meaning == _ORG:
                    at = _uuid(text, at, end, org[i])
                elif meaning == _MODEL:
                    at = _uuid(text, at, end, model[i])
                elif meaning == _ACTOR:
                    at = _uuid(text, at, end, actor)
                elif meaning == _CLIENT:
                    at = _name(text, at, end, _CLIENT_CHARS_MAX, client[i])
                elif meaning == _CODE:
                    at = _name(text, at, end, _CODE_CHARS_MAX, code[i])
                elif meaning == _OCCURRED:
                    close = _string(text, at, end)
                    occurred_us[i] = _time(text, at + 1, close - 1)
                    at = close if occurred_us[i] >= 0 else _BAD
                elif meaning == _STATUS:
                    status[i], at = _status(text, at, end)
                elif meaning == _LATENCY:
                    latency_ms[i], at = _integer(text, at, end, _LATENCY_MAX)
                elif meaning == _TOKENS_IN:
                    tokens_in[i], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _TOKENS_OUT:
                    tokens_out[i], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _COST:
                    close = _string(text, at, end) if text[at] == 34 else _number_end(text, at, end)
                    quote = text[at] == 34
                    cost[i] = _cost(text, at + quote, close - quote)
                    at = close if cost[i] >= 0 else _BAD
                else:
                    at = _metadata(text, at, end)
            elif meaning == _DATA and not wrapped and not seen and text[at] == 123:
                inside = wrapped = True
                at += 1
                continue
            elif meaning == _DATA and wrapped and not inside:
                break
            elif meaning == _SPECVERSION and not inside:
                if envelope & _HAS_VERSION:
                    break
                envelope |= _HAS_VERSION
                at = _match(text, at, end, _VERSION_TEXT, 0, len(_VERSION_TEXT))
            elif meaning == _TYPE and not inside and (wrapped or not seen):
                if envelope & _HAS_TYPE:
                    break
                envelope |= _HAS_TYPE
                at = _match(text, at, end, _TYPE_TEXT, 0, len(_TYPE_TEXT))
            else:
                at = _value(text, at, end)
            if at < 0:
                break
            at = _skip_space(text, at, end)
            if inside and at < end and text[at] == 125:
                inside = False
                at = _skip_space(text, at + 1, end)
            if at >= end:
                break
            c = text[at]
            at += 1
            if c == 44:
                continue
            if c == 125 and not inside:
                ok[i] = (
                    _skip_space(text, at, end) == end
                    and seen & _REQUIRED == _REQUIRED
                    and spelling in (_CAMEL, _SNAKE)
                    and (not wrapped or envelope == _HAS_VERSION | _HAS_TYPE)
                )
            break


# --- structure ---------------------------------------------------------------------------------------


@compiled
def _skip_space(text: Any, at: int, end: int) -> int:
    while at < end and _SPACE[text[at]]:
        at += 1
    return at


@compiled
def _match(text: Any, at: int, end: int, wanted: Any, first: int, length: int) -> int:
    """After ``wanted[first : first + length]``, if that is what stands at ``at``."""
    if at + length > end:
        return _BAD
    for j in range(length):
        if text[at + j] != wanted[first + j]:
            return _BAD
    return at + length


@compiled
def _key(text: Any, at: int, end: int, guess: int) -> Any:
    """A key and its colon: its number and where its value begins. The guess is tried first."""
    if guess < _UNKNOWN:
        first = _KEY_EDGES[guess]
        after = _match(text, at, end, _KEY_TEXT, first, _KEY_EDGES[guess + 1] - first)
        if after >= 0:
            return guess, after
    if at >= end or text[at] != 34:
        return _UNKNOWN, _BAD
    close = at + 1
    while close < end and _PLAIN_CHAR[text[close]]:
        close += 1
    colon = _skip_space(text, close + 1, end)
    if colon >= end or text[close] != 34 or text[colon] != 58:
        return _UNKNOWN, _BAD
    length = close + 1 - at
    for key in range(_UNKNOWN):
        first = _KEY_EDGES[key]
        if length == _KEY_EDGES[key + 1] - first - 1 and _match(text, at, end, _KEY_TEXT, first, length) >= 0:
            return key, colon + 1
    return _UNKNOWN, colon + 1


@compiled
def _string(text: Any, at: int, end: int) -> int:
    """After any valid string that begins at ``at``."""
    if at >= end or text[at] != 34:
        return _BAD
    at += 1
    while at < end:
        c = text[at]
        if _PLAIN_CHAR[c]:
            at += 1
        elif c == 34:
            return at + 1
        elif c == 92:
            if at + 1 >= end:
                return _BAD
            escaped = text[at + 1]
            if escaped == 117:
                if at + 6 > end:
                    return _BAD
                for j in range(at + 2, at + 6):
                    if _HEX[text[j]] > 15:
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
    return _BAD


@compiled
def _utf8(text: Any, at: int, end: int) -> int:
    """After one valid character of two to four bytes (Unicode standard, table 3-7)."""
    c = text[at]
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
    second = text[at + 1]
    if (
        (c == 0xE0 and second < 0xA0)
        or (c == 0xED and second > 0x9F)
        or (c == 0xF0 and second < 0x90)
        or (c == 0xF4 and second > 0x8F)
    ):
        return _BAD
    for j in range(at + 1, at + 1 + more):
        if text[j] & 0xC0 != 0x80:
            return _BAD
    return at + 1 + more


@compiled
def _number_end(text: Any, at: int, end: int) -> int:
    """After the characters that a JSON number can have; whether it is one, the reader of it says."""
    first = at
    while at < end:
        c = text[at]
        if not (48 <= c <= 57 or c == 45 or c == 43 or c == 46 or c == 101 or c == 69):
            break
        at += 1
    return at if at > first else _BAD


@compiled
def _number(text: Any, at: int, end: int) -> int:
    """After any valid JSON number."""
    if at < end and text[at] == 45:
        at += 1
    first = at
    while at < end and 48 <= text[at] <= 57:
        at += 1
    if at == first or (at - first > 1 and text[first] == 48):
        return _BAD
    if at < end and text[at] == 46:
        at += 1
        first = at
        while at < end and 48 <= text[at] <= 57:
            at += 1
        if at == first:
            return _BAD
    if at < end and (text[at] == 101 or text[at] == 69):
        at += 1
        if at < end and (text[at] == 43 or text[at] == 45):
            at += 1
        first = at
        while at < end and 48 <= text[at] <= 57:
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
        c = text[at]
        if c == 123 or c == 91:
            if depth == _DEPTH_MAX:
                return _BAD
            is_object = c == 123
            after = _skip_space(text, at + 1, end)
            if after >= end:
                return _BAD
            if text[after] == (125 if is_object else 93):
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
            at = _match(text, at, end, _TRUE, 0, 4)
        elif c == 102:
            at = _match(text, at, end, _FALSE, 0, 5)
        elif c == 110:
            at = _match(text, at, end, _NULL, 0, 4)
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
            c = text[at]
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
    return at + 1 if at < end and text[at] == 58 else _BAD


# --- values ------------------------------------------------------------------------------------------


@compiled
def _uuid(text: Any, at: int, end: int, out: Any) -> int:
    """After a UUID in quotes, which goes to ``out`` uint64[2] (high, low)."""
    if at + 38 > end or text[at] != 34 or text[at + 37] != 34:
        return _BAD
    at += 1
    if text[at + 8] != 45 or text[at + 13] != 45 or text[at + 18] != 45 or text[at + 23] != 45:
        return _BAD
    high = low = odd = np.uint64(0)
    four = np.uint64(4)
    for j in range(8):
        digit = _HEX[text[at + j]]
        odd |= digit
        high = high << four | digit
    for j in range(9, 13):
        digit = _HEX[text[at + j]]
        odd |= digit
        high = high << four | digit
    for j in range(14, 18):
        digit = _HEX[text[at + j]]
        odd |= digit
        high = high << four | digit
    for j in range(19, 23):
        digit = _HEX[text[at + j]]
        odd |= digit
        low = low << four | digit
    for j in range(24, 36):
        digit = _HEX[text[at + j]]
        odd |= digit
        low = low << four | digit
    out[0] = high
    out[1] = low
    return at + 37 if odd < np.uint64(16) else _BAD


@compiled
def _name(text: Any, at: int, end: int, chars_max: int, out: Any) -> int:
    """After a string of at most ``chars_max`` characters, without escapes; its range goes to ``out``."""
    if at >= end or text[at] != 34:
        return _BAD
    at += 1
    out[0] = at
    chars = 0
    while at < end:
        c = text[at]
        if _PLAIN_CHAR[c]:
            at += 1
        elif c == 34:
            out[1] = at
            return at + 1 if chars <= chars_max else _BAD
        elif c < 128:
            return _BAD
        else:
            at = _utf8(text, at, end)
            if at < 0:
                return _BAD
        chars += 1
    return _BAD


@compiled
def _status(text: Any, at: int, end: int) -> Any:
    for status in range(len(_STATUS_EDGES) - 1):
        first = _STATUS_EDGES[status]
        after = _match(text, at, end, _STATUS_TEXT, first, _STATUS_EDGES[status + 1] - first)
        if after >= 0:
            return status, after
    return 0, _BAD


@compiled
def _integer(text: Any, at: int, end: int, largest: int) -> Any:
    """A whole number from 0 to ``largest``, and where it ends; what comes after it the caller checks."""
    first = at
    value = 0
    while at < end and 48 <= text[at] <= 57 and at - first < 18:
        value = value * 10 + (text[at] - 48)
        at += 1
    if at == first or value > largest or (at - first > 1 and text[first] == 48):
        return 0, _BAD
    return value, at


@compiled
def _metadata(text: Any, at: int, end: int) -> int:
    """After an object whose values are strings."""
    if text[at] != 123:
        return _BAD
    at = _skip_space(text, at + 1, end)
    if at < end and text[at] == 125:
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
        if text[at] == 125:
            return at + 1
        if text[at] != 44:
            return _BAD
        at = _skip_space(text, at + 1, end)


@compiled
def _digits(text: Any, at: int, count: int) -> int:
    """The number in ``count`` digits at ``at``, or -1."""
    value = 0
    for j in range(at, at + count):
        c = text[j]
        if c < 48 or c > 57:
            return -1
        value = value * 10 + (c - 48)
    return value


@compiled
def _time(text: Any, at: int, end: int) -> int:
    """UTC microseconds of the RFC 3339 time from ``at`` to ``end``, or -1."""
    if end - at < 20 or end - at > _NUMBER_CHARS_MAX:
        return -1
    year, month, day = _digits(text, at, 4), _digits(text, at + 5, 2), _digits(text, at + 8, 2)
    hour, minute, second = _digits(text, at + 11, 2), _digits(text, at + 14, 2), _digits(text, at + 17, 2)
    if not (
        text[at + 4] == 45
        and text[at + 7] == 45
        and (text[at + 10] == 84 or text[at + 10] == 116 or text[at + 10] == 32)
        and text[at + 13] == 58
        and text[at + 16] == 58
        and year >= 1970
        and 1 <= month <= 12
        and 1 <= day <= 31
        and 0 <= hour <= 23
        and 0 <= minute <= 59
        and 0 <= second <= 59
        and day <= _days_in_month(year, month)
    ):
        return -1
    at += 19
    micros = 0
    if text[at] == 46:
        at += 1
        first = at
        scale = 100_000
        while at < end and 48 <= text[at] <= 57:
            micros += (text[at] - 48) * scale
            scale //= 10
            at += 1
        if at == first:
            return -1
    offset_s = 0
    if at + 1 == end and (text[at] == 90 or text[at] == 122):
        pass
    elif at + 6 == end and (text[at] == 43 or text[at] == 45) and text[at + 3] == 58:
        hours, minutes = _digits(text, at + 1, 2), _digits(text, at + 4, 2)
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return -1
        offset_s = hours * 3600 + minutes * 60
        if text[at] == 45:
            offset_s = -offset_s
    else:
        return -1
    seconds = _days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s
    if seconds < 0 or seconds >= 253_402_300_800:
        return -1
    return seconds * 1_000_000 + micros


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
    while at < end and 48 <= text[at] <= 57 and digits < 19:
        mantissa = mantissa * 10 + (text[at] - 48)
        digits += 1
        at += 1
    if digits == 0 or (digits > 1 and text[first] == 48):
        return -1
    power = 6
    if at < end and text[at] == 46:
        at += 1
        fraction = at
        while at < end and 48 <= text[at] <= 57 and digits < 19:
            mantissa = mantissa * 10 + (text[at] - 48)
            digits += 1
            at += 1
        power -= at - fraction
        if at == fraction:
            return -1
    if digits > 18:
        return -1
    if at < end and (text[at] == 101 or text[at] == 69):
        at += 1
        sign = 1
        if at < end and (text[at] == 43 or text[at] == 45):
            sign = -1 if text[at] == 45 else 1
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
