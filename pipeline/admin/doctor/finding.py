"""The finding of a check: its level, its text and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TIMEOUT_S: Final = 5
"""How long a dependency may take to answer."""


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. ``remedy`` says what an operator does; '' when there is nothing to do."""

    level: Level
    name: str
    detail: str
    remedy: str = ""


def first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
