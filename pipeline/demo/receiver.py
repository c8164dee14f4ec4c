"""The demo's webhook receiver: takes what `spendstream alerts` sends, checks signatures, and says what came.

The check is that of Standard Webhooks 1.0: the HMAC of id, time and body under the secret of the webhook, and
a time that is at most five minutes off. A body that fails the check is refused, and nothing of it is shown.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from pipeline.common.texts import VISIBLE

BODY_BYTES_MAX: Final = 20_000
CLOCK_S_MAX: Final = 300
_REMEMBERED: Final = 1000
_SILENT_S: Final = 5.0
_PREFIX: Final = "whsec_"


class NotVerified(Exception):
    """The message does not come from whoever has the secret, or not now. The text says why."""


def verified(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> dict[str, Any]:
    """The message of a body, whose sender has the secret.

    Raises NotVerified.
    """
    name, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not name or not (sent.isascii() and sent.isdigit()):
        raise NotVerified("no webhook-id or webhook-timestamp")
    if abs(now_s - int(sent)) > CLOCK_S_MAX:
        raise NotVerified("the time of the message is more than five minutes off")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise NotVerified("the secret is not base64") from None
    wanted = base64.b64encode(hmac.digest(key, f"{name}.{sent}.".encode() + body, "sha256"))
    signatures = headers.get("webhook-signature", "").encode("utf-8", "replace").split()
    if not any(hmac.compare_digest(b"v1," + wanted, one) for one in signatures):
        raise NotVerified("no signature is right")
    try:
        message = json.loads(body)
    except ValueError:
        raise NotVerified("the body is not JSON") from None
    if not isinstance(message, dict):
        raise NotVerified("the body is not an object")
    return message


def told(message: Mapping[str, Any]) -> str:
    """A message in one line, which a terminal shows as it is: what it would obey is written as an escape.

    Example: ``1f0c33aa has reached 80 % of the budget "Today": $12.04 of $15.00, at 14:30 UTC; provisional``.
    """
    kind, about = message["type"], message["data"]
    org = about.get("orgName") or about["orgId"][:8]
    if kind == "webhook.test":
        return _visible(f"a test of the webhook of {org}")
    if "notice" in about:
        return _visible(_noticed(org, about["notice"]))
    alert = about["alert"]
    level = _amount(alert["metric"], alert["amount"]) if alert["percent"] is None else f"{alert['percent']} %"
    of_what = f'{level} of the budget "{alert["budgetName"]}"'
    if kind == "budget.resolved":
        why = "the budget was changed" if alert["resolvedBecause"] == "budget" else "the figure fell"
        return _visible(f"{org} is below {of_what} again: {why}")
    figure = _amount(alert["metric"], alert["spent" if alert["on"] == "actual" else "forecast"])
    forecast = "" if alert["on"] == "actual" else " forecast"
    certain = "final" if alert["final"] else "provisional"
    complete = f", complete to {_time(alert['watermark'], '%H:%M:%S')}" if alert["watermark"] else ""
    whole = _amount(alert["metric"], alert["budgetAmount"])
    return _visible(
        f"{org} has reached {of_what}: {figure}{forecast} of {whole},"
        f" at {_time(alert['crossedAt'], '%H:%M')} UTC; {certain}{complete}"
    )


def _noticed(org: str, notice: Mapping[str, Any]) -> str:
    """An hour of unusual spend, or a day."""
    hour, day = notice["unusualSpend"], notice["dailySummary"]
    if hour is not None:
        at, spent, usual = (
            _time(notice["periodStart"], "%H:%M"),
            _amount("cost", hour["spent"]),
            _amount("cost", hour["usual"]),
        )
        return f"{org} has spent {spent} in the hour from {at} UTC: about this time it was {usual} at most"
    spent = "an unknown amount" if day["cost"]["amount"] is None else _amount("cost", day["cost"]["amount"])
    return f"{org} has spent {spent} on {day['day']}, with {day['invocations']:,} requests"


def _amount(metric: str, text: str) -> str:
    return f"${Decimal(text):,.2f}" if metric == "cost" else f"{Decimal(text):,f} {metric}"


def _time(text: str, form: str) -> str:
    return f"{datetime.fromisoformat(text):{form}}"


def _visible(text: str) -> str:
    return text.translate(VISIBLE)


class Receiver:
    """An endpoint on a free port of this machine. ``tell`` gets a line for each message, in another thread.

    ``secret`` is that of the webhook. Without it, messages are put off: the sender tries them again.
    """

    def __init__(self, tell: Callable[[str], None], now_s: Callable[[], float] = time.time) -> None:
        self.secret: str | None = None
        self._tell = tell
        self._now_s = now_s
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where a webhook leads to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/alerts"

    def close(self) -> None:
        """Take no more messages."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, headers: Mapping[str, str], body: bytes) -> HTTPStatus:
        """Take one message. Returns the status of the answer."""
        if self.secret is None:
            return HTTPStatus.SERVICE_UNAVAILABLE
        try:
            message = verified(self.secret, headers, body, self._now_s())
            line = told(message)
        except NotVerified as error:
            self._tell(f"refused a message: {error}")
            return HTTPStatus.UNAUTHORIZED
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
            self._tell("refused a message that is signed well, but of an unknown form")
            return HTTPStatus.BAD_REQUEST
        name = headers.get("webhook-id", "")
        if name not in self._seen:  # a message may come twice
            self._seen[name] = None
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            self._tell(f"signature good: {line}")
        return HTTPStatus.NO_CONTENT

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self.take

        class Handler(BaseHTTPRequestHandler):
            timeout = _SILENT_S

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not (length.isascii() and length.isdigit()) or int(length) > BODY_BYTES_MAX:
                    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                else:
                    status = take(
                        {name.lower(): value for name, value in self.headers.items()},
                        self.rfile.read(int(length)),
                    )
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: what came is told by the receiver."""

        return Handler
