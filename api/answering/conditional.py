"""The last step of an answer: an entity tag, 304 where the client has the answer, gzip where it is big.

The tag is weak and leaves out ``lagSeconds``, which grows with every second. So a client whose figures are
still right does not fetch them again. The tag is made from the answer itself, after the guard has let the
caller in. So the tag of another org's answer matches nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Final

from aiohttp import web
from isal import igzip

_LAG: Final = b'"lagSeconds":'
_TAG: Final = re.compile(r'(?:W/)?"[^"]*"')
GZIP_BYTES_MIN: Final = 8 * 1024
_INLINE_BYTES_MAX: Final = 512 * 1024
_LEVEL: Final = 1
"""ISA-L's default level: the result is smaller than that of zlib's level 1, in a fifth of the time."""


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
        tag = f'W/"{_digest(body)}"'
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


def _digest(body: bytes) -> str:
    """The digest of the body without its lags. A search is faster than a pattern on half a megabyte."""
    digest = hashlib.blake2b(digest_size=12)
    view = memoryview(body)
    end = 0
    while (start := body.find(_LAG, end)) >= 0:
        start += len(_LAG)
        digest.update(view[end:start])
        end = start
        while body[end] not in b",}":
            end += 1
    digest.update(view[end:])
    return digest.hexdigest()


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
    return igzip.compress(body, _LEVEL, mtime=0)
