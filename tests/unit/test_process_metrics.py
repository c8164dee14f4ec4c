"""The memory that a process may use: its container's limit, else the host's memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.common import process_metrics

HOST_KIB = 8_388_608


def system(root: Path, **files: str) -> Path:
    """A root folder with some of the system's files."""
    places = {
        "v2": "sys/fs/cgroup/memory.max",
        "v1": "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "meminfo": "proc/meminfo",
    }
    for name, text in files.items():
        path = root / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal:       {HOST_KIB} kB\nMemFree:         1234 kB\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"v2": "536870912\n", "meminfo": MEMINFO}, 536_870_912),
        ({"v1": "1073741824\n", "meminfo": MEMINFO}, 1_073_741_824),
        ({"v2": "max\n", "meminfo": MEMINFO}, HOST_KIB * 1024),
        ({"v1": "9223372036854771712\n", "meminfo": MEMINFO}, HOST_KIB * 1024),  # no limit, as version 1 says
        ({"meminfo": MEMINFO}, HOST_KIB * 1024),
        ({"v2": "536870912\n"}, 536_870_912),
    ],
    ids=["v2", "v1", "v2 without a limit", "v1 without a limit", "no container", "no meminfo"],
)
def test_the_limit_is_the_smaller_of_container_and_host(
    tmp_path: Path, files: dict[str, str], limit: int
) -> None:
    assert process_metrics.memory_limit_bytes(system(tmp_path, **files)) == limit


def test_where_the_system_tells_nothing_the_limit_is_not_a_number(tmp_path: Path) -> None:
    assert math.isnan(process_metrics.memory_limit_bytes(tmp_path))


def test_a_process_shows_what_it_uses_and_what_there_is() -> None:
    registry = CollectorRegistry()
    process_metrics.show(registry)
    found = dict(
        line.rsplit(" ", 1)
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("#")
    )
    assert 10e6 < float(found["process_resident_memory_bytes"]) < float(found["analytics_memory_limit_bytes"])
    assert float(found["process_cpu_seconds_total"]) > 0
