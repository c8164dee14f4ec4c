"""The browsable page of the contract: one file, which reads openapi.json and nothing else.

The page's content policy names its own script and style by their hashes. So the browser runs nothing else,
and connects to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from aiohttp import web


async def page(request: web.Request) -> web.Response:
    """The page with its content policy."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(text=text, content_type="text/html", headers=headers)


@cache
def _page() -> tuple[str, str]:
    text = files(__package__).joinpath("docs.html").read_text("utf-8")
    sources = {
        name: " ".join(
            f"'sha256-{_hash(part)}'" for part in re.findall(rf"<{name}>(.*?)</{name}>", text, re.S)
        )
        for name in ("style", "script")
    }
    policy = (
        f"default-src 'none'; style-src {sources['style']}; script-src {sources['script']};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(part: str) -> str:
    return base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
