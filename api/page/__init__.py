"""The page: static files that ask the API of the same server, and nobody else.

There is no build step: the browser loads the modules as they lie in this folder. The content policy allows
scripts, styles, images and requests of this server alone, without exception. A file is read once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import web

from pipeline.common import problems

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_INDEX: Final = "index.html"


@dataclass(frozen=True, slots=True)
class File:
    """One file of the page. ``tag`` is made from its content."""

    body: bytes
    media_type: str
    tag: str


@cache
def contents() -> dict[str, File]:
    """Every file that the page is made of, by its name below ``app/``."""
    found = {}
    page = files(__package__)
    for entry in (*page.iterdir(), *page.joinpath("vendor").iterdir()):
        media_type = MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type and entry.is_file():
            body = entry.read_bytes()
            tag = hashlib.blake2b(body, digest_size=12).hexdigest()
            found[entry.name] = File(body, media_type, f'W/"{tag}"')
    return found


async def root(request: web.Request) -> web.Response:
    """Lead from the server's address to the page. The link is relative, so a proxy's prefix stays."""
    return web.Response(status=302, headers={"Location": "analytics/v1/app/"})


async def bare(request: web.Request) -> web.Response:
    """Lead to the address with the slash, which the links of the page hang on."""
    return web.Response(status=302, headers={"Location": "app/"})


async def index(request: web.Request) -> web.Response:
    """The page itself."""
    return _answer(request, _INDEX)


async def file(request: web.Request) -> web.Response:
    """A file of the page. Raises `Problem` 404 for any other name."""
    return _answer(request, request.match_info["file"])


def _answer(request: web.Request, name: str) -> web.Response:
    found = contents().get(name)
    if found is None:
        raise problems.not_found("The page has no such file.")
    # The browser asks each time whether the file is still the same, so an upgrade is seen at once.
    headers = {**_HEADERS, "ETag": found.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("If-None-Match") == found.tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.body, content_type=found.media_type, charset="utf-8", headers=headers)
