"""``spendstream worker --processes K``: keeps K worker processes running on one host.

The supervisor knows nothing of streams: the broker shares the partitions out among the workers of the group.
A worker that dies loses nothing, so it is started again after a wait. A worker that refuses its configuration
(exit code 2) would refuse it again, so then all workers are stopped.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.config import Config
from pipeline.processes.child import Child

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_LAST_S: Final = 30.0
STEADY_S: Final = 60.0
"""After a child has run this long, the wait before its next start is the shortest again."""
APART_S: Final = 1.0
"""Seconds between the first starts of the workers. The broker gives a partition to the worker that joins it
first. When two workers join at the same moment, one of them can get all partitions."""
STOP_S: Final = 40.0
"""A worker is killed after this time. Its last flush takes less."""
_POLL_S: Final = 0.1
_REFUSED: Final = 2


@dataclass(slots=True)
class _Kept:
    """One of the K workers: its environment, and its process or the time of its next start."""

    number: int
    environment: Mapping[str, str]
    backoff_s: float = BACKOFF_FIRST_S
    start_at: float = 0.0
    started_at: float = 0.0
    process: Child | None = None


def run(config: Config, environment: Mapping[str, str], *, processes: int) -> int:
    """Keep ``processes`` workers running until SIGTERM or SIGINT; returns the exit code.

    The exit code is 0 if all workers have flushed and stopped, 1 if a worker ended with an error or had to be
    killed, and 2 if a worker refused its configuration. Each worker has a metrics port: see `ports`.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    began = time.monotonic()
    parts = [
        _Kept(number, {**environment, "METRICS_PORT": str(port)}, start_at=began + number * APART_S)
        for number, port in enumerate(ports(config, processes=processes))
    ]
    log.info("workers_starting", extra={"processes": processes})
    code = 0
    try:
        while not signals and not code:
            for kept in parts:
                code = code or _keep_alive(kept)
            time.sleep(_POLL_S)
    finally:
        code = max(_end(parts), code)  # a refused configuration outranks how the others ended
    log.info("workers_stopped", extra={"exit_code": code})
    return code


def ports(config: Config, *, processes: int) -> list[int]:
    """The metrics port of each worker: METRICS_PORT, and for the others the next ports after it.

    The ports of the API, the collector and the exporter are left out. Example: by default the first worker
    has 8085, and the second 8087, because 8086 is the collector's. If METRICS_PORT is 0, each worker takes a
    free port.
    """
    if not config.metrics_port:
        return [0] * processes
    found = [config.metrics_port]
    while len(found) < processes:
        following = found[-1] + 1
        while following in config.other_ports:
            following += 1
        found.append(following)
    return found


def _keep_alive(kept: _Kept) -> int:
    """Start the process when its time has come; returns 0, or the exit code that ends the supervisor."""
    now = time.monotonic()
    if kept.process is None:
        if now >= kept.start_at:
            kept.process = Child.of_ours("pipeline.cli", "worker", env=kept.environment)
            kept.started_at = now
            log.info("worker_process_started", extra={"number": kept.number, "pid": kept.process.pid})
        return 0
    exit_code = kept.process.exit_code()
    if exit_code is None:
        return 0
    kept.process = None
    if exit_code == _REFUSED:
        log.critical("worker_process_refused_configuration", extra={"number": kept.number})
        return _REFUSED
    if now - kept.started_at >= STEADY_S:
        kept.backoff_s = BACKOFF_FIRST_S
    kept.start_at = now + kept.backoff_s
    log.error(
        "worker_process_died",
        extra={"number": kept.number, "exit_code": exit_code, "again_in_s": kept.backoff_s},
    )
    kept.backoff_s = min(2 * kept.backoff_s, BACKOFF_LAST_S)
    return 0


def _end(parts: list[_Kept]) -> int:
    """Stop all workers at once, so that they flush side by side; returns 1 if one did not end well."""
    running = [kept.process for kept in parts if kept.process is not None]
    for process in running:
        process.ask_to_end()
    until = time.monotonic() + STOP_S
    codes = [process.stop(timeout_s=max(0.1, until - time.monotonic())) for process in running]
    bad = False
    for process, code in zip(running, codes, strict=True):
        if code not in (0, -signal.SIGTERM):  # -SIGTERM: it had not begun to work
            log.error("worker_process_ended_badly", extra={"pid": process.pid, "exit_code": code})
            bad = True
    return 1 if bad else 0


def port_fault(config: Config, *, processes: int) -> str | None:
    """The fault if METRICS_PORT is too high for this number of processes. None if there is no fault."""
    if ports(config, processes=processes)[-1] > 65535:
        return f"METRICS_PORT: {processes} processes from port {config.metrics_port} on go beyond 65535"
    return None
