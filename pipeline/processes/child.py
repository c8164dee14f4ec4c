"""Child processes: starting one, stopping it, and showing the end of its log."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from pwd import struct_passwd
from typing import Final

import pipeline
from pipeline.common import private

_PR_SET_PDEATHSIG: Final = 1


def command_line(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` like ``python -m``.

    With ``-P``, a module of the same name in the current folder is not taken.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment ``base`` with this copy of the code first on the path, so it need not be installed."""
    assert pipeline.__file__ is not None
    root = str(Path(pipeline.__file__).resolve().parent.parent)
    rest = [part for part in base.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
    return {**base, "PYTHONPATH": os.pathsep.join([root, *rest])}


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A ``preexec_fn`` after which the kernel sends ``number`` to the child when we die (Linux only).

    The signal comes after any kind of death, also after SIGKILL.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up now, since a fork must not import
    return lambda: prctl(_PR_SET_PDEATHSIG, int(number))


class Child:
    """A child process in a session of its own, with its log. The kernel ends the child when we end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path | None = None,
        ends_by: signal.Signals = signal.SIGTERM,
        cwd: str | None = None,
        account: struct_passwd | None = None,
    ) -> None:
        """Start the child. It appends to ``log``. Without a log it writes to our own outputs.

        ``ends_by`` is the signal that asks the child to end. ``account`` owns the process, if it is not ours.
        The child has a session of its own, so that a Ctrl-C at the terminal reaches us alone, and we end the
        children in our order.

        Raises:
            OSError: the command cannot be run.
        """
        self._ends_by = ends_by
        self._log = log
        with open(log, "ab", opener=private.opener) if log is not None else nullcontext() as opened:
            self._process = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=opened,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                start_new_session=True,
                preexec_fn=dies_with_parent(ends_by),
            )
        self.pid = self._process.pid

    @classmethod
    def of_ours(cls, module: str, *arguments: str, env: Mapping[str, str], log: Path | None = None) -> Child:
        """Start a module of this copy of the code: see `command_line` and `environment`."""
        return cls(command_line(module, *arguments), env=environment(env), log=log)

    def exit_code(self) -> int | None:
        """The exit code. None while the child runs, and below 0 after a signal."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Send the signal that asks the child to end, if the child runs."""
        if self._process.poll() is None:
            self._process.send_signal(self._ends_by)

    def stop(self, *, timeout_s: float) -> int:
        """Ask the child to end, and kill it after ``timeout_s``; returns its exit code (-9 if killed)."""
        self.ask_to_end()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Kill the child if it runs, and wait for its end; returns its exit code."""
        self._process.kill()
        return self._process.wait()

    def wait(self) -> int:
        """Wait for the child's end; returns its exit code."""
        return self._process.wait()

    def wait_usage(self) -> tuple[int, float]:
        """Wait for the child's end; returns its exit code, and the CPU seconds of its whole life."""
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_utime + usage.ru_stime

    def tail(self) -> str:
        """The last lines of the child's log, for a person to read."""
        return "(no log)" if self._log is None else tail(self._log)


def tail(log: Path, *, lines: int = 15) -> str:
    """The last lines of a log, for a person to read."""
    try:
        with log.open("rb") as opened:
            opened.seek(max(0, log.stat().st_size - 16_384))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
