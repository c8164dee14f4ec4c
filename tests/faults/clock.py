"""The clock of one process, which jumps when a test says so: libfaketime reads the jump from a file.

Only the time of day jumps, as when somebody sets a host's clock. Programs wait by monotonic time, which does
not jump.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NOTICED_S = 1
"""A process notices a jump after at most this many seconds."""


class Clock:
    """The clock of all processes that have its ``env``. It is right until `set` is called."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.ahead_s = 0
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Put the clock some seconds ahead of the host's clock, or behind it if ``ahead_s`` is negative."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{ahead_s:+d}\n")
        part.replace(self._file)
        self.ahead_s = ahead_s

    def env(self) -> dict[str, str]:
        library = files("libfaketime") / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": str(NOTICED_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
