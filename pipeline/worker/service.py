"""The composition root of ``spendstream worker``: builds everything, starts and stops it in order.

The start has this order: first the page, so that probes get an answer, then the kernels, the database and the
broker, the agents, and the maintenance. Each partition joins its consumer group, and recovers when the broker
activates it.

SIGTERM or SIGINT stops the worker: it stops reading, flushes, lets its partitions go, and exits with 0. A
crash of any part exits with 1 at once. The restarted worker reads the uncommitted records again, so nothing
is lost.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pipeline import metrics
from pipeline.archive.archiver import Archiver
from pipeline.archive.store import open_store
from pipeline.common import http
from pipeline.common.backoff import ExponentialBackoff
from pipeline.common.heap import keep_freed_memory
from pipeline.common.listening import listen
from pipeline.common.urls import authority
from pipeline.config import Config
from pipeline.core.warm_up import warm_up as core_warm_up
from pipeline.processes import compiling
from pipeline.sink import SchemaMissing, SinkUnavailable, copy_binary
from pipeline.sink.timescale import TimescaleSink
from pipeline.transports import Transport, TransportError
from pipeline.transports.factory import open_transport
from pipeline.transports.rabbitmq import frames
from pipeline.worker import agents, maintenance
from pipeline.worker import id_files as spill
from pipeline.worker.partition import PartitionWorker

log = logging.getLogger(__name__)

LAST_FLUSH_S: Final = 25.0
"""How long a stopping worker tries to flush. After that the next owner reads the records again."""


async def run_worker(config: Config) -> int:
    """Run a worker until a signal or a crash; the exit code: 0 after a signal, 1 after a crash."""
    keep_freed_memory()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    transport = open_transport(config.stream)
    state = _State()
    page = await _serve_page(config, state)
    log.info("worker_starting", extra={"stream": config.stream.stream})
    try:
        await compiling.warm_up(core_warm_up, copy_binary.warm_up, frames.warm_up)
        streams = await _unless_stopped(_dependencies(config, transport, state), stopping)
        if streams is None:
            return 0
        if config.archive is not None:
            state.archiver = Archiver(config.database_url, open_store(config.archive), config.archive)
        state.partitions = [
            PartitionWorker(
                index=index,
                stream=stream,
                transport=transport,
                sink=TimescaleSink(
                    config.database_url,
                    application_name=config.service_name,
                    consumer=config.stream.consumer,
                ),
                rules=config.rules,
                flush=config.flush,
                redis_url=config.redis_url,
                archive=state.archiver.gate if state.archiver is not None else None,
                new_log=spill.logs_in(config.dedupe_folder) if config.dedupe_folder is not None else None,
            )
            for index, stream in enumerate(streams)
        ]
        return await _work(config, state, stopping)
    finally:
        await transport.close()
        await page.cleanup()
        log.info("worker_stopped")


@dataclass(slots=True)
class _State:
    """The state behind the page: our partitions, and why a dependency cannot be used (None: it can)."""

    database_error: str | None = "not connected yet"
    stream_error: str | None = "not connected yet"
    partitions: list[PartitionWorker] = field(default_factory=list)
    archiver: Archiver | None = None

    def errors(self) -> dict[str, str | None]:
        """The first error of each component; None: the component is ready."""
        database = [self.database_error, *(partition.database_error for partition in self.partitions)]
        stream = [self.stream_error, *(partition.stream_error for partition in self.partitions)]
        return {"database": next(filter(None, database), None), "stream": next(filter(None, stream), None)}


async def _dependencies(config: Config, transport: Transport, state: _State) -> Sequence[str]:
    """Wait until the database and the broker can be used; the streams of the partitions."""
    sink = TimescaleSink(config.database_url, application_name=config.service_name)

    async def database() -> None:
        backoff = ExponentialBackoff()
        while True:
            try:
                await sink.check_schema()
            except (SinkUnavailable, SchemaMissing) as error:
                if state.database_error != str(error):
                    log.warning("database_not_ready", extra={"error": str(error)})
                state.database_error = str(error)
                await backoff.wait()
            else:
                state.database_error = None
                return await sink.close()

    async def streams() -> Sequence[str]:
        backoff = ExponentialBackoff()
        while True:
            try:
                await transport.open()
                found = await transport.partitions()
            except TransportError as error:
                if state.stream_error != str(error):
                    log.warning("stream_away", extra={"stream": transport.stream, "error": str(error)})
                state.stream_error = str(error)
                await backoff.wait()
            else:
                state.stream_error = None
                return found

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database())
        found = tasks.create_task(streams())
    return found.result()


async def _work(config: Config, state: _State, stopping: asyncio.Event) -> int:
    partitions = state.partitions
    wiring = agents.wire(partitions, flush_interval_s=config.flush.interval_s)
    app = wiring.app
    upkeep = [
        asyncio.create_task(
            maintenance.run(
                config.database_url, config.retention, dedupe_window_us=config.rules.dedupe_window_us
            ),
            name="maintenance",
        )
    ]
    if state.archiver is not None:
        upkeep.append(asyncio.create_task(state.archiver.run(), name="archiver"))
    await app.start()
    for service in (*wiring.feeders, *wiring.flushers):
        await app.add_runtime_dependency(service)
    # The objects of the start stay until the end, so the garbage collector need not look at them again. Its
    # first full pass over them would stop the worker for a tenth of a second in the middle of its work.
    gc.collect()
    gc.freeze()
    log.info("worker_started", extra={"objects_frozen": gc.get_freeze_count()})
    crashed = asyncio.create_task(app.wait_until_stopped(), name="crashed")
    stopped = asyncio.create_task(stopping.wait(), name="stopped")
    await asyncio.wait((crashed, stopped), return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if app.crashed:
        log.critical("worker_crashed", exc_info=app.crash_reason)
        code = 1
    else:
        log.info("worker_stopping")
        for partition in partitions:
            partition.take_no_more()
        await asyncio.gather(*(feeder.stop() for feeder in wiring.feeders))
        try:
            async with asyncio.timeout(LAST_FLUSH_S):
                await asyncio.gather(*(flusher.finish() for flusher in wiring.flushers))
            log.info("last_flush_committed")
        except TimeoutError:
            log.error("last_flush_failed", extra={"error": [p.database_error for p in partitions]})
    for task in (crashed, stopped, *upkeep):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await app.stop()
    await asyncio.gather(*(partition.close() for partition in partitions))
    return code


_T = TypeVar("_T")


async def _unless_stopped(work: Coroutine[Any, Any, _T], stopping: asyncio.Event) -> _T | None:
    """Do ``work`` and return its result. None if a signal came first: then ``work`` is cancelled."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return await task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return None


async def _serve_page(config: Config, state: _State) -> web.AppRunner:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` of the worker."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def readyz(_: web.Request) -> web.Response:
        components = {
            name: {"status": "ok" if error is None else "unavailable", "detail": error}
            for name, error in state.errors().items()
        }
        ready = all(component["status"] == "ok" for component in components.values())
        if state.archiver is not None:  # figures do not need the archive, so readiness does not depend on it
            error = state.archiver.error
            status = "ok" if error is None else "degraded"
            components["archive"] = {"status": status, "detail": error}
        return web.json_response(
            {
                "status": "ready" if ready else "unavailable",
                "components": components,
                "partitions": {partition.stream: partition.active for partition in state.partitions},
            },
            status=200 if ready else 503,
        )

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    runner = await serve_page(config.metrics_hosts, config.metrics_port, app)
    for host, port, *_ in runner.addresses:
        log.info("page_listening", extra={"url": f"http://{authority(host, port)}/metrics"})
    return runner


async def serve_page(hosts: Sequence[str], port: int, app: web.Application) -> web.AppRunner:
    """Serve the worker's pages at ``hosts`` and ``port`` (0: a free port). Raises `CannotListen`."""
    runner = http.Runner(app, handle_signals=False)
    await runner.setup()
    await listen(runner, hosts, port)
    return runner
