"""From the entries of a stored chunk to message payloads, and back: pure functions over bytes.

Knows the chunk's entry layout (osiris: a 4-byte length, or a sub-entry batch with its top bit set) and
as much of AMQP 1.0 as finding a payload needs. Refuses to know connections, offsets and JSON.

Two kinds of fault are told apart. Bytes that a sender wrote (an entry, the inside of a batch) never fail
a chunk: what cannot be undone is delivered as it is, and rejected and kept further down, record by
record. Bytes that the broker wrote (lengths and counts of the chunk) must be right: `BrokenChunk`.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.bodies import Bodies
from pipeline.core.machine import compiled

UNCOMPRESSED_BYTES_MAX = 256 * 2**20
"""Bound of what the batches of one chunk may unpack to; batches beyond it count as broken."""

RECORDS_PER_BATCH_MAX = 2**16 - 1
RECORDS_PER_CHUNK_MAX = 2**24
"""A batch can claim 65535 records in 11 bytes; the sum of such claims must not fill the memory."""

_LENGTH = struct.Struct(">I")
_BATCH_HEADER = struct.Struct(">BHII")  # type and codec, records, uncompressed bytes, stored bytes
_NO_CODEC, _GZIP = 0, 1
_CODEC_NAMES = {2: "snappy", 3: "lz4", 4: "zstd"}


class BrokenChunk(ValueError):
    """The chunk cannot be split into its records, so delivering it would lose some."""


def decode_entries(
    data: bytes | memoryview, start: int, end: int, *, entries: int, records: int
) -> Sequence[bytes]:
    """Return the payloads of the ``records`` records stored in ``entries`` entries at data[start:end].

    The record at index i has the chunk's first offset + i. A batch that cannot be unpacked yields its
    stored bytes for its first record and b"" for the others, so that the count always holds.

    Raises:
        BrokenChunk: the lengths do not add up, or a batch uses a codec other than none and gzip.
    """
    if entries == records and 4 * entries <= end - start:
        begins, ends = np.empty(entries, np.int64), np.empty(entries, np.int64)
        if _find_plain(np.frombuffer(data, np.uint8), start, end, begins, ends):
            return Bodies(data, begins, ends)
    return _decode_any(bytes(data), start, end, entries, records)


@compiled
def _find_plain(data: Any, position: int, end: int, begins: Any, ends: Any) -> bool:
    """Find the payloads of n entries that are bare or one AMQP 1.0 data section; False if one is neither."""
    for i in range(len(begins)):
        if position + 4 > end:
            return False
        length = _u32(data, position)
        position += 4
        stop = position + length
        if length >= 0x80000000 or stop > end:
            return False
        begins[i], ends[i] = position, stop
        if length and data[position] == 0:
            if length < 6 or data[position + 1] != 0x53 or data[position + 2] != 0x75:
                return False
            kind = data[position + 3]
            if kind == 0xA0 and data[position + 4] == length - 5:
                begins[i] = position + 5
            elif kind == 0xB0 and length >= 8 and _u32(data, position + 4) == length - 8:
                begins[i] = position + 8
            else:
                return False
        position = stop
    return position == end


@compiled
def _u32(data: Any, at: int) -> Any:
    value = np.int64(data[at]) << 24 | np.int64(data[at + 1]) << 16 | np.int64(data[at + 2]) << 8
    return value | np.int64(data[at + 3])


def _decode_any(data: bytes, start: int, end: int, entries: int, records: int) -> list[bytes]:
    """As `decode_entries`, for entries of every kind."""
    bodies: list[bytes] = []
    append, length_at = bodies.append, _LENGTH.unpack_from
    budget = UNCOMPRESSED_BYTES_MAX
    if records > RECORDS_PER_CHUNK_MAX:
        raise BrokenChunk(f"it claims {records} records; at most {RECORDS_PER_CHUNK_MAX} can be read")
    position = start
    try:
        for _ in range(entries):
            length = length_at(data, position)[0]
            position += 4
            if 0 < length < 0x80000000:
                stop = position + length
                # JSON never begins with a zero byte, an AMQP section always does.
                append(data[position:stop] if data[position] else amqp_payload(data[position:stop]))
                position = stop
            elif length == 0:
                append(b"")
            else:
                position -= 4
                kind, count, unpacked_bytes, stored_bytes = _BATCH_HEADER.unpack_from(data, position)
                position += _BATCH_HEADER.size
                stored = data[position : position + stored_bytes]
                position += stored_bytes
                codec = kind >> 4 & 7
                if codec > _GZIP:
                    name = _CODEC_NAMES.get(codec, f"codec {codec}")
                    raise BrokenChunk(f"a sub-entry batch is compressed with {name}; only gzip can be read")
                unpacked = unpack_batch(stored, codec, count, unpacked_bytes, budget)
                if unpacked is None:
                    bodies += [stored, *[b""] * (count - 1)][:count]
                else:
                    bodies += unpacked
                    budget -= unpacked_bytes
    except (struct.error, IndexError):
        raise BrokenChunk("an entry reaches beyond the end of its chunk") from None
    if position != end or len(bodies) != records:
        raise BrokenChunk(
            f"{entries} entries end at byte {position - start} of {end - start} and hold {len(bodies)}"
            f" of {records} records"
        )
    return bodies


def unpack_batch(
    stored: bytes, codec: int, records: int, unpacked_bytes: int, limit_bytes: int
) -> list[bytes] | None:
    """The payloads of one batch (codec 0 or 1), or None if it does not hold what its header states."""
    if unpacked_bytes > limit_bytes:
        return None
    if codec == _GZIP:
        inflater = zlib.decompressobj(wbits=31)
        try:
            # One byte more than stated shows a bomb without unpacking it.
            stored = inflater.decompress(stored, unpacked_bytes + 1)
        except zlib.error:
            return None
        if not inflater.eof:
            return None
    if len(stored) != unpacked_bytes:
        return None
    bodies, position = [], 0
    for _ in range(records):
        if position + 4 > unpacked_bytes:
            return None
        start = position + 4
        position = start + _LENGTH.unpack_from(stored, position)[0]
        bodies.append(amqp_payload(stored[start:position]))
    return bodies if position == unpacked_bytes else None


def amqp_payload(entry: bytes) -> bytes:
    """The payload of an entry: of its AMQP 1.0 sections, or the entry itself when it has none.

    Data sections are concatenated; an amqp-value of binary or string type counts as payload too. Never
    raises: an entry that cannot be walked to its end is returned whole.
    """
    if entry[:3] == b"\x00\x53\x75":
        kind = entry[3:4]
        if kind == b"\xa0" and len(entry) > 4 and entry[4] == len(entry) - 5:
            return entry[5:]
        if kind == b"\xb0" and len(entry) > 7 and _LENGTH.unpack_from(entry, 4)[0] == len(entry) - 8:
            return entry[8:]
    if entry[:1] != b"\x00":
        return entry
    try:
        payload = _walk_sections(entry)
    except (IndexError, struct.error):
        payload = None
    return entry if payload is None else payload


_HEADER_SECTION, _DATA, _VALUE, _FOOTER = 0x70, 0x75, 0x77, 0x78
_SECTIONS_BY_SYMBOL = {
    b"amqp:header:list": 0x70,
    b"amqp:delivery-annotations:map": 0x71,
    b"amqp:message-annotations:map": 0x72,
    b"amqp:properties:list": 0x73,
    b"amqp:application-properties:map": 0x74,
    b"amqp:data:binary": 0x75,
    b"amqp:amqp-sequence:list": 0x76,
    b"amqp:amqp-value:*": 0x77,
    b"amqp:footer:map": 0x78,
}
_FIXED_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}


def _walk_sections(entry: bytes) -> bytes | None:
    """The payload of a sequence of sections, or None. Raises IndexError or struct.error at a cut."""
    data: list[bytes] = []
    value: bytes | None = None
    position = 0
    while position < len(entry):
        if entry[position] != 0:
            return None
        section, at = _descriptor(entry, position + 1)
        if section is None or not _HEADER_SECTION <= section <= _FOOTER:
            return None
        position = _end_of_value(entry, at)
        if section in (_DATA, _VALUE):
            payload = _binary_or_string(entry, at, position)
            if payload is None:
                return None
            if section == _DATA:
                data.append(payload)
            else:
                value = payload
    return b"".join(data) if data else value


def _descriptor(entry: bytes, at: int) -> tuple[int | None, int]:
    """The section code that the descriptor at ``at`` names, and where the section's value begins."""
    kind = entry[at]
    if kind == 0x53:
        return entry[at + 1], at + 2
    end = _end_of_value(entry, at)
    if kind == 0x80:
        return int.from_bytes(entry[at + 1 : end], "big"), end
    if kind == 0xA3:
        return _SECTIONS_BY_SYMBOL.get(entry[at + 2 : end]), end
    return None, end


def _end_of_value(entry: bytes, at: int) -> int:
    """Where the AMQP value at ``at`` ends. Raises IndexError if that is beyond the entry."""
    values_left = 1
    while values_left:
        kind = entry[at]
        width = kind >> 4
        at += 1
        if kind == 0:  # described: a descriptor and a value follow
            values_left += 1
            continue
        if width in _FIXED_WIDTHS:
            at += _FIXED_WIDTHS[width]
        elif width in (0xA, 0xC, 0xE):
            at += 1 + entry[at]
        elif width in (0xB, 0xD, 0xF):
            at += 4 + int(_LENGTH.unpack_from(entry, at)[0])
        else:
            raise IndexError("no such type")
        values_left -= 1
    if at > len(entry):
        raise IndexError("cut off")
    return at


def _binary_or_string(entry: bytes, at: int, end: int) -> bytes | None:
    if entry[at] in (0xA0, 0xA1):
        return entry[at + 2 : end]
    if entry[at] in (0xB0, 0xB1):
        return entry[at + 5 : end]
    return None


def amqp_message(body: bytes) -> bytes:
    """A body as an AMQP 1.0 message of one data section."""
    if len(body) < 256:
        return b"\x00\x53\x75\xa0" + bytes((len(body),)) + body
    return b"\x00\x53\x75\xb0" + _LENGTH.pack(len(body)) + body


def gzip_batch(bodies: Sequence[bytes]) -> tuple[int, bytes]:
    """The bodies as the inside of a gzip sub-entry batch: its uncompressed size, and its bytes."""
    plain = b"".join(part for body in bodies for part in (_LENGTH.pack(len(body)), body))
    return len(plain), gzip.compress(plain, compresslevel=6, mtime=0)


def warm_up() -> None:
    """Compile (once a machine) or load what `decode_entries` needs, so that no chunk waits for it."""
    decode_entries(b"\x00\x00\x00\x01{", 0, 5, entries=1, records=1)
