"""Calls of endpoints: looks up names, bounds what an endpoint may send, and says what went wrong.

Whoever makes a webhook may own its name server and its endpoint, too. So a look-up has a thread of its own,
and no other work of the process waits for it. An answer is read up to `ANSWER_BYTES_MAX`, which bounds what
interim answers (100 Continue) and headers cost. The text of an error is ours: the texts of the libraries hold
the URL, which may have a secret in it, and what the endpoint has sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from api.webhooks.addresses import is_public
from pipeline.common.errors import ServiceError

ANSWER_BYTES_MAX: Final = 65_536
"""Of one connection, with the handshake of TLS, whose certificates take some thousand bytes."""
APART: ContextVar[bool] = ContextVar("APART", default=False)
"""Is the call of an endpoint that fails or is slow?"""
_ERROR_CHARS: Final = 200


class NoAddress(ServiceError, OSError):
    """A name leads nowhere. The text is ours, so people may read it.

    It is an ``OSError`` as well, because aiohttp expects that of a resolver.
    """


class Lookups:
    """Look-ups of names, each in a thread that ends by itself, at most ``most`` at once.

    A thread cannot be stopped. It outlives a call that has timed out until the resolver of the system gives
    up, often after 10 to 40 s. The threads are daemons, so the process need not wait for them when it stops.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: set[threading.Thread] = set()

    @property
    def free(self) -> int:
        """How many more may begin."""
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        return self._most - len(self._threads)

    async def addresses(self, host: str, port: int, family: int) -> list[Any]:
        """What ``getaddrinfo`` finds. Raises `OSError`."""
        if self.free <= 0:
            raise NoAddress(None, "too many names are looked up at once")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def end(addresses: list[Any] | None, error: Exception | None) -> None:
            if found.done():  # the call has timed out
                return
            if error is None:
                found.set_result(addresses or [])
            else:
                found.set_exception(error)

        def look() -> None:
            addresses, error = None, None
            try:
                addresses = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as failed:
                error = failed
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(end, addresses, error)

        thread = threading.Thread(target=look, name="webhook-lookup", daemon=True)
        thread.start()
        self._threads.add(thread)
        return await found


class PublicResolver(AbstractResolver):
    """Resolves a name once, and gives only the addresses that a webhook may lead to."""

    def __init__(self, working: Lookups, apart: Lookups, *, allow_private: bool) -> None:
        self._working = working
        self._apart = apart
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        lookups = self._apart if APART.get() else self._working
        addresses = [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, _, _, address in await lookups.addresses(host, port, family)
            if self._allow_private or is_public(str(address[0]))
        ]
        if not addresses:
            raise NoAddress(None, "the name leads to private addresses alone")
        return addresses

    async def close(self) -> None:
        """There is nothing to close."""


class BoundedSocket(socket.socket):
    """A socket that reads `ANSWER_BYTES_MAX` bytes and then fails with EMSGSIZE."""

    _left = ANSWER_BYTES_MAX

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read at most what is left."""
        found = super().recv(self._room(size), flags)
        self._left -= len(found)
        return found

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0, /) -> int:
        """Read at most what is left."""
        count = super().recv_into(buffer, self._room(size or len(buffer)), flags)
        self._left -= count
        return count

    def _room(self, size: int) -> int:
        if self._left <= 0:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
        return min(size, self._left)


def bounded_socket(address: Any) -> socket.socket:
    """A socket for an address that a name was resolved to."""
    family, kind, protocol, _, _ = address
    return BoundedSocket(family=family, type=kind, proto=protocol)


def said(error: Exception, url: str) -> str:
    """What went wrong, for the org and for the log: in our words, with no more of the URL than its host."""
    parts = urlsplit(url)
    return f"{parts.hostname}: {_why(error)}"[:_ERROR_CHARS]


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        found = error.certificate_error
        reason = (
            found.verify_message if isinstance(found, ssl.SSLCertVerificationError) else "it cannot be read"
        )
        return f"the certificate is not accepted: {reason}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _why_not_connected(error.os_error)
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the answer is not HTTP ({error.message.partition(':')[0].partition(chr(10))[0]})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    if isinstance(error, OSError):
        return _why_broken(error)
    if isinstance(error, ValueError):
        return "the URL cannot be called"
    return f"the call failed ({type(error).__name__})"


def _why_not_connected(error: OSError) -> str:
    if isinstance(error, NoAddress):
        return str(error.strerror)
    if isinstance(error, socket.gaierror):
        return (
            "no name server knows the name"
            if error.errno == socket.EAI_NONAME
            else "the name cannot be resolved"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    return f"nobody can connect ({_named(error)})"


def _why_broken(error: OSError) -> str:
    if error.errno == errno.EMSGSIZE:
        return f"the answer has more than {ANSWER_BYTES_MAX} bytes before its status and headers end"
    return f"the connection broke ({_named(error)})"


def _named(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__
