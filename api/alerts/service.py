"""``spendstream alerts``: what the process is made of, from its start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry

from api.alerts.deliver import Sender
from api.alerts.metrics import Metrics
from api.alerts.watch import Watch
from api.config import Config
from api.notices.metrics import NoticeMetrics
from api.notices.watch import NoticeWatch
from api.reading.database import PRIVILEGED_REMEDY, Database
from pipeline.common import process_metrics, status_page
from pipeline.common.listening import CannotListen
from pipeline.common.status_page import Component

log = logging.getLogger(__name__)

_PRIVILEGES_S = 0.5


async def run(config: Config, clock: Callable[[], datetime]) -> int:
    """Judge until told to stop. 1: the page has no address; 2: the database role may write rollups."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    process_metrics.show(registry)
    database = Database(replace(config.database, service_name=config.alerts_name))
    metrics = Metrics(registry)
    sender = Sender(database, config.webhooks, metrics)
    watch = Watch(database, config.ranges, clock, metrics, sender.wake)
    notices = NoticeWatch(database, config.ranges, clock, NoticeMetrics(registry), sender.wake)
    component = Component(
        name="budgets",
        well="judges budgets",
        unwell="cannot judge budgets now; the log says why",
        error=lambda: watch.error or notices.error,
    )
    hosts, port = config.alerts.metrics_hosts, config.alerts.metrics_port
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        if port is not None:
            try:
                await stack.enter_async_context(status_page.shown(registry, component, hosts, port, log))
            except CannotListen as error:
                log.error("cannot_listen", extra={"error": error.strerror})
                return 1
        async with _working(watch.listen(), watch.run(), notices.run(), sender.run()):
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PRIVILEGES_S):
                        await stop.wait()
                if database.privileged:
                    log.error("database_role_privileged", extra={"remedy": PRIVILEGED_REMEDY})
                    return 2
    log.info("stopped")
    return 0


@contextlib.asynccontextmanager
async def _working(*work: Coroutine[Any, Any, None]) -> Any:
    """The tasks of the process. At the end they are cancelled and awaited."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
