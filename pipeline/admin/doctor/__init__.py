"""``spendstream doctor``: is everything there that the processes need, and if not, what to do about it.

It looks and changes nothing: it declares no stream and migrates no schema. Each check answers with
findings; a check that cannot be made because an earlier one failed is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.admin.doctor import database, host, stores, stream
from pipeline.admin.doctor.finding import Finding, Level, first_line
from pipeline.common import lookalikes, settings

__all__ = ["Finding", "Level", "examine"]


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, as it is made; each dependency is given up after a few seconds. Never raises."""
    try:
        values = settings.read(environment, required=("DATABASE_URL", "RABBITMQ_URL"))
    except settings.ConfigError as error:
        for fault in error.faults:
            yield Finding(
                Level.FAIL, "configuration", fault, "correct the environment; `spendstream config` shows it"
            )
        return
    given = sum(origin == "environment" for origin in values.origins.values())
    yield Finding(Level.OK, "configuration", f"{given} settings from the environment, the rest defaults")
    for lookalike in lookalikes.find(environment):
        yield Finding(
            Level.WARN,
            "configuration",
            f"{lookalike.variable} is not a setting and changes nothing",
            f"did you mean {lookalike.setting}? rename or remove the variable",
        )
    checks: tuple[tuple[str, Callable[[settings.Values], Iterator[Finding]]], ...] = (
        ("database", database.check),
        ("stream", stream.check),
        ("redis", stores.redis),
        ("object store", stores.object_store),
        ("archive", stores.archive),
        ("disk", host.disk),
        ("worker", host.worker),
        ("api", host.api),
    )
    for name, check in checks:
        try:
            yield from check(values)
        except Exception as error:  # a doctor that dies of one organ does not look at the next
            yield Finding(
                Level.FAIL,
                name,
                f"{type(error).__name__}: {first_line(error)}",
                "this is unexpected: report it",
            )
