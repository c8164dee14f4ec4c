"""The clock of one process, which jumps when a test says so: libfaketime, told by a file.

Only the time of day jumps, as when a host's clock is set; monotonic time, by which programs wait, does not.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NOTICED_S = 1
"""How long a process goes on with the time that it had."""


class Clock:
    """Of the processes that have its ``env``; right until it is set otherwise."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.ahead_s = 0
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Let it be so many seconds ahead of the host's clock from now on, or behind it if negative."""
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
