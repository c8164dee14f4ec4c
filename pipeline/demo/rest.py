"""What the demo asks its own API: JSON over HTTP on this machine, without any proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any, Final

BASE: Final = "/analytics/v1"
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> dict[str, Any]:
    """Get a JSON answer. Raises OSError if there is no answer, or if its status is not 2xx."""
    return _answer(urllib.request.Request(url))


def send(method: str, url: str, body: object) -> dict[str, Any]:
    """Send a JSON body; returns the JSON answer. Raises OSError as `get` does."""
    headers = {"Content-Type": "application/json"}
    return _answer(
        urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method=method)
    )


def _answer(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with _no_proxy.open(request, timeout=10) as answer:
            body: dict[str, Any] = json.loads(answer.read())
            return body
    except urllib.error.HTTPError as error:
        detail = error.read(300).decode("utf-8", "replace")
        raise OSError(f"status {error.code} {detail}") from None


def day(now: datetime) -> datetime:
    """The start of the UTC day."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def today() -> str:
    """The query parameters for this UTC day."""
    start = day(datetime.now(UTC))
    return between(start, start + timedelta(days=1))


def between(start: datetime, end: datetime) -> str:
    """The query parameters for a range of whole seconds in UTC."""
    return f"start={start:%Y-%m-%dT%H:%M:%SZ}&end={end:%Y-%m-%dT%H:%M:%SZ}"
