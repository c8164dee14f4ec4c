"""The doctor's checks of a collector that may run here: its settings, its spool, and its health."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline.admin.doctor import callers
from pipeline.admin.doctor.finding import Finding, Level
from pipeline.admin.doctor.host import page
from pipeline.collector.config import SPOOL_NEARLY_FULL
from pipeline.common import settings

_IN_MEMORY: Final = ("tmpfs", "ramfs")
_MOUNTS: Final = Path("/proc/self/mounts")


def check(values: settings.Values) -> Iterator[Finding]:
    yield from _credentials(values)
    yield from _spool(values)
    yield from callers.proxies(values, "collector")
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
    elif values["DATABASE_URL"] is None:
        yield Finding(
            Level.WARN,
            "collector",
            "API_KEY_SECRET is set and DATABASE_URL is not: every API key gets a 401",
            "set DATABASE_URL, where the keys are, or unset API_KEY_SECRET",
        )


def _spool(values: settings.Values) -> Iterator[Finding]:
    wanted: Path | None = values["COLLECTOR_SPOOL"]
    if wanted is None:
        yield Finding(
            Level.WARN,
            "collector",
            "no spool: while the broker is away, senders get 503, and some of them drop their events then",
            "set COLLECTOR_SPOOL to a folder on a disk",
        )
        return
    try:
        yield _folder(wanted, values["COLLECTOR_SPOOL_BYTES_MAX"])
    except OSError as error:
        yield Finding(
            Level.FAIL,
            "collector",
            f"the spool {wanted} cannot be looked at: {error.strerror or error}",
            "check the owner and the permissions of the folder and of those above it",
        )


def _folder(wanted: Path, bytes_max: int) -> Finding:
    """The finding on the spool's folder, or on the one in which the collector would make it. Raises OSError.

    The doctor changes nothing, so it does not try to make the folder. A file system that has no bytes at all
    is one of the kernel's own, such as /proc, and takes no folder of ours whatever the permissions say.
    """
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    disk = shutil.disk_usage(folder)
    kind = _file_system(folder)
    if not folder.is_dir() or not disk.total or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        why = "is no folder" if not folder.is_dir() else "cannot be written" + (f" ({kind})" if kind else "")
        return Finding(
            Level.FAIL,
            "collector",
            f"the spool {wanted} cannot be used: {folder} {why}",
            "check its owner and permissions, or set COLLECTOR_SPOOL to another folder on a disk",
        )
    if kind in _IN_MEMORY:
        return Finding(
            Level.FAIL,
            "collector",
            f"the spool {wanted} is in memory ({kind}): its events end with this host",
            "set COLLECTOR_SPOOL to a folder on a disk",
        )
    held, detail = 0, f"the spool {wanted} is not there yet, and will be made"
    if folder == wanted:
        held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        detail = f"the spool {wanted} holds {held / 2**20:.1f} of {bytes_max / 2**20:.0f} MiB"
    if held >= SPOOL_NEARLY_FULL * bytes_max:
        return Finding(
            Level.WARN,
            "collector",
            f"{detail}: nearly full, and then senders get 503",
            "bring the broker back, or raise COLLECTOR_SPOOL_BYTES_MAX",
        )
    if disk.free < bytes_max - held:
        return Finding(
            Level.WARN,
            "collector",
            f"{detail}, and its disk has room for {disk.free / 2**20:.0f} MiB more",
            "lower COLLECTOR_SPOOL_BYTES_MAX, or give the spool a disk with more room",
        )
    return Finding(Level.OK, "collector", detail)


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
