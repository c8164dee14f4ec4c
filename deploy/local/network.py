"""A network for a cluster: a bridge, and for each host on it a network namespace with an address of its own.

The whole network lies in namespaces of our own, which `enter` makes. So nothing of it is seen outside, two
clusters on one machine do not meet, and everything ends with the process that entered. Any pair of hosts can
be kept apart, and any host can be cut off from all others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Final

PREFIX: Final = "10.77.0"
"""The first three numbers of all addresses. We have the address with the number 1."""
_BRIDGE: Final = "cluster"
_NOBODY: Final = "02:00:00:00:00:fe"
"""A hardware address that no host has: what is sent there is lost, and the sender hears nothing."""
_ENTERED: Final = "SPENDSTREAM_OWN_NETWORK"
_OURS: Final = ("unshare", "--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
NETWORKS: Final = Path("/run/netns")
_OWN_NAMES: Final = f"mkdir -p {NETWORKS}; mount -t tmpfs tmpfs {NETWORKS}"
"""`ip` keeps the names of network namespaces as files here. They must not be seen outside."""


def impossible() -> str | None:
    """The reason why a network cannot be made here, or None. The function tries to make a small one."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a cluster needs Linux and root, for a network of its own"
    if shutil.which("ip") is None:
        return "a cluster needs the command `ip` (Debian: apt-get install iproute2)"
    tried = subprocess.run(
        [*_OURS, "sh", "-ec", f"{_OWN_NAMES}; ip netns add try; ip link add name try type bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"a network cannot be made here: {tried.stderr.strip()}" if tried.returncode else None


def entered() -> bool:
    """Are we in namespaces that `enter` made?"""
    return _ENTERED in os.environ


def enter(argv: Sequence[str]) -> None:
    """Run this command in our place, in namespaces of its own: network, mounts and processes.

    All processes in there end with the command, also by SIGKILL. Raises RuntimeError if it is not possible.
    """
    if reason := impossible():
        raise RuntimeError(reason)
    os.environ[_ENTERED] = "1"
    sys.stdout.flush()
    os.execvp(_OURS[0], (*_OURS, *argv))


def inside(namespace: str | None) -> tuple[str, ...]:
    """The beginning of a command line that runs in a network namespace; None: in ours."""
    return () if namespace is None else ("nsenter", f"--net={NETWORKS / namespace}")


class Network:
    """The bridge, and the hosts on it. Raises RuntimeError if a command fails."""

    def __init__(self) -> None:
        assert entered(), "a network is made in namespaces of its own"
        self._numbers: dict[str, int] = {}
        self._apart: set[tuple[str, str]] = set()
        self._cut_off: set[str] = set()
        subprocess.run(("sh", "-ec", _OWN_NAMES), check=True)
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "name", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{PREFIX}.1/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")

    def add(self, host: str, number: int) -> str:
        """Add a host with a namespace of its name; returns its address. Names have at most 13 letters."""
        _ip("netns", "add", host)
        _ip("link", "add", "name", f"v-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
        _ip("link", "set", f"v-{host}", "master", _BRIDGE, "up")
        address = f"{PREFIX}.{number}"
        _ip("-n", host, "link", "set", "lo", "up")
        _ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", host, "link", "set", "eth0", "up")
        self._numbers[host] = number
        return address

    def keep_apart(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Lose every packet between these two groups of hosts. We ourselves still reach all of them."""
        for one, other in product(some, others):
            for here, there in ((one, other), (other, one)):
                address = f"{PREFIX}.{self._numbers[there]}"
                neighbour = (address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
                _ip("-n", here, "neigh", "replace", *neighbour)
                self._apart.add((here, address))

    def cut_off(self, host: str) -> None:
        """Lose every packet between a host and all others, and us."""
        _ip("link", "set", f"v-{host}", "down")
        self._cut_off.add(host)

    def mend(self) -> None:
        """Undo `keep_apart` and `cut_off`."""
        while self._apart:
            here, address = self._apart.pop()
            _ip("-n", here, "neigh", "del", address, "dev", "eth0")
        while self._cut_off:
            _ip("link", "set", f"v-{self._cut_off.pop()}", "up")


def _ip(*argv: str) -> None:
    done = subprocess.run(("ip", *argv), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(argv)} failed: {done.stderr.strip()}")
