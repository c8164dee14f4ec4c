"""The wire format of protocol buffers: a message to its fields, one after the other, without a schema.

A generated class makes an object of each message inside. An empty span has 2 bytes on the wire and 170 in
memory (measured with protobuf 7.36), so a body of 16 MB could need more than a gigabyte. Here a caller
walks through the fields of a message, and goes into those that it wants. Groups, which proto3 does not
have, are broken."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5
_UINT64: Final = struct.Struct("<Q")
_DOUBLE: Final = struct.Struct("<d")


class Broken(ValueError):
    """The bytes are no message."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers and values.

    A varint and a fixed number of 64 bits are unsigned integers, and a field of a length is its bytes. A
    fixed number of 32 bits is passed over, because OTLP has none that is needed.

    Raises:
        Broken: the message ends in a field, or has a field of another kind. It may come after some fields.
    """
    at, end = 0, len(message)
    while at < end:
        tag = message[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(message, at - 1)
        kind = tag & 7
        if kind == LENGTH:
            size = message[at] if at < end else 0x80
            at += 1
            if size > 0x7F:
                size, at = _varint(message, at - 1)
            start, at = at, at + size
            if at > end:
                raise Broken("ends in a field")
            yield tag >> 3, message[start:at]
        elif kind == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif kind == FIXED64 and at + 8 <= end:
            yield tag >> 3, _UINT64.unpack_from(message, at)[0]
            at += 8
        elif kind == FIXED32 and at + 4 <= end:
            at += 4
        else:
            raise Broken("ends in a field, or has a field of an unknown kind")


def message_of(value: int | bytes) -> bytes:
    """A field that must have a length. Raises Broken."""
    if isinstance(value, int):
        raise Broken("a number where a message is expected")
    return value


def number_of(value: int | bytes) -> int:
    """A field that must be a number. Raises Broken."""
    if not isinstance(value, int):
        raise Broken("a message where a number is expected")
    return value


def text_of(value: int | bytes) -> str:
    """A text. Bytes that are no UTF-8 become U+FFFD: a cut text must not make a span unreadable."""
    return message_of(value).decode("utf-8", "replace")


def signed(value: int) -> int:
    """The int64 that a varint is."""
    return value - (1 << 64) if value >> 63 else value


def double(value: int) -> float:
    """The double that a fixed number of 64 bits is."""
    return float(_DOUBLE.unpack(_UINT64.pack(value))[0])


def varint(value: int) -> bytes:
    """Encode an unsigned integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def field(number: int, value: int | bytes) -> bytes:
    """Encode a field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in message[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte <= 0x7F:
            return value & (2**64 - 1), at
    raise Broken("ends in a number, or has a number of more than 10 bytes")
