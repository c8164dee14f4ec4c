"""A request's body: read in a stream under bounds of bytes and time, and unpacked under a bound of bytes.

Nothing that a sender claims is believed. A Content-Length above the bound is refused at once, and what
arrives is counted all the same. A gzip or zstd body is unpacked into memory of a bounded size, whatever size
its header claims.

A body has a deadline that moves with its bytes: `GRACE_S`, and a second more for each COLLECTOR_BODY_PACE
bytes that have arrived, up to COLLECTOR_BODY_TIMEOUT. So a body that trickles ends after about a second. The
content of the body is left to the dialects.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any, Final

import cramjam
import numpy as np
from aiohttp import StreamReader, web
from isal import igzip, isal_zlib

from pipeline.collector.config import BodyBounds
from pipeline.collector.in_work import Share
from pipeline.common import heap
from pipeline.common.problems import Problem, invalid_body

GRACE_S: Final = 1.0
"""How long a body may take before its pace counts."""
CODINGS: Final = "gzip, zstd, identity"
"""What a request's Content-Encoding may say. An answer 415 says so in its Accept-Encoding (RFC 7694)."""
_PIECE_BYTES: Final = 2**18
_LARGE_BYTES: Final = 2**17
"""From this size on, a packed body is unpacked in a thread: it may take tens of milliseconds."""
_ZSTD_FACTOR: Final = 16
"""Most zstd bodies unpack to less than 16 times their size. Only for others the whole bound is reserved."""
_GZIP_ERRORS: Final[tuple[Any, ...]] = (isal_zlib.error, OSError, EOFError, OverflowError)


class BodyReader:
    """Reads the bodies of all requests under the same bounds."""

    def __init__(self, bounds: BodyBounds) -> None:
        self._bounds = bounds
        self._unpacking = asyncio.Lock()
        """One large body is unpacked at a time, because unpacking needs memory that no share counts."""

    async def read(self, request: web.Request, share: Share) -> bytes:
        """The body, unpacked. ``share`` then holds its bytes.

        Raises:
            Problem: 400 (it cannot be unpacked), 408 (too slow), 413 (too large), 415 and 501 (unknown
                encoding), and what `InWork.take` raises.
            aiohttp.http_exceptions.HttpProcessingError, web.RequestPayloadError: it is not as the request's
                head says.
        """
        check_transfer_coding(request)
        coding = coding_of(request)
        length = request.content_length
        if length is not None and length > self._bounds.body_bytes_max:
            raise self._too_large()
        body = await self._received(request.content, share)
        if coding == "identity":
            return body
        unpack = self._gunzip if coding == "gzip" else self._unzstd
        if len(body) < _LARGE_BYTES:
            unpacked = await unpack(body, share, _here)
        else:
            async with self._unpacking:
                unpacked = await unpack(body, share, asyncio.to_thread)
        share.shrink(len(body))
        return unpacked

    async def _received(self, content: StreamReader, share: Share) -> bytes:
        started = asyncio.get_running_loop().time()
        pieces: list[bytes] = []
        size = 0
        while not content.at_eof():
            piece = content.read_nowait() or await self._next(content, started, size)
            size += len(piece)
            if size > self._bounds.body_bytes_max:
                raise self._too_large()
            await share.grow(len(piece))
            pieces.append(piece)
        return _joined(pieces)

    async def _next(self, content: StreamReader, started: float, size: int) -> bytes:
        """Wait for the next piece of a body of which ``size`` bytes have come. b'' at its end."""
        bounds = self._bounds
        allowed_s = bounds.timeout_s
        if bounds.pace_bytes:
            allowed_s = min(allowed_s, GRACE_S + size / bounds.pace_bytes)
        try:
            async with asyncio.timeout_at(started + allowed_s):
                return await content.readany()
        except TimeoutError:
            pass
        # Was it us? Let the event loop look at its sockets before the sender is blamed.
        for _ in range(2):
            await asyncio.sleep(0)
        if piece := content.read_nowait():
            return piece
        if content.is_eof():
            return b""
        raise Problem(
            status=408,
            kind="too-slow",
            detail=f"The body came too slowly: {size} bytes in {allowed_s:.1f} s. It must come at"
            f" {bounds.pace_bytes} bytes/s (COLLECTOR_BODY_PACE), and in {bounds.timeout_s:g} s"
            " (COLLECTOR_BODY_TIMEOUT).",
            headers={"Connection": "close"},
        )

    async def _gunzip(self, body: bytes, share: Share, run: _Run) -> bytes:
        """Unpack gzip of one or several members, a piece at a time."""
        reader: Any = igzip.IGzipFile(fileobj=io.BytesIO(body))  # type: ignore[no-untyped-call]
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                piece: bytes = await run(reader.read, _PIECE_BYTES)
            except _GZIP_ERRORS:
                raise _cannot_unpack("gzip") from None
            if not piece:
                return _joined(pieces)
            size += len(piece)
            if size > self._bounds.unpacked_bytes_max:
                raise self._unpacks_too_large()
            await share.grow(len(piece))
            pieces.append(piece)

    async def _unzstd(self, body: bytes, share: Share, run: _Run) -> bytes:
        """Unpack zstd of one or several frames."""
        bound = self._bounds.unpacked_bytes_max
        for room in (min(bound, _LARGE_BYTES + _ZSTD_FACTOR * len(body)), bound):
            await share.grow(room)
            unpacked: bytes | None = await run(_unzstd_into, body, room)
            if unpacked is not None:
                share.shrink(room - len(unpacked))
                return unpacked
            share.shrink(room)
            if room == bound:
                break
        raise self._unpacks_too_large()

    def _too_large(self) -> Problem:
        return _too_large(
            f"The body is larger than {self._bounds.body_bytes_max} bytes (COLLECTOR_BODY_BYTES_MAX): send"
            " several requests."
        )

    def _unpacks_too_large(self) -> Problem:
        return _too_large(
            f"The body unpacks to more than {self._bounds.unpacked_bytes_max} bytes"
            " (COLLECTOR_UNPACKED_BYTES_MAX): send several requests."
        )


def _joined(pieces: list[bytes]) -> bytes:
    """The pieces as one, and their memory given back."""
    if len(pieces) == 1:
        return pieces[0]
    body = b"".join(pieces)
    pieces.clear()
    if len(body) > heap.TRIM_BYTES:
        heap.trim()
    return body


_Run = Callable[..., Any]
"""Calls a function with arguments, and gives something to await for the result."""


async def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def check_transfer_coding(request: web.Request) -> None:
    """Raises `Problem` 501: the body is coded for the transfer in another way than in chunks (RFC 9112,
    6.1)."""
    lines = request.headers.getall("Transfer-Encoding", [])
    codings = [one.strip().lower() for one in ",".join(lines).split(",")]
    if any(one not in ("", "chunked") for one in codings):
        raise Problem(
            status=501,
            kind="unknown-encoding",
            detail="Transfer-Encoding may be chunked alone: Content-Encoding says how a body is packed.",
            headers={"Connection": "close"},
        )


def coding_of(request: web.Request) -> str:
    """The content coding of the body: gzip, zstd or identity. Raises `Problem` 415 for any other."""
    lines = request.headers.getall("Content-Encoding", [])
    if not lines:
        return "identity"
    codings = [one.strip().lower() for one in ",".join(lines).split(",")]
    codings = [one for one in codings if one not in ("", "identity")]
    if not codings:
        return "identity"
    coding = {"x-gzip": "gzip"}.get(codings[0], codings[0])
    if len(codings) > 1 or coding not in ("gzip", "zstd"):
        raise Problem(
            status=415,
            kind="unknown-encoding",
            detail=f"The body's Content-Encoding is none of {CODINGS}, each by itself.",
            headers={"Accept-Encoding": CODINGS},
        )
    return coding


def _unzstd_into(body: bytes, room: int) -> bytes | None:
    """Unpack into ``room`` bytes; None: it is more. Raises `Problem` 400 if the body is no zstd."""
    out: Any = np.empty(room, np.uint8)
    try:
        size = cramjam.zstd.decompress_into(body, out)
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):  # Rust's words for a buffer that is full
            return None
        raise _cannot_unpack("zstd") from None
    unpacked: bytes = out[:size].tobytes()
    return unpacked


def _cannot_unpack(coding: str) -> Problem:
    return invalid_body(f"The body is no whole {coding}, as its Content-Encoding says.")


def _too_large(detail: str) -> Problem:
    return Problem(status=413, kind="too-large", detail=detail)
