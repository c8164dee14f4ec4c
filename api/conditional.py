"""The last step of an answer: a validator, 304 where the client has it, gzip where it is big.

The tag of an answer is weak: it leaves out ``lagSeconds``, which is another at each reading and follows from
the watermark, so that a client whose figures are still right need not fetch them again. It is made from the
answer itself, after the caller was let in: a tag of somebody else's answer matches nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from typing import Final

from aiohttp import web

_LAG: Final = re.compile(rb'"lagSeconds":[^,}]*')
_TAG: Final = re.compile(r'(?:W/)?"[^"]*"')
GZIP_BYTES_MIN: Final = 8 * 1024
_INLINE_BYTES_MAX: Final = 64 * 1024
_LEVEL: Final = 1
"""Most of the saving for a tenth of the time of the usual level."""


async def finished(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The answer as it goes out: itself, a 304, or compressed."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return response
    body = response.body
    if (
        response.status == 200
        and request.method in ("GET", "HEAD")
        and response.content_type == "application/json"
    ):
        tag = f'W/"{hashlib.blake2b(_LAG.sub(b"", body), digest_size=12).hexdigest()}"'
        response.headers["ETag"] = tag
        response.headers["Vary"] = "Accept-Encoding"
        if response.headers.get("Cache-Control") == "no-store":
            response.headers["Cache-Control"] = "private, no-cache"
        if _has(request, tag):
            kept = ("ETag", "Vary", "Cache-Control")
            return web.Response(
                status=304, headers={n: response.headers[n] for n in kept if n in response.headers}
            )
    if len(body) >= GZIP_BYTES_MIN and "Content-Encoding" not in response.headers and _takes_gzip(request):
        inline = len(body) <= _INLINE_BYTES_MAX
        packed = _gzip(body) if inline else await asyncio.to_thread(_gzip, body)
        response.body = packed
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
    return response


def _has(request: web.Request, tag: str) -> bool:
    given = ",".join(request.headers.getall("If-None-Match", []))
    if given.strip() == "*":
        return True
    return tag.removeprefix("W/") in (found.removeprefix("W/") for found in _TAG.findall(given))


def _takes_gzip(request: web.Request) -> bool:
    for part in ",".join(request.headers.getall("Accept-Encoding", [])).split(","):
        coding, _, weight = part.partition(";")
        if coding.strip().lower() == "gzip":
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight)
    return False


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, _LEVEL, mtime=0)
