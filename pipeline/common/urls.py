"""Splitting URLs that may name several hosts.

Python's `urlsplit` refuses brackets behind another host, since 3.13.2 and in security releases of older
versions. So it refuses ``one,[::1]:5553``, which libpq and `RABBITMQ_URL` allow.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit


def split(text: str) -> SplitResult:
    """`urlsplit` for one or several hosts. Nothing is known of the hosts: `urlsplit` each one by itself."""
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#]*)(.*)", text, re.DOTALL)
    if found is None or "," not in found[2]:
        return urlsplit(text)
    return urlsplit(f"{found[1] or ''}//{found[3]}")._replace(netloc=found[2])


def authority(host: str, port: int) -> str:
    """A host and a port as they stand in a URL: ``127.0.0.1:8084``, ``[::1]:8084``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
