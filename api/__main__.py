"""``python -m api``: serve until SIGTERM or SIGINT, then finish what is in flight and exit 0.

``python -m api exporter`` makes exports instead of serving, and ``python -m api alerts`` judges budgets.
``python -m api reseal`` encrypts webhooks with a new key, and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from typing import Final

from prometheus_client import CollectorRegistry

from api.alerts import service as alerts
from api.app import create_app, export_runner, export_store, utc_now
from api.config import Config, ExportConfig, load
from api.exports.runner import Runner as ExportRunner
from api.metrics import Exports
from api.webhooks import reseal
from pipeline.common import logs, lookalikes, process_metrics, status_page, traces
from pipeline.common.listening import CannotListen, listen
from pipeline.common.serving import Runner
from pipeline.common.settings import ConfigError
from pipeline.common.status_page import Component

log = logging.getLogger("api")

_SHUTDOWN_TIMEOUT_S: Final = 10.0


def main() -> int:
    try:
        config = load(os.environ)
    except ConfigError as error:
        for fault in error.faults:
            print(f"configuration: {fault}", file=sys.stderr)
        return 2
    name = config.database.service_name
    judges = sys.argv[1:] == ["alerts"]
    logs.configure(config.log_level, config.alerts_name if judges else name, secrets=config.secrets)
    lookalikes.warn(os.environ)
    if sys.argv[1:] == ["reseal"]:
        return reseal.main(config)
    if sys.argv[1:] == ["exporter"]:
        with traces.running(config.traces, f"{name}-exporter"):
            return export(config)
    if judges:
        with traces.running(config.traces, config.alerts_name):
            return asyncio.run(alerts.run(config, utc_now))
    with traces.running(config.traces, name):
        return asyncio.run(serve(config))


def export(config: Config) -> int:
    """Make exports until told to stop; 2 when there is nowhere to put them, 1 if the page has no address."""
    store = export_store(config)
    if store is None:
        print("configuration: an exporter needs S3_* or EXPORT_DIR", file=sys.stderr)
        return 2
    registry = CollectorRegistry()
    process_metrics.show(registry)
    runner = export_runner(config, store, metrics=Exports(registry))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    log.info("exporting", extra={"store": store.uri("exports")})
    if config.exports.metrics_port is None:
        runner.run()
    else:
        try:
            asyncio.run(_export_with_page(config.exports, runner, registry))
        except CannotListen as error:
            log.error("cannot_listen", extra={"error": error.strerror})
            return 1
    log.info("stopped")
    return 0


async def _export_with_page(
    config: ExportConfig, exporting: ExportRunner, registry: CollectorRegistry
) -> None:
    """Make exports in a thread, beside the status page. Raises `CannotListen`."""
    component = Component(
        name="jobs",
        well="claims jobs",
        unwell="cannot claim a job now; the log says why",
        error=lambda: exporting.error,
    )
    assert config.metrics_port is not None
    async with status_page.shown(registry, component, config.metrics_hosts, config.metrics_port, log):
        await asyncio.to_thread(exporting.run)


async def serve(config: Config) -> int:
    """Listen at once, whatever is away. 1: the address is taken; 2: the database role may write rollups."""
    stop = asyncio.Event()
    refused = False

    def give_up() -> None:
        nonlocal refused
        refused = True
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = Runner(create_app(config, give_up=give_up), shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        addresses = await listen(runner, config.hosts, config.port)
    except CannotListen as error:
        log.error("cannot_listen", extra={"error": error.strerror})
        await runner.cleanup()
        return 1
    host, port = runner.addresses[0][:2]
    # What start-up built stays for good: without it in view, the collector's full passes, which an answer
    # of a thousand points sets off, are short.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    facts = {"host": host, "port": port, "addresses": addresses, "auth_mode": config.auth.mode}
    log.info("listening", extra=facts)
    await stop.wait()
    log.info("stopping")
    await runner.cleanup()
    log.info("stopped")
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
