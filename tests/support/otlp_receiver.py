"""A receiver of traces by OTLP over HTTP (protobuf) or gRPC, which keeps what it gets. It can misbehave."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

_CONTENT_TYPE: Final = "application/x-protobuf"
_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Identity = tuple[Path, Path]
"""A certificate and its key, each in a file (PEM): the receiver then speaks TLS alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One span as it arrived; ids in hex, ``parent`` '' for the first span of a trace."""

    name: str
    kind: int
    trace: str
    span: str
    parent: str
    state: str
    failed: bool
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    links: tuple[str, ...]
    """The spans that it has links to."""

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


@dataclass(slots=True)
class Receiver:
    """What has arrived. ``answer`` gives the status of the next answer (HTTP), and may wait before."""

    url: str
    answer: Callable[[], int] = lambda: 200
    spans: list[Received] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    requests: int = 0

    def take(self, body: bytes, headers: Mapping[str, str]) -> int:
        self.requests += 1
        self.headers.append(headers)
        status = self.answer()
        if status == 200:
            self.spans += _spans(body)
        return status

    def named(self, name: str, service: str | None = None) -> list[Received]:
        return [one for one in list(self.spans) if one.name == name and service in (None, one.service)]

    def below(self, span: Received) -> list[Received]:
        """The spans whose parent this one is."""
        return [one for one in list(self.spans) if one.parent == span.span and one.trace == span.trace]


@contextmanager
def over_http(port: int = 0, *, identity: Identity | None = None) -> Iterator[Receiver]:
    """A receiver over HTTP, at ``url`` + ``/v1/traces``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            right = self.path == "/v1/traces" and self.headers["Content-Type"] == _CONTENT_TYPE
            given = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(body, given) if right else 404
            answer = trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
            try:
                self.send_response(status)
                self.send_header("Content-Type", _CONTENT_TYPE)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:
                return  # the exporter has given up

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*identity)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver = Receiver(f"http{'s' if identity else ''}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def over_grpc(*, identity: Identity | None = None) -> Iterator[Receiver]:
    """A receiver over gRPC."""
    import grpc

    def export(body: bytes, call: Any) -> bytes:
        receiver.take(body, dict(call.invocation_metadata()))
        return b""  # an ExportTraceServiceResponse without fields

    class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(export) if call.method == _METHOD else None

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Service(),))
    if identity is None:
        receiver = Receiver(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    else:
        certificate, key = (path.read_bytes() for path in identity)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        receiver = Receiver(f"https://127.0.0.1:{port}")
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=0).wait()


def _spans(body: bytes) -> Iterator[Received]:
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
    for group in request.resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Received(
                    name=span.name,
                    kind=span.kind,
                    trace=span.trace_id.hex(),
                    span=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    state=span.trace_state,
                    failed=span.status.code == 2,
                    attributes=_values(span.attributes),
                    resource=resource,
                    links=tuple(link.span_id.hex() for link in span.links),
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
