"""From the entries of a stored chunk to message payloads: pure functions over bytes.

The module knows how osiris, the broker's storage, lays out the entries of a chunk. An entry is a 4-byte
length and one record, or a sub-entry batch, which has the top bit of its first byte set. `batches` knows the
codecs, and `amqp` knows the framing of a message. Connections, credit and JSON are left to others.

There are two kinds of fault, by who wrote the bytes. A sender wrote the entries, the batches and their
headers. A fault in these never fails the chunk: a broken entry is delivered as it is, and a batch that cannot
be unpacked becomes an `Unreadable`. Both are rejected later and kept as dead letters. The broker wrote the
lengths and counts of the chunk. A fault in these raises `BrokenChunk`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from pipeline.core.bodies import Bodies, IntArray, Kept, Unreadable, offsets_of
from pipeline.core.kernels.compile import compiled
from pipeline.transports.rabbitmq import batches
from pipeline.transports.rabbitmq.amqp import amqp_payload

PART_BYTES: Final = 8 * 2**20
PART_RECORDS: Final = 2**14
"""The bounds at which a part of a chunk with batches is handed on: 8 MiB or 16,384 records.

The rest of the chunk follows in more parts. Each part takes one credit, as a chunk does.
"""
_BATCH_BYTES: Final = 1024
"""Each batch counts 1,024 bytes more than it unpacks to, because even an empty batch takes time."""

_LENGTH = struct.Struct(">I")
_BATCH_HEADER = struct.Struct(">BHII")  # type and codec, records, uncompressed bytes, stored bytes
_BATCH = 2
"""The kind of an entry: 0 is a bare body, 1 is a body in AMQP framing, 2 is a batch."""


class BrokenChunk(ValueError):
    """The chunk cannot be split into its records; to deliver it would lose records.

    The subscription ends, and the caller reads the chunk again.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive records of a chunk: bodies, and the unreadable records between them (`offsets_of`)."""

    first_offset: int
    next_offset: int
    bodies: Sequence[bytes]
    unreadable: Sequence[Unreadable] = ()

    def since(self, offset: int) -> Part:
        """The part without its records below ``offset``; ``offset`` lies below ``next_offset``."""
        if offset <= self.first_offset:
            return self
        offsets = offsets_of(self.first_offset, len(self.bodies), self.unreadable)
        left = [run.since(offset) for run in self.unreadable if run.first_offset + run.records > offset]
        bodies = self.bodies[int(np.searchsorted(offsets, offset)) :]
        return Part(first_offset=offset, next_offset=self.next_offset, bodies=bodies, unreadable=left)


def decode_parts(
    data: bytes | memoryview, start: int, end: int, *, entries: int, records: int, first_offset: int
) -> Iterator[Part]:
    """The ``records`` records stored in ``entries`` entries at data[start:end], from ``first_offset`` on.

    A chunk without batches is one part. Two bounds hold for batches: one part unpacks at most `PART_BYTES`
    and one batch more, and all parts of a chunk together unpack no more bytes than `batches.room_of` allows.

    Raises:
        BrokenChunk: the lengths do not add up. Raised by this call, before the first part is made.
    """
    if entries == records and 4 * entries <= end - start:
        begins, ends = np.empty(entries, np.int64), np.empty(entries, np.int64)
        if _find_plain(np.frombuffer(data, np.uint8), start, end, begins, ends):
            bodies = Bodies(data, begins, ends)
            return iter((Part(first_offset=first_offset, next_offset=first_offset + records, bodies=bodies),))
    found = _find_entries(data, start, end, entries, records)
    return _mixed_parts(data, found, chunk_bytes=end - start, first_offset=first_offset)


@compiled
def _find_plain(data: Any, position: int, end: int, begins: Any, ends: Any) -> bool:
    """Find the payloads of n entries, if each is a bare body or one AMQP 1.0 data section; else False."""
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


@dataclass(frozen=True, slots=True)
class _Entries:
    """Arrays int64[entries]: an entry's kind; the entry is data[at:stop], its content data[begin:stop]."""

    kind: IntArray
    at: IntArray
    begin: IntArray
    stop: IntArray


def _find_entries(data: bytes | memoryview, start: int, end: int, entries: int, records: int) -> _Entries:
    """Find the entries of a chunk, of all three kinds. Raises BrokenChunk if their lengths do not add up."""
    if 4 * entries > end - start:
        raise BrokenChunk(f"{entries} entries do not fit in {end - start} bytes")
    found = _Entries(*(np.empty(entries, np.int64) for _ in range(4)))
    text = np.frombuffer(data, np.uint8)
    held, stopped = _walk_entries(text, start, end, found.kind, found.at, found.begin, found.stop)
    if held < 0:
        raise BrokenChunk("an entry reaches beyond the end of its chunk")
    if stopped != end or held != records:
        raise BrokenChunk(
            f"{entries} entries end at byte {stopped - start} of {end - start} and hold {held}"
            f" of {records} records"
        )
    return found


@compiled
def _walk_entries(data: Any, position: int, end: int, kind: Any, at: Any, begin: Any, stop: Any) -> Any:
    """Fill in n entries; the number of records that they claim, and the byte where they end.

    The number is -1 if the entries reach beyond ``end``.
    """
    records: Any = np.int64(0)
    for i in range(len(kind)):
        if position + 4 > end:
            return -1, position
        at[i] = position
        length = _u32(data, position)
        if length < 0x80000000:
            kind[i], begin[i], stop[i] = 0, position + 4, position + 4 + length
            records += 1
        elif position + 11 > end:
            return -1, position
        else:
            kind[i], begin[i] = 2, position + 11
            stop[i] = position + 11 + _u32(data, position + 7)
            records += np.int64(data[position + 1]) << 8 | np.int64(data[position + 2])
        position = stop[i]
        if position > end:
            return -1, position
        if kind[i] == 0 and position > begin[i] and data[begin[i]] == 0:
            kind[i] = 1  # JSON never begins with a zero byte, an AMQP section always does
    return records, position


class _Growing:
    """A part that is being put together."""

    def __init__(self, first_offset: int) -> None:
        self.first_offset = self.next_offset = first_offset
        self._size = self._count = 0
        self._bodies: list[Sequence[bytes]] = []
        self._unreadable: list[Unreadable] = []

    @property
    def full(self) -> bool:
        return self._size >= PART_BYTES or self._count >= PART_RECORDS

    def add(self, bodies: Sequence[bytes], *, size: int = 0) -> None:
        self._bodies.append(bodies)
        self._size += size
        self._count += len(bodies)
        self.next_offset += len(bodies)

    def add_unreadable(self, records: int, fault: str, stored: memoryview) -> None:
        run = Unreadable(first_offset=self.next_offset, records=records, fault=fault, stored=Kept.of(stored))
        self._unreadable.append(run)
        self.next_offset += records

    def worked(self, size: int) -> None:
        self._size += size

    def done(self) -> Part:
        return Part(
            first_offset=self.first_offset,
            next_offset=self.next_offset,
            bodies=self._bodies[0] if len(self._bodies) == 1 else Bodies.join(self._bodies),
            unreadable=self._unreadable,
        )


def _mixed_parts(
    data: bytes | memoryview, found: _Entries, *, chunk_bytes: int, first_offset: int
) -> Iterator[Part]:
    """The parts of a chunk whose entries are of several kinds, each made when it is asked for."""
    view, room = memoryview(data), batches.room_of(chunk_bytes)
    growing = _Growing(first_offset)
    for first, after in _runs(found.kind == _BATCH):
        if found.kind[first] != _BATCH:
            growing.add(_single(view, found, first, after))
            continue
        for i in range(first, after):
            stored = view[int(found.begin[i]) : int(found.stop[i])]
            kind, records, unpacked_bytes, stored_bytes = _BATCH_HEADER.unpack_from(view, int(found.at[i]))
            if not records:
                continue
            codec = kind >> 4 & 7
            fault = batches.false_claim(
                codec=codec,
                records=records,
                unpacked_bytes=unpacked_bytes,
                stored_bytes=stored_bytes,
                room=room,
            )
            growing.worked(_BATCH_BYTES)
            if fault is None:
                room -= unpacked_bytes if codec else 0
                growing.worked(unpacked_bytes)
                try:
                    inside = batches.unpack(stored, codec=codec, unpacked_bytes=unpacked_bytes)
                    growing.add(_records(inside, records, unpacked_bytes))
                except ValueError as error:
                    fault = f"a batch of {records} records cannot be undone: {error}"
            if fault is not None:
                growing.add_unreadable(records, fault, stored)
            if growing.full:
                yield growing.done()
                growing = _Growing(growing.next_offset)
    if growing.next_offset > growing.first_offset:
        yield growing.done()


def _runs(which: IntArray) -> Iterator[tuple[int, int]]:
    """The bounds [first, after) of each run of equal values."""
    edges = [0, *(np.flatnonzero(which[1:] != which[:-1]) + 1).tolist(), len(which)]
    return pairwise(edges) if len(which) else iter(())


def _single(view: memoryview, found: _Entries, first: int, after: int) -> Sequence[bytes]:
    """The payloads of the entries [first, after), which hold one record each."""
    begins, stops = found.begin[first:after], found.stop[first:after]
    if not found.kind[first:after].any():
        origin = int(begins[0])
        return Bodies(view[origin : int(stops[-1])], begins - origin, stops - origin)
    places = zip(begins.tolist(), stops.tolist(), strict=True)
    return [amqp_payload(bytes(view[begin:stop])) for begin, stop in places]


def _records(inside: bytes | memoryview, records: int, claimed_bytes: int) -> Sequence[bytes]:
    """The payloads in an unpacked batch. Raises ValueError if the batch is not as its header claims."""
    if len(inside) != claimed_bytes:
        raise ValueError(f"it claims {claimed_bytes} bytes and unpacks to {len(inside)}")
    begins, ends = np.empty(records, np.int64), np.empty(records, np.int64)
    if _find_plain(np.frombuffer(inside, np.uint8), 0, claimed_bytes, begins, ends):
        return Bodies(inside, begins, ends)
    view, position = memoryview(inside), 0
    bodies: list[bytes] = []
    for _ in range(records):
        if position + 4 > claimed_bytes:
            break
        begin = position + 4
        position = begin + _LENGTH.unpack_from(view, position)[0]
        bodies.append(amqp_payload(bytes(view[begin:position])))
    if len(bodies) != records or position != claimed_bytes:
        raise ValueError(f"the lengths of its records do not fill its {claimed_bytes} bytes")
    return bodies


def warm_up() -> None:
    """Compile the loops of `decode_parts`, or load them if this machine has compiled them before.

    So no chunk waits for the compiler.
    """
    batch = _BATCH_HEADER.pack(0x80, 1, 5, 5) + b"\x00\x00\x00\x01{"
    for part in decode_parts(batch, 0, len(batch), entries=1, records=1, first_offset=0):
        assert part.bodies == [b"{"]
