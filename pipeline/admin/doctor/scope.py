"""What the doctor is asked about: which processes the environment is for, and whether somebody said so.

The processes need different things. A collector needs the stream and perhaps a database; an API needs the
database and no stream. Example: with RABBITMQ_URL and COLLECTOR_SPOOL alone the environment is a collector's,
and a missing DATABASE_URL is no fault of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.common.settings_table import SETTINGS

REQUIRED: Final = {
    "worker": ("DATABASE_URL", "RABBITMQ_URL"),
    "api": ("DATABASE_URL",),
    "exporter": ("DATABASE_URL",),
    "alerts": ("DATABASE_URL",),
    "collector": ("RABBITMQ_URL",),
}
"""The processes, and the settings without which each does not start."""
_USUAL: Final = frozenset(REQUIRED) - {"alerts"}
"""What an environment can be for when nobody says so. The login of alerts fits no other process."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The processes to check. ``told`` False: nobody named them, so a login may be that of any process."""

    processes: frozenset[str]
    told: bool

    def has(self, *processes: str) -> bool:
        """Is one of these processes to be checked?"""
        return not self.processes.isdisjoint(processes)

    @property
    def required(self) -> tuple[str, ...]:
        """The settings that these processes need."""
        return tuple(sorted({name for process in self.processes for name in REQUIRED[process]}))


def scope(environment: Mapping[str, str], named: Sequence[str]) -> Scope:
    """The processes that were ``named``; else those that the environment can be for.

    A deployment need not have a collector. So a collector is checked only if one of its settings is given.
    If such a setting is given and DATABASE_URL is not, the environment is that of a collector alone.
    """
    if named:
        return Scope(frozenset(named), told=True)
    given = {setting.name for setting in SETTINGS if setting.is_given(environment)}
    if not any(name.startswith("COLLECTOR_") for name in given):
        return Scope(_USUAL - {"collector"}, told=False)
    if "DATABASE_URL" not in given:
        return Scope(frozenset({"collector"}), told=False)
    return Scope(_USUAL, told=False)
