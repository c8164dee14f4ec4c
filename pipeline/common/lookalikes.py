"""Finds environment variables that look like a misspelled setting.

A misspelled setting would otherwise leave the default in force, and nobody would hear of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.common.settings_table import SETTINGS

log = logging.getLogger(__name__)

_PREFIX: Final = "SPENDSTREAM_"
_SHORT_NAME_CHARS: Final = 9
_TRIED_CHARS_MAX: Final = 64
"""Longer names are skipped, because no setting has a name nearly as long."""


@dataclass(frozen=True, slots=True)
class Lookalike:
    """A ``variable`` of the environment that nothing reads, and the ``setting`` that was probably meant."""

    variable: str
    setting: str

    def __str__(self) -> str:
        return f"{self.variable} is not a setting and changes nothing: did you mean {self.setting}?"


def find(environment: Mapping[str, str]) -> list[Lookalike]:
    """Find the variables whose names are near the name of a setting.

    A name is near with another case, with the prefix ``SPENDSTREAM_``, and with one slip in a short name or
    two slips in a longer name. For example, DATABASE_ULR is near DATABASE_URL. HTTP_PORT_FILE is near
    HTTP_PORT, because only secrets are read from files. Only names are looked at, and a variable that is
    empty is skipped. All other variables belong to somebody else.
    """
    names = {setting.name for setting in SETTINGS}
    names |= {setting.file_name for setting in SETTINGS if setting.file_name is not None}
    found = []
    for variable in sorted(environment):
        if variable in names or len(variable) > _TRIED_CHARS_MAX or not environment[variable]:
            continue
        tried = variable.upper().removeprefix(_PREFIX)
        if tried.removesuffix("_FILE") in names:
            tried = tried.removesuffix("_FILE")
        slips, nearest = min((_slips(tried, name), name) for name in names)
        if slips <= (1 if len(nearest) <= _SHORT_NAME_CHARS else 2):
            found.append(Lookalike(variable, nearest))
    return found


def warn(environment: Mapping[str, str]) -> None:
    """Log a warning for each lookalike. A process does so at its start."""
    for lookalike in find(environment):
        log.warning("setting_unknown", extra={"variable": lookalike.variable, "meant": lookalike.setting})


def _slips(given: str, meant: str) -> int:
    """Count the letters that were added, left out, changed, or swapped with their neighbour."""
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
