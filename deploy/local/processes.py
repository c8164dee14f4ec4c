"""Starts, finds and kills processes of servers, and touches no other process.

A process is known by its pid *and* its start time, so a recycled pid is never signalled.  The processes that
a server forks are found by walking down from its leader.  A process that daemonizes itself is found by a mark
in its environment.  The module reads /proc, so it works on Linux only.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MARK = "SPENDSTREAM_SERVER"
_children: dict[
    int, subprocess.Popen[bytes]
] = {}  # ours to reap; a Popen must not be forgotten while it runs


@dataclass(frozen=True, slots=True)
class Process:
    """A running process: `started` is the boot's id and the clock tick of its start."""

    pid: int
    started: str

    def alive(self) -> bool:
        if child := _children.get(self.pid):
            child.poll()
        return start_mark(self.pid) == self.started


def start_mark(pid: int) -> str | None:
    """The boot's id and the start of a process, which no other process with its pid ever has.

    None if the process is gone or a zombie.
    """
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else f"{_boot_id()}:{stat[19]}"


def spawn(argv: Sequence[str], *, env: dict[str, str], log: Path, cwd: Path, mark: str) -> "Spawned":
    """Start a process in a session of its own, which waits for `go()` before it runs the command.

    If `go()` never comes, the process ends with us and runs nothing.
    """
    gate = ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *argv]
    with log.open("ab") as out:
        child = subprocess.Popen(
            gate,
            env=env | {MARK: mark},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _children[child.pid] = child
    return Spawned(child)


class Spawned:
    """A process that waits at its gate, so that its pid can be written down before it does anything."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        started = start_mark(child.pid)
        assert started is not None, "a child waiting for its gate cannot be gone"
        self.process = Process(child.pid, started)
        self._gate = child.stdin

    def go(self) -> Process:
        assert self._gate is not None
        with self._gate as gate:
            gate.write(b"go\n")
        return self.process


def members(leader: Process | None, mark: str) -> list[int]:
    """Pids of a server, parents first: its leader, all descendants, and all processes with its mark."""
    tree: dict[int, list[int]] = {}
    marked = []
    needle = f"{MARK}={mark}".encode()
    for pid in _pids():
        if (stat := _stat(pid)) is None or stat[0] in "ZX":
            continue
        tree.setdefault(int(stat[1]), []).append(pid)
        if needle in _environ(pid):
            marked.append(pid)
    found: dict[int, None] = {}
    queue = ([leader.pid] if leader is not None and leader.alive() else []) + marked
    while queue:
        pid = queue.pop(0)
        if pid not in found:
            found[pid] = None
            queue.extend(tree.get(pid, []))
    return list(found)


def children(pid: int) -> list[int]:
    return [child for child in _pids() if (stat := _stat(child)) is not None and stat[1] == str(pid)]


def freeze(leader: Process | None, mark: str) -> list[int]:
    """Stop every member with SIGSTOP, also members that are forked meanwhile; returns their pids."""
    stopped: list[int] = []
    while new := [pid for pid in members(leader, mark) if pid not in stopped]:
        send(new, signal.SIGSTOP)
        stopped += new
    return stopped


def kill(leader: Process | None, mark: str) -> None:
    """Kill every member at one moment with SIGKILL, and wait until all are gone. All are stopped first."""
    while pids := freeze(leader, mark):
        send(pids, signal.SIGKILL)
        wait_until(lambda pids=pids: not any(map(start_mark, pids)), timeout_s=10)  # type: ignore[misc]


def send(pids: Iterable[int], what: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.02) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the command's name: state, parent, ..., [19] the start time."""
    if child := _children.get(pid):
        child.poll()
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
