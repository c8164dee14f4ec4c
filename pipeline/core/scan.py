"""Bodies to columns in one compiled pass: a strict JSON scanner that knows the contract's fields.

The scanner owns the common case: any order and any spacing of the fields, all three variants, unknown fields
of any kind, UTF-8 in every string. It leaves every body that is not plainly right to `wire.read`. The scanner
takes an event only if `wire.read` would give the same values (``tests/unit/test_events.py`` compares the
two). So it leaves escapes in names or keys, a key that comes twice, and both spellings in one event to
`wire.read`, too.

`pipeline.core.lexer` reads the tokens of JSON. This module knows the fields and checks their values. As in
the lexer, a function returns the place after the token that it has read, or `BAD`. Nothing is allocated. The
only state is the guess of which key follows which key, and the minute of the last time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core import wire
from pipeline.core.kernels.compile import byte, compiled, inlined, word
from pipeline.core.kernels.names import recall
from pipeline.core.lexer import (
    BACKSLASH,
    BAD,
    BRACE,
    BRACE_END,
    COLON,
    COMMA,
    DIGITS_MAX,
    LARGE_E,
    LARGE_T,
    LARGE_Z,
    MINUS,
    PLUS,
    POINT,
    POWERS_OF_TEN,
    QUOTE,
    SMALL_E,
    SMALL_N,
    SMALL_T,
    SMALL_Z,
    SPACE,
    ZERO,
    read_digits,
    read_few_digits,
    read_hex,
    skip_name_and_colon,
    skip_null,
    skip_plain,
    skip_space,
    skip_string,
    skip_utf8,
    skip_value,
)

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
    _CACHE_READ,
    _CACHE_WRITE,
    _CACHE_WRITE_1H,
    _REASONING,
    _TIER,
    _PROVIDER,
    _MODEL_NAME,
    _METADATA,
) = range(len(_FIELDS))
_KINDS: Final = 1 << _CACHE_READ | 1 << _CACHE_WRITE | 1 << _CACHE_WRITE_1H | 1 << _REASONING
_SPECVERSION, _TYPE, _DATA, _IGNORED = range(len(_FIELDS), len(_FIELDS) + 4)

_LABELS: Final = 1 << _TIER | 1 << _PROVIDER | 1 << _MODEL_NAME
_OPTIONAL: Final = 1 << _ACTOR | 1 << _CLIENT | 1 << _CODE | 1 << _COST | _KINDS | _LABELS | 1 << _METADATA
_REQUIRED: Final = (1 << len(_FIELDS)) - 1 - _OPTIONAL
_CAMEL, _SNAKE = 1, 2
_HAS_VERSION, _HAS_TYPE = 1, 2

# Keys by number: the name, the field that it means, and the spelling that it belongs to.
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

# Every text that is compared as a whole: the keys first, by their numbers, then these.
_LITERALS: Final = [
    *(f'"{name}":' for name, _, _ in _KEYS),
    *(f'"{word}"' for word in wire.STATUSES),
    *(f'"{word}"' for word in wire.SERVICE_TIERS),
    '"1.0"',
    f'"{wire.EVENT_TYPE}"',
]
_FIRST_STATUS: Final = len(_KEYS)
_STATUSES: Final = len(wire.STATUSES)
_FIRST_TIER: Final = _FIRST_STATUS + _STATUSES
_TIERS: Final = len(wire.SERVICE_TIERS)
_VERSION_TEXT, _TYPE_TEXT = range(_FIRST_TIER + _TIERS, len(_LITERALS))
_LENGTHS: Final = np.array([len(literal) for literal in _LITERALS])
_WORDS: Final = np.array([list(np.frombuffer(text.encode().ljust(24, b"\0"), "<u8")) for text in _LITERALS])
_MASKS: Final = np.array(
    [list(np.frombuffer((b"\xff" * len(text)).ljust(24, b"\0"), "<u8")) for text in _LITERALS]
)

_BODY_BYTES_MAX: Final = wire.BODY_BYTES_MAX
_NUMBER_CHARS_MAX: Final = wire.NUMBER_CHARS_MAX
_CLIENT_CHARS_MAX: Final = wire.CLIENT_ID_CHARS_MAX
_CODE_CHARS_MAX: Final = wire.ERROR_CODE_CHARS_MAX
_PROVIDER_CHARS_MAX: Final = wire.PROVIDER_CHARS_MAX
_MODEL_NAME_CHARS_MAX: Final = wire.MODEL_NAME_CHARS_MAX
_VALUE_CHARS_MAX: Final = wire.VALUE_CHARS_MAX
_LATENCY_MAX: Final = wire.LATENCY_MS_MAX
_TOKENS_MAX: Final = wire.TOKENS_MAX
_COST_MAX: Final = wire.COST_MICROCENTS_MAX
_HIGH, _LOW = range(2)
"""Columns of an id."""
_FIRST, _END = range(2)
"""Columns of the range of a name in the text."""
TOO_LONG: Final = -1
"""Begin and end of the range of a value that is too long to be kept."""
_NOT_WANTED: Final = -2
"""The answer to which dimension wants a key of the metadata, if none does."""
NAMES_CLIENT, NAMES_CODE, NAMES_PROVIDER, NAMES_MODEL = range(4)
"""Columns of the ``numbers`` of names."""
UUID_CHARS: Final = 36
NO_ACTOR: Final = -1
"""In place of a dimension, if none has the actors as its values."""
_UNESTIMATED: Final = 4
"""The column of ``details`` that counts events without an estimate. The columns before are token kinds."""
_TIER_COLUMN: Final = 5
"""The column of ``details`` with the service tier."""
_MINUTE_AT: Final = _START + 1
_days_from_civil = compiled(wire.days_from_civil)
_days_in_month = compiled(wire.days_in_month)


def new_guesses() -> Any:
    """The memory of `scan` (int64[...]): which key followed each key, and the minute of the last time."""
    guesses = np.full(_MINUTE_AT + 3, _UNKNOWN, np.int64)
    guesses[_MINUTE_AT:] = 0, 0, BAD
    return guesses


@inlined
def _literal(text: Any, at: int, end: int, number: int) -> int:
    """Skip literal ``number`` at ``at``."""
    if at + _LENGTHS[number] > end:
        return BAD
    differs = (
        (word(text, at) ^ _WORDS[number, 0]) & _MASKS[number, 0]
        | (word(text, at + 8) ^ _WORDS[number, 1]) & _MASKS[number, 1]
        | (word(text, at + 16) ^ _WORDS[number, 2]) & _MASKS[number, 2]
    )
    return at + _LENGTHS[number] if differs == 0 else BAD


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
    details: Any,
    client: Any,
    code: Any,
    provider: Any,
    model_name: Any,
    clients: Any,
    codes: Any,
    labels: Any,
    numbers: Any,
    keys: Any,
    key_edges: Any,
    actor_place: int,
    actor: Any,
    values: Any,
    source: Any,
    doubtful: Any,
) -> int:
    """Read the bodies ``text[begins[i]:ends[i]]``, int64[n] each; returns how many are plainly right.

    The columns get the values of these bodies, from the front. ``event``, ``org`` and ``model`` are uint64[n,
    2] (high, low). ``occurred_us``, ``latency_ms``, ``status``, ``tokens_in``, ``tokens_out`` and ``cost``
    (microcents, 0 if there is no estimate) are int64[n]. ``details`` int64[n, 6] has the columns of
    `events.DETAILS`. ``client``, ``code``, ``provider`` and ``model_name`` are int64[n, 2]: the range of the
    name in ``text``. ``numbers`` int32[n, 4] has the numbers of these four names where the memo of
    its kind (``clients``, ``codes`` and ``labels``: see `kernels.names.recall`) knows them, 0 for an absent
    name, and else -1. Only then the range counts. ``source`` int64[n] gets the place of each body.

    ``values`` int64[d, n, 2] gets the ranges of the values of d dimensions. The source of dimension k is the
    metadata's key ``keys[key_edges[k] : key_edges[k + 1]]`` (uint8[...], int64[d + 1]). The source of the
    dimension ``actor_place`` are the actors, ``actor`` uint64[n, 2]. Its ranges are places in the text that
    `kernels.names.write_uuids` makes of the actors.

    ``doubtful`` int64[n] gets the places of all other bodies, for `wire.read`.
    """
    good = bad = 0
    for i in range(len(ends)):
        begin, end = begins[i], ends[i]
        at = skip_space(text, begin, end)
        for j in range(numbers.shape[1]):
            numbers[good, j] = 0
        for j in range(details.shape[1]):
            details[good, j] = 0
        details[good, _UNESTIMATED] = 1
        cost[good] = 0
        for j in range(len(values)):
            values[j, good, _FIRST] = values[j, good, _END] = 0
        is_good = False
        is_object = at < end and byte(text, at) == BRACE and end - begin <= _BODY_BYTES_MAX
        at += 1
        seen = spelling = envelope = 0
        # wrapped: the event is in an envelope. inside: the scan is in the data of the envelope.
        inside = wrapped = False
        last = _START
        while is_object:
            at = skip_space(text, at, end)
            key, at = _key(text, at, end, guesses[last])
            if at < 0:
                break
            guesses[last] = key
            last = key
            at = skip_space(text, at, end)
            if at >= end:
                break
            meaning = _IGNORED if key == _UNKNOWN else _KEY_MEANING[key]
            if meaning <= _METADATA:
                bit = 1 << meaning
                if seen & bit or (wrapped and not inside):
                    break
                seen |= bit
                spelling |= _KEY_SPELLING[key]
                if byte(text, at) == SMALL_N and bit & _OPTIONAL:
                    at = skip_null(text, at, end)
                elif meaning == _EVENT:
                    event[good, _HIGH], event[good, _LOW], at = _uuid(text, at, end)
                elif meaning == _ORG:
                    org[good, _HIGH], org[good, _LOW], at = _uuid(text, at, end)
                elif meaning == _MODEL:
                    model[good, _HIGH], model[good, _LOW], at = _uuid(text, at, end)
                elif meaning == _ACTOR:
                    high, low, at = _uuid(text, at, end)
                    if actor_place >= 0:
                        actor[good, _HIGH], actor[good, _LOW] = high, low
                        values[actor_place, good, _FIRST] = UUID_CHARS * good
                        values[actor_place, good, _END] = UUID_CHARS * (good + 1)
                elif meaning == _CLIENT:
                    first, after, at = _name(text, at, end, _CLIENT_CHARS_MAX)
                    client[good, _FIRST], client[good, _END] = first, after
                    numbers[good, NAMES_CLIENT] = recall(clients, text, first, after)
                elif meaning == _CODE:
                    first, after, at = _name(text, at, end, _CODE_CHARS_MAX)
                    code[good, _FIRST], code[good, _END] = first, after
                    numbers[good, NAMES_CODE] = recall(codes, text, first, after)
                elif meaning == _OCCURRED:
                    # Most events have the minute of the event before. So the sixteen characters of the minute
                    # are compared with the last ones, and only read if they differ.
                    date, clock = np.int64(word(text, at + 1)), np.int64(word(text, at + 9))
                    if date != guesses[_MINUTE_AT] or clock != guesses[_MINUTE_AT + 1]:
                        guesses[_MINUTE_AT], guesses[_MINUTE_AT + 1] = date, clock
                        guesses[_MINUTE_AT + 2] = _minute(text, at + 1)
                    occurred_us[good], at = _time(text, at, end, guesses[_MINUTE_AT + 2])
                elif meaning == _STATUS:
                    status[good], at = _word(text, at, end, _FIRST_STATUS, _STATUSES)
                elif meaning == _LATENCY:
                    latency_ms[good], at = _integer(text, at, end, _LATENCY_MAX)
                elif meaning == _TOKENS_IN:
                    tokens_in[good], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _TOKENS_OUT:
                    tokens_out[good], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _COST:
                    cost[good], at = _cost(text, at, end)
                    details[good, _UNESTIMATED] = 0
                elif bit & _KINDS:
                    details[good, meaning - _CACHE_READ], at = _integer(text, at, end, _TOKENS_MAX)
                elif meaning == _TIER:
                    details[good, _TIER_COLUMN], at = _word(text, at, end, _FIRST_TIER, _TIERS)
                elif meaning == _PROVIDER:
                    first, after, at = _name(text, at, end, _PROVIDER_CHARS_MAX)
                    provider[good, _FIRST], provider[good, _END] = first, after
                    numbers[good, NAMES_PROVIDER] = recall(labels, text, first, after)
                elif meaning == _MODEL_NAME:
                    first, after, at = _name(text, at, end, _MODEL_NAME_CHARS_MAX)
                    model_name[good, _FIRST], model_name[good, _END] = first, after
                    numbers[good, NAMES_MODEL] = recall(labels, text, first, after)
                elif len(values):
                    at = _values(text, at, end, keys, key_edges, values, good)
                else:
                    at = _metadata(text, at, end)
            elif meaning == _DATA and not wrapped and not seen and byte(text, at) == BRACE:
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
                at = skip_value(text, at, end)
            if at < 0:
                break
            at = skip_space(text, at, end)
            if inside and at < end and byte(text, at) == BRACE_END:
                inside = False
                at = skip_space(text, at + 1, end)
            if at >= end:
                break
            c = byte(text, at)
            at += 1
            if c == COMMA:
                continue
            if c == BRACE_END and not inside:
                is_good = (
                    skip_space(text, at, end) == end
                    and seen & _REQUIRED == _REQUIRED
                    and spelling in (_CAMEL, _SNAKE)
                    and details[good, 0] + details[good, 1] + details[good, 2] <= tokens_in[good]
                    and details[good, 3] <= tokens_out[good]
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


@inlined
def _key(text: Any, at: int, end: int, guess: int) -> Any:
    """Read a key and its colon: the number of the key, and the place after the colon.

    The guess is tried first.
    """
    if guess < _UNKNOWN:
        after = _literal(text, at, end, guess)
        if after >= 0:
            return guess, after
    if at >= end or byte(text, at) != QUOTE:
        return _UNKNOWN, BAD
    close = skip_plain(text, at + 1, end)
    colon = skip_space(text, close + 1, end)
    if colon >= end or byte(text, close) != QUOTE or byte(text, colon) != COLON:
        return _UNKNOWN, BAD
    length = close + 1 - at
    for key in range(_UNKNOWN):
        if _LENGTHS[key] == length + 1:
            same = True
            for j in range(length):  # without the colon, which space may part from the name
                same = same and byte(text, at + j) == np.uint8(_WORDS[key, j >> 3] >> np.uint64(8 * (j & 7)))
            if same:
                return key, colon + 1
    return _UNKNOWN, colon + 1


# --- values ------------------------------------------------------------------------------------------


@inlined
def _uuid(text: Any, at: int, end: int) -> Any:
    """Read a UUID in quotes: its high half, its low half, and the place after it."""
    if at + 38 > end or byte(text, at) != QUOTE or byte(text, at + 37) != QUOTE:
        return np.uint64(0), np.uint64(0), BAD
    at += 1
    low_half = np.uint64(0xFFFFFFFF)
    first, odd_1 = read_hex(word(text, at))
    second, odd_2 = read_hex(word(text, at + 9) & low_half | word(text, at + 14) << np.uint64(32))
    third, odd_3 = read_hex(word(text, at + 19) & low_half | word(text, at + 24) << np.uint64(32))
    fourth, odd_4 = read_hex(word(text, at + 28))
    is_good = (
        byte(text, at + 8) == MINUS
        and byte(text, at + 13) == MINUS
        and byte(text, at + 18) == MINUS
        and byte(text, at + 23) == MINUS
        and odd_1 | odd_2 | odd_3 | odd_4 == 0
    )
    return first << np.uint64(32) | second, third << np.uint64(32) | fourth, at + 37 if is_good else BAD


@inlined
def _name(text: Any, at: int, end: int, chars_max: int) -> Any:
    """Read a string of at most ``chars_max`` characters, without escapes: its range, and the place after."""
    if at >= end or byte(text, at) != QUOTE:
        return 0, 0, BAD
    at += 1
    first = at
    beyond = 0  # bytes after the first of a character
    while True:
        at = skip_plain(text, at, end)
        if at >= end:
            return 0, 0, BAD
        if byte(text, at) == QUOTE:
            return first, at, at + 1 if at - first - beyond <= chars_max else BAD
        if byte(text, at) < 128:
            return 0, 0, BAD
        after = skip_utf8(text, at, end)
        if after < 0:
            return 0, 0, BAD
        beyond += after - at - 1
        at = after


@compiled
def _word(text: Any, at: int, end: int, first: int, count: int) -> Any:
    """Read one of ``count`` literals, from number ``first`` on: its place among them, and the place after."""
    for place in range(count):
        after = _literal(text, at, end, first + place)
        if after >= 0:
            return place, after
    return 0, BAD


@inlined
def _integer(text: Any, at: int, end: int, largest: int) -> Any:
    """Read a whole number from 0 to ``largest``: the number, and the place after it.

    The caller checks the character after the number. A point there would make it a fraction.
    """
    value, after = read_digits(text, at, end)
    count = after - at
    if not 1 <= count <= DIGITS_MAX or value > largest or (count > 1 and byte(text, at) == ZERO):
        return 0, BAD
    return value, after


@compiled
def _metadata(text: Any, at: int, end: int) -> int:
    """Skip an object whose values are strings."""
    if byte(text, at) != BRACE:
        return BAD
    at = skip_space(text, at + 1, end)
    if at < end and byte(text, at) == BRACE_END:
        return at + 1
    while True:
        at = skip_name_and_colon(text, at, end)
        if at < 0:
            return BAD
        at = skip_string(text, skip_space(text, at, end), end)
        if at < 0:
            return BAD
        at = skip_space(text, at, end)
        if at >= end:
            return BAD
        if byte(text, at) == BRACE_END:
            return at + 1
        if byte(text, at) != COMMA:
            return BAD
        at = skip_space(text, at + 1, end)


@compiled
def _values(text: Any, at: int, end: int, keys: Any, key_edges: Any, values: Any, event: int) -> int:
    """As `_metadata`, and put the ranges of the values of an event's dimensions into ``values``.

    A key with an escape, and a wanted value with an escape, are left to `wire.read`.
    """
    if byte(text, at) != BRACE:
        return BAD
    at = skip_space(text, at + 1, end)
    if at < end and byte(text, at) == BRACE_END:
        return at + 1
    while True:
        name = at + 1
        at = skip_name_and_colon(text, at, end)
        if at < 0:
            return BAD
        at = skip_space(text, at, end)
        place = _dimension(text, name, keys, key_edges)
        if place >= 0:  # of several values with the same key, the last one counts
            values[place, event, _FIRST], values[place, event, _END], at = _value(text, at, end)
        else:
            at = skip_string(text, at, end) if place == _NOT_WANTED else BAD
        if at < 0:
            return BAD
        at = skip_space(text, at, end)
        if at >= end:
            return BAD
        if byte(text, at) == BRACE_END:
            return at + 1
        if byte(text, at) != COMMA:
            return BAD
        at = skip_space(text, at + 1, end)


@compiled
def _dimension(text: Any, name: int, keys: Any, key_edges: Any) -> int:
    """The dimension whose values have the key that begins at ``name``, a valid string with its end quote.

    The answer is `_NOT_WANTED` if no dimension wants the key, and `BAD` if the key has an escape.
    """
    close = name
    while byte(text, close) != QUOTE:
        if byte(text, close) == BACKSLASH:
            return BAD
        close += 1
    for k in range(len(key_edges) - 1):
        first = key_edges[k]
        if key_edges[k + 1] - first == close - name and close > name:
            same = True
            for j in range(close - name):
                same = same and byte(text, name + j) == keys[first + j]
            if same:
                return k
    return _NOT_WANTED


@compiled
def _value(text: Any, at: int, end: int) -> Any:
    """Read a string without escapes as the value of a dimension: its range, and the place after."""
    first, last, after = _name(text, at, end, _BODY_BYTES_MAX)
    if last - first > _VALUE_CHARS_MAX:
        chars = 0
        for j in range(first, last):
            chars += byte(text, j) & 0xC0 != 0x80
        if chars > _VALUE_CHARS_MAX:
            return TOO_LONG, TOO_LONG, after
    return first, last, after


@inlined
def _time(text: Any, at: int, end: int, minute_s: int) -> Any:
    """Read an RFC 3339 time in quotes: UTC microseconds, and the place after it.

    ``minute_s`` is the `_minute` in it.
    """
    if at + 22 > end or byte(text, at) != QUOTE or minute_s < 0:
        return 0, BAD
    at += 1
    first = at
    second = read_few_digits(text, at + 17, 2)
    if byte(text, at + 16) != COLON or not 0 <= second <= 59:
        return 0, BAD
    at += 19
    micros = 0
    if byte(text, at) == POINT:
        micros, after = read_digits(text, at + 1, end)
        count = after - (at + 1)
        if not 1 <= count <= DIGITS_MAX:
            return 0, BAD
        if count <= 6:
            micros *= POWERS_OF_TEN[6 - count]
        else:
            micros //= POWERS_OF_TEN[count - 6]
        at = after
    offset_s = 0
    if byte(text, at) == LARGE_Z or byte(text, at) == SMALL_Z:
        at += 1
    elif (byte(text, at) == PLUS or byte(text, at) == MINUS) and byte(text, at + 3) == COLON:
        hours, minutes = read_few_digits(text, at + 1, 2), read_few_digits(text, at + 4, 2)
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return 0, BAD
        offset_s = hours * 3600 + minutes * 60
        if byte(text, at) == MINUS:
            offset_s = -offset_s
        at += 6
    else:
        return 0, BAD
    seconds = minute_s + second - offset_s
    is_good = (
        at < end
        and byte(text, at) == QUOTE
        and at - first <= _NUMBER_CHARS_MAX
        and 0 <= seconds < 253_402_300_800
    )
    return seconds * 1_000_000 + micros, at + 1 if is_good else BAD


@compiled
def _minute(text: Any, at: int) -> int:
    """Seconds since 1970 of ``YYYY-MM-DDThh:mm``, or -1."""
    year, month, day = (
        read_few_digits(text, at, 4),
        read_few_digits(text, at + 5, 2),
        read_few_digits(text, at + 8, 2),
    )
    hour, minute = read_few_digits(text, at + 11, 2), read_few_digits(text, at + 14, 2)
    if not (
        byte(text, at + 4) == MINUS
        and byte(text, at + 7) == MINUS
        and (byte(text, at + 10) == LARGE_T or byte(text, at + 10) == SMALL_T or byte(text, at + 10) == SPACE)
        and byte(text, at + 13) == COLON
        and year >= 1970
        and 1 <= month <= 12
        and 1 <= day <= 31
        and 0 <= hour <= 23
        and 0 <= minute <= 59
        and day <= _days_in_month(year, month)
    ):
        return -1
    return _days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60


@inlined
def _cost(text: Any, at: int, end: int) -> Any:
    """Read a JSON decimal, in quotes or without: microcents, rounded half-even, and the place after it.

    More than 18 digits, a sign, and costs near the bound are `BAD`. `wire.read` decides about these. The
    caller checks the character after a decimal without quotes.
    """
    is_quoted = byte(text, at) == QUOTE
    if is_quoted:
        at += 1
    mantissa, after = read_digits(text, at, end)
    count = after - at
    if not 1 <= count <= DIGITS_MAX or (count > 1 and byte(text, at) == ZERO):
        return 0, BAD
    at = after
    power = 6
    if at < end and byte(text, at) == POINT:
        fraction, after = read_digits(text, at + 1, end)
        decimals = after - (at + 1)
        if decimals < 1 or count + decimals > DIGITS_MAX:
            return 0, BAD
        mantissa = mantissa * POWERS_OF_TEN[decimals] + fraction
        power -= decimals
        at = after
    if at < end and (byte(text, at) == SMALL_E or byte(text, at) == LARGE_E):
        at += 1
        sign = 1
        if at < end and (byte(text, at) == PLUS or byte(text, at) == MINUS):
            sign = -1 if byte(text, at) == MINUS else 1
            at += 1
        exponent, after = read_digits(text, at, end)
        if not 1 <= after - at <= 3:
            return 0, BAD
        power += sign * exponent
        at = after
    if is_quoted:
        if at >= end or byte(text, at) != QUOTE:
            return 0, BAD
        at += 1
    if mantissa == 0:
        return 0, at
    if power >= 0:
        if power > 14 or mantissa > _COST_MAX // POWERS_OF_TEN[power]:
            return 0, BAD
        return mantissa * POWERS_OF_TEN[power], at
    if power < -18:
        return 0, BAD
    unit = POWERS_OF_TEN[-power]
    quotient = mantissa // unit
    rest = mantissa - quotient * unit
    if quotient >= _COST_MAX:
        return 0, BAD
    rounds_up = rest > unit - rest or (rest == unit - rest and quotient % 2 == 1)
    return quotient + rounds_up, at
