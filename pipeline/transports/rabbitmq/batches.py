"""Sub-entry batches: many records that a client compressed into one entry of a chunk, undone within bounds.

A batch's header is the sender's word: how many records it holds, and how many bytes they are once unpacked.
What cannot be true is found so before anything is unpacked, and nothing is ever unpacked beyond the claim.
The clients write every codec as a stream with flushes (several blocks, no size in the frame's own header).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import cramjam
import numpy as np
from isal import isal_zlib

RECORDS_PER_BATCH_MAX: Final = 2**16 - 1
UNPACKED_BYTES_MAX: Final = 32 * 2**20
"""Bound of one batch; a frame of a client holds 1 MiB, and events do not shrink to a thirtieth."""
ROOM_BYTES: Final = 4 * 2**20
ROOM_FACTOR: Final = 256
"""All batches of a chunk may unpack to `ROOM_BYTES` and so many times their bytes: work is bounded by bytes.

Events cannot come near: the id of each is 16 bytes that no codec makes fewer.
"""

_NONE, _GZIP, _SNAPPY, _LZ4, _ZSTD = range(5)
_LENGTH = struct.Struct(">I")
_GZIP_ERROR: Any = isal_zlib.error


def room_of(chunk_bytes: int) -> int:
    """What the batches of a chunk may unpack to in all."""
    return ROOM_BYTES + ROOM_FACTOR * chunk_bytes


def false_claim(*, codec: int, records: int, unpacked_bytes: int, stored_bytes: int, room: int) -> str | None:
    """Why the header of a batch cannot be true, or asks for more than there is room for; None if it may."""
    if codec != _NONE and codec not in _UNPACK:
        return (
            f"a batch of {records} records is compressed with codec {codec}, which is none of the protocol's"
        )
    if _LENGTH.size * records > unpacked_bytes:
        return f"a batch claims {records} records in {unpacked_bytes} bytes, which cannot hold them"
    if codec == _NONE:
        if stored_bytes == unpacked_bytes:
            return None
        return f"a batch of {records} records claims {unpacked_bytes} bytes and has {stored_bytes}"
    bound = min(UNPACKED_BYTES_MAX, room)
    if unpacked_bytes > bound:
        return (
            f"a batch of {records} records claims to unpack from {stored_bytes} to {unpacked_bytes} bytes;"
            f" at most {bound} are unpacked here"
        )
    return None


def unpack(stored: memoryview, *, codec: int, unpacked_bytes: int) -> bytes | memoryview:
    """The inside of a batch whose claim may be true, or other bytes of another length.

    Raises ValueError: it cannot be unpacked, or is more than ``unpacked_bytes``.
    """
    if codec == _NONE:
        return stored
    try:
        return _UNPACK[codec](stored, unpacked_bytes)
    except (_GZIP_ERROR, cramjam.DecompressionError) as error:
        raise ValueError(str(error)) from error


def _gunzip(stored: memoryview, unpacked_bytes: int) -> bytes:
    inflater = isal_zlib.decompressobj(wbits=31)
    # One byte more than stated shows a bomb without unpacking it.
    unpacked = inflater.decompress(stored, unpacked_bytes + 1)
    return unpacked if inflater.eof else b""


def _into(decompress_into: Callable[[Any, Any], int]) -> Callable[[memoryview, int], memoryview]:
    def unpack(stored: memoryview, unpacked_bytes: int) -> memoryview:
        """Raises where there is more than ``unpacked_bytes``, with as much unpacked and no more."""
        out = np.empty(unpacked_bytes, np.uint8)
        size = decompress_into(stored, out)
        return out.data[:size].toreadonly()

    return unpack


_UNPACK: Final[dict[int, Callable[[memoryview, int], bytes | memoryview]]] = {
    _GZIP: _gunzip,
    _SNAPPY: _into(cramjam.snappy.decompress_into),  # the framed format, with its checksums
    _LZ4: _into(cramjam.lz4.decompress_into),  # the frame format
    _ZSTD: _into(cramjam.zstd.decompress_into),
}


def gzip_batch(bodies: Sequence[bytes]) -> tuple[int, bytes]:
    """The bodies as the inside of a gzip sub-entry batch: its uncompressed size, and its bytes."""
    plain = b"".join(part for body in bodies for part in (_LENGTH.pack(len(body)), body))
    return len(plain), gzip.compress(plain, compresslevel=6, mtime=0)
