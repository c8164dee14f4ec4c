"""``spendstream doctor``: checks everything that the processes need, and says what to do about a fault.

The doctor only looks: it declares no stream and migrates no schema. Each check gives findings. A check is
left out if it cannot be made because an earlier one failed, or if none of the processes in question needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from pipeline.admin.doctor import collector, database, host, stores, stream
from pipeline.admin.doctor.finding import Finding, Level, first_line
from pipeline.admin.doctor.scope import REQUIRED, scope
from pipeline.common import lookalikes, settings

__all__ = ["PROCESSES", "Finding", "Level", "examine"]

PROCESSES = tuple(REQUIRED)
"""The processes of which one can be checked alone."""


def examine(environment: Mapping[str, str], processes: Sequence[str] = ()) -> Iterator[Finding]:
    """Every finding, one at a time. A dependency that does not answer is given up after 5 s. Never raises.

    ``processes`` are some of `PROCESSES`, to check what these need and nothing else. Without them the
    processes are those that the environment can be for (`pipeline.admin.doctor.scope`).
    """
    asked = scope(environment, processes)
    try:
        values = settings.read(environment, required=asked.required)
    except settings.ConfigError as error:
        remedy = "correct the environment; `spendstream config` shows it"
        if not asked.told:
            remedy += ", and `spendstream doctor --for` checks what one process needs"
        for fault in error.faults:
            yield Finding(Level.FAIL, "configuration", fault, remedy)
        return
    origins = [*values.origins.values()]
    given, files = len(origins) - origins.count("default"), origins.count("file")
    from_files = f" ({files} of them in files)" if files else ""
    yield Finding(
        Level.OK,
        "configuration",
        f"{given} settings from the environment{from_files}, the rest defaults; checked for"
        f" {', '.join(process for process in PROCESSES if asked.has(process))}",
    )
    for lookalike in lookalikes.find(environment):
        yield Finding(
            Level.WARN,
            "configuration",
            f"{lookalike.variable} is not a setting and changes nothing",
            f"did you mean {lookalike.setting}? rename or remove the variable",
        )
    checks: tuple[tuple[str, Callable[[settings.Values], Iterator[Finding]], Sequence[str]], ...] = (
        ("traces", host.traces, PROCESSES),
        ("database", partial(database.check, asked=asked), PROCESSES),
        ("stream", partial(stream.check, asked=asked), ("worker", "collector")),
        ("redis", stores.redis, ("worker", "api", "collector")),
        ("object store", stores.object_store, ("api", "exporter")),
        ("archive", stores.archive, ("worker",)),
        ("disk", host.disk, ("worker", "collector")),
        ("worker", host.worker, ("worker",)),
        ("api", host.api, ("api",)),
        ("collector", collector.check, ("collector",)),
    )
    for name, check, needed_by in checks:
        if not asked.has(*needed_by):
            continue
        try:
            yield from check(values)
        except Exception as error:  # after an unexpected error the doctor goes on with the next check
            yield Finding(
                Level.FAIL,
                name,
                f"{type(error).__name__}: {first_line(error)}",
                "this is unexpected: report it",
            )
