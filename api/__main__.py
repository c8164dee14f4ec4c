"""``python -m api``: serve until SIGTERM or SIGINT, then finish what is in flight and exit 0.

``python -m api exporter`` makes exports instead of serving.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from typing import Final

from api.app import create_app, export_runner, export_store
from api.config import Config, load
from pipeline.common import logs, lookalikes
from pipeline.common.listening import CannotListen, listen
from pipeline.common.serving import Runner
from pipeline.common.settings import ConfigError

log = logging.getLogger("api")

_SHUTDOWN_TIMEOUT_S: Final = 10.0


def main() -> int:
    try:
        config = load(os.environ)
    except ConfigError as error:
        for fault in error.faults:
            print(f"configuration: {fault}", file=sys.stderr)
        return 2
    logs.configure(config.log_level, config.database.service_name, secrets=config.secrets)
    lookalikes.warn(os.environ)
    if sys.argv[1:] == ["exporter"]:
        return export(config)
    return asyncio.run(serve(config))


def export(config: Config) -> int:
    """Make exports until told to stop; 2 when there is nowhere to put them."""
    store = export_store(config)
    if store is None:
        print("configuration: an exporter needs S3_* or EXPORT_DIR", file=sys.stderr)
        return 2
    runner = export_runner(config, store)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    log.info("exporting", extra={"store": store.uri("exports")})
    runner.run()
    log.info("stopped")
    return 0


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
