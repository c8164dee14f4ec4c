"""The composition root of ``spendstream worker``: builds everything, starts and stops it in order.

Start: page (so that readiness can be asked), kernels, partition (database, then stream), agents,
maintenance. Stop, on SIGTERM or SIGINT: stop reading, flush what was read, let go, exit 0. A crash of any
part exits 1 at once; whoever restarts us loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pipeline import agents, maintenance, metrics
from pipeline.config import Config
from pipeline.core.ledger import warm_up
from pipeline.partition import PartitionWorker
from pipeline.sink.timescale import TimescaleSink
from pipeline.transports.factory import open_transport

log = logging.getLogger(__name__)

LAST_FLUSH_S: Final = 25.0
"""How long a stopping worker tries to flush; what it could not commit is read again by the next one."""


async def run_worker(config: Config) -> int:
    """Work until a signal (0) or a crash (1). The exit code is the return value."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    transport = open_transport(config.stream)
    partition = PartitionWorker(
        index=0,
        stream=config.stream.stream,
        transport=transport,
        sink=TimescaleSink(config.database_url, application_name=config.service_name),
        rules=config.rules,
        flush=config.flush,
        redis_url=config.redis_url,
    )
    page = await _serve_page(config, partition)
    log.info("worker_starting", extra={"stream": config.stream.stream})
    try:
        await asyncio.to_thread(warm_up)
        if not await _unless_stopped(partition.recover(), stopping):
            return 0
        return await _work(config, partition, stopping)
    finally:
        await transport.close()
        await page.cleanup()
        log.info("worker_stopped")


async def _work(config: Config, partition: PartitionWorker, stopping: asyncio.Event) -> int:
    wiring = agents.wire([partition], flush_interval_s=config.flush.interval_s)
    app = wiring.app
    upkeep = asyncio.create_task(
        maintenance.run(
            config.database_url, config.retention, dedupe_window_us=config.rules.dedupe_window_us
        ),
        name="maintenance",
    )
    await app.start()
    for service in (*wiring.feeders, *wiring.flushers):
        await app.add_runtime_dependency(service)
    log.info("worker_started")
    crashed = asyncio.create_task(app.wait_until_stopped(), name="crashed")
    stopped = asyncio.create_task(stopping.wait(), name="stopped")
    await asyncio.wait((crashed, stopped), return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if app.crashed:
        log.critical("worker_crashed", exc_info=app.crash_reason)
        code = 1
    else:
        log.info("worker_stopping")
        for feeder in wiring.feeders:
            await feeder.stop()
        try:
            async with asyncio.timeout(LAST_FLUSH_S):
                for flusher in wiring.flushers:
                    await flusher.finish()
            log.info("last_flush_committed", extra={"offset": partition.ledger.position.next_offset})
        except TimeoutError:
            log.error("last_flush_failed", extra={"error": partition.database_error})
    for task in (crashed, stopped, upkeep):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await app.stop()
    await partition.close()
    return code


async def _unless_stopped(work: Coroutine[Any, Any, None], stopping: asyncio.Event) -> bool:
    """Await ``work``; give it up when a signal comes first. True if it was done."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return False


async def _serve_page(config: Config, partition: PartitionWorker) -> web.AppRunner:
    """``/metrics``, ``/healthz`` and ``/readyz`` of the worker."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def readyz(_: web.Request) -> web.Response:
        components = {
            name: {"status": "ok" if error is None else "unavailable", "detail": error}
            for name, error in (("database", partition.database_error), ("stream", partition.stream_error))
        }
        ready = all(component["status"] == "ok" for component in components.values())
        return web.json_response(
            {"status": "ready" if ready else "unavailable", "components": components},
            status=200 if ready else 503,
        )

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, config.metrics_host, config.metrics_port)
    await site.start()
    host, port = runner.addresses[0][:2]
    log.info("page_listening", extra={"url": f"http://{host}:{port}/metrics"})
    return runner
