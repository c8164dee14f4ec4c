"""The socket below a stream connection: frames come out whole however the network cuts them."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from rstream.connection import ConnectionClosed

from pipeline.transports.rabbitmq.stream_socket import BUFFER_BYTES, CHUNK_BYTES_MAX, StreamSocket

Speaks = Callable[[asyncio.StreamWriter], Awaitable[None]]

AROUND_THE_BUFFER = [BUFFER_BYTES + more for more in range(-6, 7)]
SIZES = [0, 1, 3, 4, 5, 1000, *AROUND_THE_BUFFER, 2 * BUFFER_BYTES, 1_000_000, 7, 0, 3_000_000, 2]


@asynccontextmanager
async def connected(speaks: Speaks) -> AsyncIterator[StreamSocket]:
    """A socket to a server which says its piece once it is spoken to, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        await speaks(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    socket = StreamSocket("127.0.0.1", server.sockets[0].getsockname()[1])
    async with server:
        await socket.open()
        await socket.write_all(b"hello")
        yield socket
        await socket.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@pytest.mark.parametrize("cut_max", [3, 100, 5000, BUFFER_BYTES + 1, 1 << 30])
async def test_frames_come_out_as_they_were_sent(cut_max: int) -> None:
    chance = random.Random(cut_max)
    sizes = SIZES if cut_max > 100 else [0, 1, 3, 4, 5, 300, 0, 2]
    frames = [chance.randbytes(size) for size in sizes]
    stream = framed(*frames)

    async def speak(writer: asyncio.StreamWriter) -> None:
        at = 0
        while at < len(stream):
            cut = chance.randint(1, cut_max)
            writer.write(stream[at : at + cut])
            at += cut
            await writer.drain()
            if cut_max <= 100:
                await asyncio.sleep(0)

    async with asyncio.timeout(120), connected(speak) as socket:
        for sent in frames:
            assert bytes(await socket.read_frame_bytes()) == sent
        with pytest.raises(ConnectionClosed):
            await socket.read_frame_bytes()
        assert socket.reads > 0


async def test_a_large_frame_cannot_be_written_to() -> None:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(framed(bytes(2 * BUFFER_BYTES)))

    async with asyncio.timeout(120), connected(speak) as socket:
        frame = await socket.read_frame_bytes()
        assert memoryview(frame).readonly


@pytest.mark.parametrize("whole", [b"", framed(b"one"), framed(b"one", bytes(2 * BUFFER_BYTES))])
@pytest.mark.parametrize("part", [b"\0\0", framed(b"small")[:-1], framed(bytes(2 * BUFFER_BYTES))[:-1]])
async def test_the_end_of_the_stream_inside_a_frame_ends_the_reading_after_the_whole_ones(
    whole: bytes, part: bytes
) -> None:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(whole + part)

    async with asyncio.timeout(120), connected(speak) as socket:
        read = b""
        while len(read) < len(whole):
            read += framed(bytes(await socket.read_frame_bytes()))
        assert read == whole
        with pytest.raises(ConnectionClosed):
            await socket.read_frame_bytes()


async def test_a_frame_longer_than_any_chunk_is_refused_after_the_whole_ones() -> None:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(framed(b"one") + (CHUNK_BYTES_MAX + 1).to_bytes(4, "big") + bytes(3 * BUFFER_BYTES))

    async with asyncio.timeout(120), connected(speak) as socket:
        assert await socket.read_frame_bytes() == b"one"
        for _ in range(100_000):
            if socket.reads >= 4:
                break
            await asyncio.sleep(0)
        assert socket.reads >= 4, "the rest came, which is not to be taken for frames"
        for _ in range(2):
            with pytest.raises(ValueError, match=f"a frame of {CHUNK_BYTES_MAX + 1} bytes"):
                await socket.read_frame_bytes()


async def test_a_connection_that_is_reset_ends_the_reading() -> None:
    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with asyncio.timeout(120), connected(speak) as socket:
        with pytest.raises((ConnectionClosed, OSError)):
            await socket.read_frame_bytes()
