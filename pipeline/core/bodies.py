"""Many bodies in one buffer, as a chunk brings them: no copy and no Python object for each body."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[Any]

PADDING: Final = bytes(32)
"""These bytes end a joined buffer, because compiled readers look some bytes ahead."""

KEPT_BYTES_MAX: Final = 64 * 1024 + 1
"""A dead letter keeps at most this much of its body: one byte more than an event may have.

The one byte more shows that the body was too large.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The part of a body that is kept: at most the first `KEPT_BYTES_MAX` bytes."""

    body: bytes
    whole_bytes: int | None = None
    sha256: bytes | None = None
    """Length and digest of the whole body. None if ``body`` is the whole."""

    @classmethod
    def of(cls, body: bytes | memoryview) -> Kept:
        if len(body) <= KEPT_BYTES_MAX:
            return cls(body=bytes(body))
        digest = hashlib.sha256(body).digest()
        return cls(body=bytes(body[:KEPT_BYTES_MAX]), whole_bytes=len(body), sha256=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The records of a sub-entry batch that nobody can unpack.

    These records have offsets, ``records`` of them from ``first_offset`` on, but no bodies. ``stored`` is the
    batch as it came.
    """

    first_offset: int
    records: int
    fault: str
    stored: Kept
    reason: str = "malformed"

    def since(self, offset: int) -> Unreadable:
        """The same, without the records below an offset."""
        below = max(0, offset - self.first_offset)
        return replace(self, first_offset=self.first_offset + below, records=self.records - below)


def offsets_of(first_offset: int, count: int, unreadable: Sequence[Unreadable]) -> IntArray:
    """The offset of each body of a chunk (int64[count]).

    The offsets begin at ``first_offset`` and leave out the offsets of ``unreadable`` records. ``unreadable``
    is in the order of offsets and lies before, among or after the bodies. For example, a chunk begins at
    offset 100 and has a body, an unreadable batch of 3 records, and a second body. The bodies have the
    offsets 100 and 104.
    """
    offsets: IntArray = np.arange(first_offset, first_offset + count)
    if unreadable:
        records = np.array([run.records for run in unreadable], np.int64)
        before = np.cumsum(records) - records  # unreadable ones before each run
        places = np.array([run.first_offset for run in unreadable], np.int64) - first_offset - before
        skipped = np.zeros(count + 1, np.int64)
        np.add.at(skipped, places, records)
        offsets += np.cumsum(skipped[:-1])
    return offsets


class Bodies(Sequence[bytes]):
    """A sequence of bodies in one buffer: body i is ``text[begins[i]:ends[i]]``.

    ``begins`` and ``ends`` are int64[n]. The bodies are in order and do not overlap; there may be other bytes
    between them. ``padded`` says that `PADDING` ends ``text``.

    The buffer may begin as pieces. The pieces are joined when somebody reads ``text``, so the bodies of many
    chunks are copied once, and not once for each chunk and once more for all chunks together.
    """

    __slots__ = ("_pieces", "begins", "ends", "padded", "size")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, text: bytes | memoryview, begins: IntArray, ends: IntArray, *, padded: bool = False
    ) -> None:
        self._set([text], len(text), begins, ends, padded=padded)

    def _set(
        self,
        pieces: list[bytes | memoryview],
        size: int,
        begins: IntArray,
        ends: IntArray,
        *,
        padded: bool,
    ) -> None:
        self._pieces = pieces
        self.size = size
        self.padded = padded
        self.begins = begins
        self.ends = ends

    @classmethod
    def of(cls, bodies: Iterable[bytes]) -> Bodies:
        """Put bodies one after another into a buffer of their own."""
        pieces: list[bytes | memoryview] = list(bodies)
        edges = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, pieces), np.int64, count=len(pieces)), out=edges[1:])
        made = cls.__new__(cls)
        made._set(pieces, int(edges[-1]), edges[:-1], edges[1:], padded=False)
        return made

    @classmethod
    def join(cls, parts: Sequence[Sequence[bytes]]) -> Bodies:
        """Put the bodies of all parts in order into one buffer that `PADDING` ends."""
        whole = [part if isinstance(part, Bodies) else cls.of(part) for part in parts or ((),)]
        shifts = np.cumsum([0, *(part.size for part in whole)])
        joined = cls.__new__(cls)
        joined._set(
            [*chain.from_iterable(part._pieces for part in whole), PADDING],
            int(shifts[-1]) + len(PADDING),
            np.concatenate([part.begins + shift for part, shift in zip(whole, shifts[:-1], strict=True)]),
            np.concatenate([part.ends + shift for part, shift in zip(whole, shifts[:-1], strict=True)]),
            padded=True,
        )
        return joined

    @property
    def text(self) -> bytes | memoryview:
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Bodies: ...
    def __getitem__(self, at: int | slice) -> bytes | Bodies:
        if isinstance(at, slice):
            return Bodies(self.text, self.begins[at], self.ends[at], padded=self.padded)
        return bytes(self.view(at))

    def view(self, at: int) -> memoryview:
        """One body, without a copy."""
        return memoryview(self.text)[self.begins.item(at) : self.ends.item(at)]

    def __iter__(self) -> Iterator[bytes]:
        text = self.text
        for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True):
            yield bytes(text[begin:end])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} bodies>"
