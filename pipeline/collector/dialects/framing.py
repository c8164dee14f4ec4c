"""A body of JSON to the JSON texts of its items, one after the other.

This module knows arrays, single values and lines (NDJSON), and nothing of usage. Items come lazily, so a
caller who stops at a bound on their number has not paid for the rest. An item is a slice of the body: no
number loses a digit here, and no string is decoded.

msgspec reads JSON as strictly as `pipeline.core.wire` does, with one exception: msgspec takes no half of a
surrogate pair (``\\ud83d`` alone), which JavaScript and Python write where they cut a text. `mended` replaces
these halves.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.collector.dialects import Unreadable
from pipeline.core import wire

JSON: Final = "application/json"
LINES: Final = (
    "application/jsonl",
    "application/ndjson",
    "application/x-jsonlines",
    "application/x-ndjson",
)
"""The content types of lines of JSON."""
TOO_DEEP: Final = f"nested more than {wire.DEPTH_MAX} deep"
NOT_AN_OBJECT: Final = "not a JSON object"
_UNMATCHED: Final = "not JSON: the brackets do not match"
_COMMAS_MAX: Final = 250_000
"""With more commas a body is cut lazily. Otherwise all its items are there at once, in at most 14 MB."""

_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
SPACE: Final = b" \t\r\n"
_FIRST: Final = re.compile(rb"[ \t\r\n]*+([^ \t\r\n])")
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")
_HALF: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_STEPS: Final = np.zeros(256, np.int64)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_BLOCK_BYTES: Final = 1 << 16


def first_of(body: bytes) -> bytes:
    """The first byte that is no white space. b'': there is none."""
    match = _FIRST.match(body)
    return match[1] if match else b""


def check_text(body: bytes) -> None:
    """Raises Unreadable: the body is not UTF-8, or begins with a byte order mark."""
    if body.startswith(codecs.BOM_UTF8):
        raise Unreadable("not JSON: begins with a byte order mark")
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _BLOCK_BYTES):
            decoder.decode(body[start : start + _BLOCK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise Unreadable("not UTF-8") from error


def elements(body: bytes) -> Iterator[bytes]:
    """The JSON texts of the elements of an array. Each is valid JSON, but perhaps with halves of surrogate
    pairs, and perhaps too deep to be read: see `is_too_deep`.

    Raises:
        Unreadable: the body is no array of JSON. This may come after some elements, so nothing of a body
            may be published before its end.
    """
    if commas(body) <= _COMMAS_MAX:
        try:
            raws = _RAWS.decode(body)
        except RecursionError:
            pass  # only one of them may be too deep
        except msgspec.DecodeError as error:
            if rb"\u" not in body:
                raise Unreadable(said(error)) from error
        else:
            yield from map(bytes, raws)
            return
    for element in _cut(body):
        fault = fault_of(element)
        if fault and fault != TOO_DEEP:
            raise Unreadable(fault)
        yield element


def lines(body: bytes) -> Iterator[bytes]:
    """The lines of a body, without blank ones. A line need not be JSON."""
    for match in _LINE.finditer(body):
        yield match[0].rstrip(SPACE)


def fault_of(text: bytes) -> str | None:
    """What keeps a text from being JSON. None: it is JSON, perhaps with halves of surrogate pairs."""
    try:
        decoded(text, _RAW)
    except RecursionError:
        return TOO_DEEP
    except msgspec.DecodeError as error:
        return said(error)
    return None


def decoded(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode a text; with U+FFFD in place of halves of surrogate pairs, if there are any.

    Raises:
        msgspec.DecodeError: the text is no JSON.
        msgspec.ValidationError: it is, but has not the decoder's type.
        RecursionError: it nests too deep.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if rb"\u" not in text:
            raise
        return decoder.decode(mended(text))


def mended(text: bytes) -> bytes:
    """JSON with U+FFFD for each half of a surrogate pair. The text keeps its length."""
    mending = bytearray(text)
    for match in _HALF.finditer(text):
        if match[1]:
            mending[match.start() : match.end()] = rb"\ufffd"
    return bytes(mending)


def commas(text: bytes) -> int:
    """The commas of a JSON text outside of its strings. There are no more values than these and brackets."""
    if text.count(b",") <= _COMMAS_MAX:
        return text.count(b",")
    return sum(int(np.count_nonzero(block == ord(","))) for block in _without_strings(text))


def is_too_deep(text: bytes) -> bool:
    """Does a JSON text nest more than `wire.DEPTH_MAX` deep? Brackets in strings do not count."""
    if text.count(b"[") + text.count(b"{") <= wire.DEPTH_MAX:
        return False
    depth = 0
    for block in _without_strings(text):
        depths = depth + np.cumsum(_STEPS[block])
        if depths.max(initial=0) > wire.DEPTH_MAX:
            return True
        depth = int(depths[-1])
    return False


def _without_strings(text: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a JSON text in blocks, with 0 for what is in a string. Each byte keeps its place."""
    plain = text.replace(rb"\\", b"__").replace(rb"\"", b"__")
    is_inside = 0
    for start in range(0, len(plain), _BLOCK_BYTES):
        block = np.frombuffer(plain[start : start + _BLOCK_BYTES], np.uint8)
        inside = is_inside + np.cumsum(block == ord('"'))
        yield np.where(inside % 2 == 0, block, 0)
        is_inside = int(inside[-1])


def _cut(body: bytes) -> Iterator[bytes]:
    """Cut an array at the commas between its elements. The pieces need not be JSON.

    Raises:
        Unreadable: the brackets do not match, or something stands behind the array.
    """
    if first_of(body) != b"[":
        raise Unreadable(_UNMATCHED)
    first = start = body.index(b"[") + 1
    depth = block_start = 0
    for block in _without_strings(body):
        steps = _STEPS[block]
        depths = depth + np.cumsum(steps)
        is_cut = (block == ord(",")) & (depths == 1) | (steps == -1) & (depths == 0)
        for place in np.flatnonzero(is_cut).tolist():
            end = block_start + place
            element = body[start:end].strip(SPACE)
            if block[place] == ord(","):
                yield element
                start = end + 1
                continue
            if block[place] != ord("]"):
                raise Unreadable(_UNMATCHED)
            if element or start > first:
                yield element
            if first_of(body[end + 1 :]):
                raise Unreadable("not JSON: something stands behind the array")
            return
        depth = int(depths[-1])
        block_start += len(block)
    raise Unreadable(_UNMATCHED)


def said(error: Exception) -> str:
    """The message of msgspec, which says a place and never quotes."""
    return f"not JSON: {str(error).removeprefix('JSON is malformed: ')}"
