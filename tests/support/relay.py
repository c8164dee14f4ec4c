"""A relay between senders and a collector: keeps what they sent, loses answers, and sends all of it again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from multidict import CIMultiDict

from tests.support.collectors import Collector

LOSING = "/losing"
"""Below this path, the sender of the first request gets a 503 in place of the collector's answer."""
NOT_PASSED_ON = frozenset({"host", "content-length", "connection", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: bytes


class Relay:
    """Passes requests on to a collector, from a port of its own."""

    def __init__(self, collector: Collector) -> None:
        self.sent: list[Request] = []
        """Every request, in the order in which they came: also those that a sender tried again."""
        self.statuses: list[int] = []
        """What the collector answered to them, whatever the sender got."""
        self.answers: list[bytes] = []
        """The bodies of these answers."""
        self.lost: set[str] = set()
        """The paths where an answer was lost."""
        self._collector = collector
        self._lock = threading.Lock()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                passed_on = CIMultiDict(
                    (name, value) for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON
                )
                status, headers, answer = relay.pass_on(
                    Request(self.path.removeprefix(LOSING), passed_on, body),
                    is_losing=self.path.startswith(LOSING),
                )
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in {*NOT_PASSED_ON, "date", "server"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def send_again(self) -> list[int]:
        """Send all requests again, as they were; the collector's statuses."""
        return [self._forward(request)[0] for request in list(self.sent)]

    def pass_on(self, request: Request, *, is_losing: bool = False) -> tuple[int, Mapping[str, str], bytes]:
        """Pass a request on, and keep it; what its sender gets."""
        status, headers, answer = self._forward(request)
        with self._lock:
            self.sent.append(request)
            self.statuses.append(status)
            self.answers.append(answer)
            if is_losing and request.path not in self.lost:
                self.lost.add(request.path)
                return 503, {"Retry-After": "0"}, b""
        return status, headers, answer

    def _forward(self, request: Request) -> tuple[int, Mapping[str, str], bytes]:
        return self._collector.request("POST", request.path, request.body, **request.headers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
