"""Writes sub-entry batches in every codec, as the libraries of other clients write them."""

from collections.abc import Callable

import pyarrow


def _streamed(name: str) -> Callable[[bytes, int], bytes]:
    """As a client does: a streaming writer, flushed now and then; no size is in the header."""

    def write(plain: bytes, block: int) -> bytes:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, name) as stream:
            for at in range(0, len(plain), block):
                stream.write(plain[at : at + block])
                stream.flush()
        return bytes(sink.getvalue().to_pybytes())

    return write


def _crc32c_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_CRC32C = _crc32c_table()


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _snappy_framed(plain: bytes, block: int) -> bytes:
    """By the format's description: blocks of at most 64 KiB, some of them stored, each with its CRC-32C."""
    raw, out = pyarrow.Codec("snappy"), b"\xff\x06\x00\x00sNaPpY"
    for number, at in enumerate(range(0, len(plain), min(block, 65536))):
        piece = plain[at : at + min(block, 65536)]
        crc = _crc32c(piece)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        stored = piece if number == 1 else raw.compress(piece, asbytes=True)
        head = bytes((1 if number == 1 else 0,)) + (len(stored) + 4).to_bytes(3, "little")
        out += head + masked.to_bytes(4, "little") + stored
    return out


STREAMED: dict[int, Callable[[bytes, int], bytes]] = {
    1: _streamed("gzip"),
    2: _snappy_framed,
    3: _streamed("lz4"),
    4: _streamed("zstd"),
}
