"""The doctor's checks of a collector that may run here: its settings, its spool, and its health."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline.admin.doctor.finding import Finding, Level
from pipeline.admin.doctor.host import page
from pipeline.common import settings

_IN_MEMORY: Final = ("tmpfs", "ramfs")
_MOUNTS: Final = Path("/proc/self/mounts")


def check(values: settings.Values) -> Iterator[Finding]:
    yield from _credentials(values)
    yield from _spool(values)
    for host in values["COLLECTOR_HOST"]:
        yield page("collector", host, values["COLLECTOR_PORT"], "/status/readyz")


def _credentials(values: settings.Values) -> Iterator[Finding]:
    if values["AUTH_MODE"] == "none":
        yield Finding(
            Level.WARN,
            "collector",
            "AUTH_MODE=none: whoever reaches this host's loopback may write events of every org",
            "for more than a trial, set AUTH_MODE=jwt, or gateway behind a proxy",
        )
    elif values["API_KEY_SECRET"] is None:
        yield Finding(
            Level.OK,
            "collector",
            "API_KEY_SECRET is not set: senders cannot use API keys (`spendstream keys`)",
        )


def _spool(values: settings.Values) -> Iterator[Finding]:
    folder: Path | None = values["COLLECTOR_SPOOL"]
    if folder is None:
        yield Finding(
            Level.WARN,
            "collector",
            "no spool: while the broker is away, senders get 503, and some of them drop their events then",
            "set COLLECTOR_SPOOL to a folder on a disk",
        )
        return
    while not folder.exists():  # the collector makes it
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            Level.FAIL, "collector", f"{folder} cannot be written", "check its owner and permissions"
        )
        return
    bytes_max = values["COLLECTOR_SPOOL_BYTES_MAX"]
    held = 0
    if folder == values["COLLECTOR_SPOOL"]:
        held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    free = shutil.disk_usage(folder).free
    detail = f"the spool {values['COLLECTOR_SPOOL']} holds {held / 2**20:.1f} of {bytes_max / 2**20:.0f} MiB"
    if (kind := _file_system(folder)) in _IN_MEMORY:
        yield Finding(
            Level.FAIL,
            "collector",
            f"the spool {values['COLLECTOR_SPOOL']} is in memory ({kind}): its events end with this host",
            "set COLLECTOR_SPOOL to a folder on a disk",
        )
    elif free < bytes_max - held:
        yield Finding(
            Level.WARN,
            "collector",
            f"{detail}, and its disk has room for {free / 2**20:.0f} MiB more",
            "lower COLLECTOR_SPOOL_BYTES_MAX, or give the spool a disk with more room",
        )
    else:
        yield Finding(Level.OK, "collector", detail)


def _file_system(folder: Path) -> str | None:
    """The kind of the file system that has the folder; None where the host does not tell."""
    try:
        lines = [line.split() for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return None
    there = os.path.realpath(folder)
    holding = [
        (len(point), kind)
        for _, point, kind, *_ in lines
        if there == point or there.startswith(point.rstrip("/") + "/")
    ]
    return max(holding)[1] if holding else None
