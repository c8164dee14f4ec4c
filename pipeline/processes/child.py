"""Starting, watching and stopping processes of our own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import pipeline
from pipeline.common import private

_PR_SET_PDEATHSIG: Final = 1


def command_line(module: str, *arguments: str) -> list[str]:
    """Run ``module`` like ``python -m``, but never one of the same name in the current folder (``-P``)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base``, with this very copy of the code first on the path: a checkout need not be installed."""
    assert pipeline.__file__ is not None
    root = str(Path(pipeline.__file__).resolve().parent.parent)
    rest = [part for part in base.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
    return {**base, "PYTHONPATH": os.pathsep.join([root, *rest])}


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For ``preexec_fn``: the kernel sends ``number`` to the child when we die, however we die (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: after the fork is too late for imports
    return lambda: prctl(_PR_SET_PDEATHSIG, int(number))


def start(command: list[str], *, env: Mapping[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that a Ctrl-C at the terminal does not reach it past us.

    Without a ``log`` it writes where we do.
    """
    with open(log, "ab", opener=private.opener) if log is not None else nullcontext() as opened:
        return subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=opened,
            start_new_session=True,
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )


def stop(process: subprocess.Popen[bytes], number: signal.Signals, *, timeout_s: float) -> int:
    """Ask the child to end, wait, kill it after ``timeout_s``; its exit code (-9 if it was killed)."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def tail(log: Path, *, lines: int = 15) -> str:
    """The last lines of a log, to be shown to a person."""
    try:
        with log.open("rb") as opened:
            opened.seek(max(0, log.stat().st_size - 16_384))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
