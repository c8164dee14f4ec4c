"""Calls of endpoints that do harm: by their name servers, their answers, and what their errors would say."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from api.alerts.calls import ANSWER_BYTES_MAX, Lookups, PublicResolver, bounded_socket
from api.alerts.deliver import SENDS_MAX, Outcome, Sender, _Claimed
from api.alerts.metrics import Metrics
from api.config import DatabaseConfig, WebhookConfig
from api.reading.database import Database
from api.webhooks.sealed import Endpoint, Sealer, Secret, new_secret

KEY = "a key of webhooks with 32 characters"
SECRET = "s3cr3t"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], Any]


@asynccontextmanager
async def endpoint(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """An endpoint that reads a request and answers with bytes; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            taken = await reader.read(65_536)
            while not (
                taken.startswith(b"\x16") or taken.endswith(b"{}")
            ):  # the greeting of TLS, or a request
                taken += await reader.read(65_536)
            await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def attempt(url: str, *, allow_private: bool = True) -> Outcome:
    """What comes of one attempt to send to a URL."""
    database = Database(DatabaseConfig(url="postgresql://127.0.0.1:1/none"))
    config = WebhookConfig(keys=(KEY,), allow_private=allow_private, timeout_s=5.0)
    sender = Sender(database, config, Metrics(CollectorRegistry()))
    webhook_id = uuid.uuid4()
    sealed = Sealer([KEY]).seal(webhook_id, Endpoint(url=url, secrets=(Secret(text=new_secret()),)))
    async with sender.session() as session:
        return await sender._attempt(
            session, _Claimed(uuid.uuid4(), webhook_id, uuid.UUID(int=1), "{}", 1, sealed)
        )


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - threads tell no event
            await asyncio.sleep(0.01)


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Names with ``slow`` in them are looked up until the event is set, or the test ends."""
    ended, look = threading.Event(), socket.getaddrinfo

    def looked(host: Any, *more: Any, **given: Any) -> Any:
        if "slow" in str(host):
            ended.wait()
        return look(host, *more, **given)

    monkeypatch.setattr(socket, "getaddrinfo", looked)
    yield ended
    ended.set()


async def test_names_that_are_looked_up_slowly_hold_up_neither_others_nor_the_database(
    slow_names: threading.Event,
) -> None:
    lookups = Lookups(2 * SENDS_MAX)
    resolver = PublicResolver(lookups, Lookups(1), allow_private=True)
    waiting = [
        asyncio.create_task(resolver.resolve(f"slow{number}.example", 1)) for number in range(SENDS_MAX)
    ]
    try:
        await until(lambda: lookups.free <= SENDS_MAX)
        async with asyncio.timeout(10):
            assert [one["host"] for one in await resolver.resolve("127.0.0.1", 1)] == ["127.0.0.1"]
            # psycopg connects by the loop's own look-ups.
            assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert lookups.free <= SENDS_MAX  # a thread outlives its call, and is counted until it ends
    finally:
        slow_names.set()


async def test_look_ups_are_bounded_and_a_thread_that_ends_gives_its_place_back(
    slow_names: threading.Event,
) -> None:
    lookups = Lookups(1)
    waiting = asyncio.create_task(lookups.addresses("slow", 1, 0))
    await until(lambda: not lookups.free)
    with pytest.raises(OSError, match="at once"):
        await lookups.addresses("127.0.0.1", 1, 0)
    waiting.cancel()
    other = Lookups(1)
    for _ in range(3):
        assert await other.addresses("127.0.0.1", 1, 0)
        await until(lambda: other.free == 1)


async def test_a_name_is_resolved_once_and_that_address_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rebinding(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    resolver = PublicResolver(Lookups(2), Lookups(1), allow_private=False)
    assert [one["host"] for one in await resolver.resolve("a.example", 443)] == ["93.184.216.34"]
    with pytest.raises(OSError, match="private"):
        await resolver.resolve("a.example", 443)


async def test_an_endpoint_that_goes_on_and_on_before_its_status_is_cut_off() -> None:
    sent = 0

    async def forever(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(CONTINUE * 100)
            sent += 100 * len(CONTINUE)
            await writer.drain()

    async with endpoint(forever) as port:
        outcome = await attempt(f"http://127.0.0.1:{port}/")
    assert outcome.status is None
    assert f"more than {ANSWER_BYTES_MAX} bytes" in str(outcome.error)
    assert sent < 100 * ANSWER_BYTES_MAX  # what the buffers of the kernel hold


async def test_a_few_interim_answers_and_a_large_body_do_no_harm() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(CONTINUE * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 9_999_999)

    async with endpoint(answer) as port:
        assert await attempt(f"http://127.0.0.1:{port}/") == Outcome(status=200)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server on 127.0.0.1, whose certificate is its own, and of a client that takes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an endpoint")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_a_certificate_that_is_not_accepted_is_said(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with endpoint(answer, tls[0]) as port:
        outcome = await attempt(f"https://127.0.0.1:{port}/{SECRET}")
    assert outcome.error == "127.0.0.1: the certificate is not accepted: self-signed certificate"


async def test_the_bound_holds_below_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 10 * ANSWER_BYTES_MAX)

    async with endpoint(answer, tls[0]) as port:
        sock = bounded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", None))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls[1], server_hostname="127.0.0.1")
        writer.write(b"{}")
        assert len(await reader.readexactly(ANSWER_BYTES_MAX // 2)) == ANSWER_BYTES_MAX // 2
        with pytest.raises(OSError, match="too long"):
            await reader.readexactly(ANSWER_BYTES_MAX // 2)
        writer.close()


@pytest.mark.parametrize(
    "path",
    [
        f"/{SECRET}",
        f"?{SECRET}",
        f"/%7e{SECRET}/../{SECRET}",
        f"/a/./{SECRET}%2f?x={SECRET}%20%41",
        f"?a=%c3%a9&token={SECRET}&&",
    ],
)
async def test_no_error_says_more_of_the_url_than_its_host(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def bytes_of(answer: bytes) -> Answer:
        async def write(writer: asyncio.StreamWriter) -> None:
            writer.write(answer)

        return write

    errors = []
    for answer in (b"", b"BANNER\r\n\r\n", b"HTTP/1.1 200 OK\r\nX\x00: BANNER\r\n\r\n", CONTINUE):
        async with endpoint(bytes_of(answer)) as port:
            errors.append((await attempt(f"http://127.0.0.1:{port}{path}")).error)
            errors.append((await attempt(f"https://127.0.0.1:{port}{path}")).error)
    for host in ("127.0.0.1:1", "no-such-host.invalid", "a..b", "127.1", "localhost:0"):
        errors.append((await attempt(f"http://{host}{path}")).error)
    assert len(errors) == 13
    for error in errors:
        assert error
        assert SECRET not in error
        assert "BANNER" not in error
    assert SECRET not in caplog.text
    assert "127.0.0.1: nobody can connect (Connection refused)" in errors
    assert "no-such-host.invalid: no name server knows the name" in errors
    assert "127.0.0.1: the connection ended without an answer" in errors
    assert "127.0.0.1: the answer is not HTTP (Bad status line)" in errors
