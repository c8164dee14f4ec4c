"""Sub-entry batches: many records that a client compressed into one entry of a chunk, unpacked within bounds.

The sender writes the header of a batch. The header claims the number of records and their bytes once
unpacked. `false_claim` checks the header before anything is unpacked, and `unpack` stops at the claimed
bytes. The clients write every codec as a stream with flushes: several blocks, and no size in the codec's own
header.
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
"""The most that one batch may unpack to. A client's frame holds 1 MiB, and no codec shrinks events to a
thirtieth of their size."""
ROOM_BYTES: Final = 4 * 2**20
ROOM_FACTOR: Final = 256
"""All batches of a chunk together may unpack to `ROOM_BYTES` plus `ROOM_FACTOR` times the chunk's bytes.

So the work for a chunk grows with the bytes of the chunk: 1 MiB may unpack to 260 MiB. Real events stay far
below the bound, because the id of each event is 16 bytes that no codec can shrink.
"""

_NONE, _GZIP, _SNAPPY, _LZ4, _ZSTD = range(5)
_LENGTH = struct.Struct(">I")
_GZIP_ERROR: Any = isal_zlib.error


def room_of(chunk_bytes: int) -> int:
    """The bytes that all batches of a chunk together may unpack to."""
    return ROOM_BYTES + ROOM_FACTOR * chunk_bytes


def false_claim(*, codec: int, records: int, unpacked_bytes: int, stored_bytes: int, room: int) -> str | None:
    """Why a batch must stay packed: its header cannot be true, or claims too much; None: unpack the batch."""
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
    """Unpack a batch that has passed `false_claim`; the caller compares the length with the claim.

    Raises ValueError: the batch cannot be unpacked, or unpacks to more than ``unpacked_bytes``.
    """
    if codec == _NONE:
        return stored
    try:
        return _UNPACK[codec](stored, unpacked_bytes)
    except (_GZIP_ERROR, cramjam.DecompressionError) as error:
        raise ValueError(str(error)) from error


def _gunzip(stored: memoryview, unpacked_bytes: int) -> bytes:
    inflater = isal_zlib.decompressobj(wbits=31)
    # One byte more than claimed is enough to see that the batch holds more: the rest stays packed.
    unpacked = inflater.decompress(stored, unpacked_bytes + 1)
    return unpacked if inflater.eof else b""


def _into(decompress_into: Callable[[Any, Any], int]) -> Callable[[memoryview, int], memoryview]:
    def unpack(stored: memoryview, unpacked_bytes: int) -> memoryview:
        """Unpack at most ``unpacked_bytes``; raises the codec's error if there is more."""
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
    """Pack the bodies for a gzip sub-entry batch: the uncompressed size, and the compressed bytes."""
    plain = b"".join(part for body in bodies for part in (_LENGTH.pack(len(body)), body))
    return len(plain), gzip.compress(plain, compresslevel=6, mtime=0)
