"""Catches the log of this process, so that a test can read it."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from pipeline.common import logs

KEY = "ssk_0123456789ab_NEVER-IN-A-LOG-0123456789abcdefghijklmnopq"
"""A key of a caller, which no log may show."""


class Written:
    """The lines that this process has written to its log."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@contextmanager
def written_log() -> Iterator[Written]:
    """Set the log up as `logs.configure` does, at level debug and with two secrets; yields its lines."""
    found = Written()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    with redirect_stderr(found.stream):
        logs.configure("debug", "tested", secrets=("the whole secret", 'pass"word'))
        yield found
    root.handlers[:] = before
    root.setLevel(level)
