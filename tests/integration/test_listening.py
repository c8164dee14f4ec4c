"""Listening at several addresses: one process serves IPv4 and IPv6 on one port, or names a wrong address."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from pipeline.common import http, listening
from pipeline.common.listening import CannotListen, bound, listen
from tests.conftest import missing

ABSENT = "2001:db8::1"
"""An address that no host has: it is kept for documentation."""
BOTH = ("127.0.0.1", "::1")


@pytest.fixture(autouse=True)
def ipv6() -> None:
    try:
        with closing(socket.socket(socket.AF_INET6)) as one:
            one.bind(("::1", 0))
    except OSError as reason:
        missing(f"this host has no IPv6: {reason}")


async def served_at(addresses: list[str]) -> list[str]:
    async with ClientSession() as session:
        return [await (await session.get(f"http://{address}/")).text() for address in addresses]


async def runner() -> web.AppRunner:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(request.remote))

    app = web.Application()
    app.router.add_get("/", answer)
    found = http.Runner(app)
    await found.setup()
    return found


@pytest.mark.parametrize("hosts", [BOTH, ("::1", "127.0.0.1"), ("127.0.0.1", "::1", "localhost")])
async def test_both_families_are_served_on_one_free_port(hosts: tuple[str, ...]) -> None:
    serving = await runner()
    addresses = await listen(serving, hosts, 0)
    assert sorted(await served_at(addresses)) == sorted(BOTH)
    assert len({address.rpartition(":")[2] for address in addresses}) == 1
    await serving.cleanup()


@contextmanager
def taken(host: str, port: int = 0) -> Iterator[int]:
    """A port that somebody else listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.create_server((host, port), family=family)) as one:
        yield one.getsockname()[1]


def is_free(host: str, port: int) -> bool:
    try:
        with taken(host, port):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", BOTH)
async def test_a_port_that_is_taken_at_one_address_is_named_and_taken_at_none(host: str) -> None:
    serving = await runner()
    (other,) = set(BOTH) - {host}
    with taken(host) as port:
        with pytest.raises(CannotListen) as caught:
            await listen(serving, (other, host), port)
        shown = f"[{host}]" if ":" in host else host
        assert caught.value.strerror == f"cannot listen on {shown}:{port}: Address already in use"
        assert is_free(other, port)
    await serving.cleanup()


async def test_a_port_that_somebody_else_bound_and_listens_on_first_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (ours,) = bound(("127.0.0.1",), 0)
    (theirs,) = bound(
        ("127.0.0.1",), ours.getsockname()[1]
    )  # two sockets may be bound alike until one listens
    monkeypatch.setattr(listening, "bound", lambda *_: [ours])
    with closing(theirs):
        theirs.listen()
        serving = await runner()
        with pytest.raises(CannotListen, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
            await listen(serving, ("127.0.0.1",), 0)
        await serving.cleanup()


def test_a_free_port_that_is_taken_at_the_next_address_is_left_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    bind = listening._bound

    def unlucky_twice(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
        if family is socket.AF_INET6:
            asked.append(address[1])
            if len(asked) <= 2:
                raise OSError(errno.EADDRINUSE, "Address already in use")
        return bind(family, address)

    monkeypatch.setattr(listening, "_bound", unlucky_twice)
    sockets = bound(BOTH, 0)
    assert [one.getsockname()[1] for one in sockets] == [asked[2]] * 2
    for one in sockets:
        one.close()
    assert is_free("127.0.0.1", asked[0])


@pytest.mark.parametrize("hosts", [("::",), ("::", "0.0.0.0"), ("0.0.0.0", "::")])
def test_every_address_of_ipv6_is_every_address_of_ipv4_too(hosts: tuple[str, ...]) -> None:
    sockets = bound(hosts, 0)  # they are bound alone: nobody can reach them
    assert {one.getsockname()[0] for one in sockets} == {"::", "0.0.0.0"}
    assert len(sockets) == len({one.family for one in sockets}) == 2
    for one in sockets:
        one.close()


def test_every_address_of_ipv4_is_none_of_ipv6() -> None:
    (one,) = bound(("0.0.0.0",), 0)
    assert one.family is socket.AF_INET
    one.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        (ABSENT, f"cannot listen on [{ABSENT}]:{{}}: this host has no such address, or no IPv6 at all"),
        ("192.0.2.1", "cannot listen on 192.0.2.1:{}: this host has no such address"),
    ],
)
def test_an_address_that_the_host_lacks_is_named(host: str, why: str) -> None:
    with pytest.raises(CannotListen) as caught, taken("::1") as port:
        bound(("127.0.0.1", host), port)
    assert caught.value.strerror == why.format(port)


def test_a_host_name_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(CannotListen) as caught:
        bound(("api.example",), 0)
    assert caught.value.strerror == (
        "cannot listen on api.example: this host name leads to no address (Name or service not known)"
    )


def test_a_host_without_ipv6_says_so_for_an_address_and_passes_over_it_for_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = listening._bound

    def without(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
        if family is socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind(family, address)

    monkeypatch.setattr(listening, "_bound", without)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *_, **__: [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, 0, 0, "", (one, 0))
            for one in (BOTH if host == "localhost" else (host,))
        ],
    )
    with pytest.raises(CannotListen, match=r"\[::1\]:\d+: this host has no such address, or no IPv6 at all"):
        bound(BOTH, 0)
    (one,) = bound(("localhost",), 0)
    assert one.getsockname()[0] == "127.0.0.1"
    one.close()


# --- processes ----------------------------------------------------------------------------------------


NOWHERE = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "RABBITMQ_URL": "embedded:///nonexistent/folder",
    "PATH": os.environ["PATH"],
    "HTTP_PORT": "0",
    "METRICS_PORT": "0",
}


@contextmanager
def process(command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", command],
        env={**NOWHERE, **environment},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def lines(child: subprocess.Popen[str], event: str) -> Iterator[dict[str, Any]]:
    assert child.stderr is not None
    for text in child.stderr:
        line = json.loads(text)
        if line["event"] == event:
            yield line


def asked(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def test_the_api_serves_both_families_on_one_port_and_open_to_all_on_loopback_alone() -> None:
    with process("api", HTTP_HOST="127.0.0.1,::1") as child:
        line = next(lines(child, "listening"))
        assert line["addresses"] == [f"127.0.0.1:{line['port']}", f"[::1]:{line['port']}"]
        for address in line["addresses"]:
            assert asked(f"http://{address}/analytics/v1/status/healthz") == "OK"


def test_the_worker_shows_its_page_in_both_families() -> None:
    with process("worker", METRICS_HOST="127.0.0.1,::1") as child:
        shown = lines(child, "page_listening")
        urls = [next(shown)["url"] for _ in BOTH]
        assert [url.partition("//")[2].rpartition(":")[0] for url in urls] == ["127.0.0.1", "[::1]"]
        assert all("python_info" in asked(url) or "analytics_" in asked(url) for url in urls)


def test_an_exporter_shows_its_page_in_both_families_and_is_not_ready_without_a_database() -> None:
    files = {"EXPORT_DIR": "/nonexistent/folder", "EXPORT_METRICS_PORT": "0"}
    with process("exporter", METRICS_HOST="127.0.0.1,::1", **files) as child:
        addresses = next(lines(child, "page_listening"))["addresses"]
        assert [address.rpartition(":")[0] for address in addresses] == ["127.0.0.1", "[::1]"]
        for address in addresses:
            assert asked(f"http://{address}/healthz") == "OK"
            assert 'analytics_export_attempts_total{outcome="failed"} 0.0' in asked(
                f"http://{address}/metrics"
            )
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(f"http://{addresses[0]}/readyz")
        body = json.load(refused.value)
        assert (refused.value.code, body["status"]) == (503, "unavailable")
        assert "127.0.0.1" not in str(body), "the page names no server"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_the_alerts_process_shows_its_page_in_both_families_and_is_not_ready_without_a_database() -> None:
    with process("alerts", METRICS_HOST="127.0.0.1,::1", ALERTS_METRICS_PORT="0") as child:
        shown = lines(child, "page_listening")
        addresses = next(shown)["addresses"]
        assert [address.rpartition(":")[0] for address in addresses] == ["127.0.0.1", "[::1]"]
        for address in addresses:
            assert asked(f"http://{address}/healthz") == "OK"
            page = asked(f"http://{address}/metrics")
            for metric in ('budget_alerts_total{kind="raised"}', 'notices_total{kind="unusual"}'):
                assert f"analytics_{metric} 0.0" in page
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(f"http://{addresses[0]}/readyz")
        body = json.load(refused.value)
        assert (refused.value.code, body["status"]) == (503, "unavailable")
        assert "127.0.0.1" not in str(body), "the page names no server"
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_an_exporter_without_the_setting_shows_no_page() -> None:
    with process("exporter", EXPORT_DIR="/nonexistent/folder") as child:
        next(lines(child, "exporter_waits"))
        child.send_signal(signal.SIGTERM)
        assert child.stderr is not None
        rest = child.stderr.read()
        assert child.wait(60) == 0
    assert "page_listening" not in rest


def test_a_process_ends_with_the_name_of_the_address_that_it_cannot_have() -> None:
    exports = {"EXPORT_DIR": "/nonexistent/folder", "EXPORT_METRICS_PORT": "0", "ALERTS_METRICS_PORT": "0"}
    for command in ("api", "worker", "exporter", "alerts"):
        addresses = {"HTTP_HOST": f"::1,{ABSENT}", "METRICS_HOST": f"::1,{ABSENT}", "AUTH_MODE": "gateway"}
        with process(command, **addresses, **exports) as child:
            _, errors = child.communicate(timeout=120)
        assert child.returncode == 1
        assert f"cannot listen on [{ABSENT}]:" in errors
        assert "Traceback" not in errors
