"""Listening at several addresses with one port: one process serves IPv4 and IPv6.

Each address has a socket of its own, and a socket of IPv6 takes IPv6 alone. So a caller by IPv4 has an
address of IPv4 in every log and for every rule, and ``0.0.0.0`` beside ``::`` is no conflict. ``::`` without
``0.0.0.0`` stands for both, because whoever writes it means every address.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from aiohttp import web

from pipeline.common.urls import authority

_EVERY_IPV4: Final = "0.0.0.0"
_EVERY_IPV6: Final = "::"
_TRIES: Final = 20
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class CannotListen(OSError):
    """A server cannot listen at an address. ``strerror`` names the address, and says why."""


async def listen(runner: web.AppRunner, hosts: Sequence[str], port: int) -> list[str]:
    """Serve at each of ``hosts``, all with the same port; 0 takes one that is free at all of them.

    Returns the addresses with the port, as they stand in a URL: ``127.0.0.1:8084``, ``[::1]:8084``.

    Raises:
        CannotListen: an address is taken, or this host does not have it.
    """
    with ExitStack() as unserved:
        sockets = bound(hosts, port)
        for one in sockets:
            unserved.callback(one.close)
        for one in sockets:
            try:
                await web.SockSite(runner, one).start()
            except (
                OSError
            ) as error:  # another process bound the same port at the same time, and listens first
                host, port = one.getsockname()[:2]
                raise _cannot(host, port, error) from error
        unserved.pop_all()  # they are the runner's now
    return [authority(*one.getsockname()[:2]) for one in sockets]


def bound(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """A socket for each address of ``hosts``, bound to the same port. Raises `CannotListen`."""
    if _EVERY_IPV6 in hosts and _EVERY_IPV4 not in hosts:
        hosts = (*hosts, _EVERY_IPV4)
    for _ in range(_TRIES - 1):
        try:
            return _all_bound(hosts, port)
        except CannotListen as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
            # The port that was free at the first address is taken at another one: try the next free port.
    return _all_bound(hosts, port)


def _all_bound(hosts: Sequence[str], port: int) -> list[socket.socket]:
    found: dict[tuple[Any, ...], socket.socket] = {}
    with ExitStack() as unused:
        for host in hosts:
            absent: OSError | None = None
            there = False
            for family, address in _addresses(host):
                try:
                    if (family, address) not in found:
                        one = found[family, address] = _bound(family, (address[0], port, *address[2:]))
                        unused.callback(one.close)
                        port = port or one.getsockname()[1]
                    there = True
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise _cannot(host, port, error) from error
                    absent = error  # a name may have an address that this host lacks, beside one that it has
            if not there:
                raise _cannot(host, port, absent or OSError(errno.EADDRNOTAVAIL, "")) from absent
        unused.pop_all()
    return list(found.values())


def _addresses(host: str) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        text = f"cannot listen on {host}: this host name leads to no address ({error.strerror})"
        raise CannotListen(error.errno, text) from error
    return [(family, address) for family, _, _, _, address in found]


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one


def _cannot(host: str, port: int, error: OSError) -> CannotListen:
    why = error.strerror or str(error)
    if error.errno in _ABSENT:
        why = "this host has no such address" + (", or no IPv6 at all" if ":" in host else "")
    return CannotListen(error.errno, f"cannot listen on {authority(host, port)}: {why}")
