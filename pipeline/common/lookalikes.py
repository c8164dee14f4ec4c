"""Variables that resemble a setting and are none: a slip would else leave the default, without a word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.common.settings import SETTINGS

log = logging.getLogger(__name__)

_PREFIX: Final = "SPENDSTREAM_"
_SHORT_NAME_CHARS: Final = 9
_TRIED_CHARS_MAX: Final = 64
"""No name of ours is nearly as long: what is longer costs nothing."""


@dataclass(frozen=True, slots=True)
class Lookalike:
    """``variable`` is in the environment and nothing reads it; ``setting`` is what was probably meant."""

    variable: str
    setting: str

    def __str__(self) -> str:
        return f"{self.variable} is not a setting and changes nothing: did you mean {self.setting}?"


def find(environment: Mapping[str, str]) -> list[Lookalike]:
    """Variables near a name of ours: one slip in a short name, two in a longer one, another case, a prefix.

    Values are not looked at. All other variables belong to somebody else and are left alone.
    """
    names = {setting.name for setting in SETTINGS}
    found = []
    for variable in sorted(environment):
        if variable in names or len(variable) > _TRIED_CHARS_MAX or not environment[variable]:
            continue
        tried = variable.upper().removeprefix(_PREFIX)
        slips, nearest = min((_slips(tried, name), name) for name in names)
        if slips <= (1 if len(nearest) <= _SHORT_NAME_CHARS else 2):
            found.append(Lookalike(variable, nearest))
    return found


def warn(environment: Mapping[str, str]) -> None:
    """A warning in the log for each, as a process says it at its start."""
    for lookalike in find(environment):
        log.warning("setting_unknown", extra={"variable": lookalike.variable, "meant": lookalike.setting})


def _slips(given: str, meant: str) -> int:
    """How many letters were added, left out, changed, or swapped with their neighbour."""
    if abs(len(given) - len(meant)) > 2:
        return 3
    before: list[int] = []
    last = list(range(len(meant) + 1))
    for i, letter in enumerate(given, 1):
        row = [i]
        for j, other in enumerate(meant, 1):
            slips = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == meant[j - 2] and given[i - 2] == other:
                slips = min(slips, before[j - 2] + 1)
            row.append(slips)
        before, last = last, row
    return last[-1]
