"""``spendstream doctor``: checks everything that the processes need, and says what to do about a fault.

The doctor only looks: it declares no stream and migrates no schema. Each check gives findings. A check is
left out if it cannot be made because an earlier one failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.admin.doctor import collector, database, host, stores, stream
from pipeline.admin.doctor.finding import Finding, Level, first_line
from pipeline.common import lookalikes, settings

__all__ = ["Finding", "Level", "examine"]


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, one at a time. A dependency that does not answer is given up after 5 s. Never raises."""
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
        ("collector", collector.check),
    )
    for name, check in checks:
        try:
            yield from check(values)
        except Exception as error:  # after an unexpected error the doctor goes on with the next check
            yield Finding(
                Level.FAIL,
                name,
                f"{type(error).__name__}: {first_line(error)}",
                "this is unexpected: report it",
            )
