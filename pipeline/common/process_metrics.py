"""What a process says of itself to Prometheus: memory, processor time, open files, room, and its traces.

The names ``process_*`` are Prometheus' own. `memory_limit_bytes` is ours, because an alert on memory needs to
know how much there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from pipeline.common import traces

_ROOT: Final = Path("/")
_LIMITS: Final = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The limit of our control group, by version 2 and by version 1."""


def show(registry: CollectorRegistry) -> None:
    """Add the metrics of this process to a registry."""
    ProcessCollector(registry=registry)
    Gauge(
        "analytics_memory_limit_bytes",
        "Memory that this process may use: the limit of its container, else the memory of the host.",
        registry=registry,
    ).set(memory_limit_bytes())
    registry.register(_Spans())


class _Spans(Collector):
    """The spans of this process. While tracing is off there is no such metric."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = traces.counts()
        if counts is None:
            return
        spans = CounterMetricFamily(
            "analytics_trace_spans",
            "Spans by what became of them: exported, or lost because the queue was full (queue_full), the"
            " receiver did not take them (not_taken) or the process ended (at_the_end).",
            labels=("outcome",),
        )
        for outcome, count in counts.items():
            spans.add_metric((outcome,), count)
        yield spans


def memory_limit_bytes(root: Path = _ROOT) -> float:
    """The memory that this process may use, in bytes; NaN where the system does not tell.

    ``root`` is where the system's files are. Example: a host with 8 GiB, a container with a limit of 512 MiB:
    536,870,912. The limit of a container that has none is far above the host's memory, so the smaller of the
    two counts.
    """
    found = [limit for name in _LIMITS if (limit := _number(root / name)) is not None]
    total_kib = _number(root / "proc/meminfo", after="MemTotal:")
    if total_kib is not None:
        found.append(total_kib * 1024)
    return float(min(found, default=float("nan")))


def _number(file: Path, after: str = "") -> int | None:
    """The first number behind ``after`` in a file; None if there is no such file, or no number (``max``)."""
    try:
        words = file.read_text().partition(after)[2].split() if after else file.read_text().split()
    except OSError:
        return None
    return int(words[0]) if words and words[0].isdigit() else None
