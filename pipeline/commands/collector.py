"""``spendstream collector``: the process that takes events by HTTP."""

from __future__ import annotations

import os
import sys

import click

from pipeline.common import lookalikes


@click.command()
def collector() -> None:
    """Take usage events by HTTP on COLLECTOR_HOST:COLLECTOR_PORT and publish them to the stream.

    POST /v1/events, /v1/litellm and /v1/traces. The answer is 200 once the broker has confirmed the events,
    or with COLLECTOR_SPOOL once they are on disk. SIGTERM finishes the requests in work and exits with 0.
    """
    import asyncio

    from pipeline.collector import config as configuration
    from pipeline.collector import service
    from pipeline.common import logs, traces

    loaded = configuration.load(os.environ)
    logs.configure(loaded.log_level, loaded.service_name, secrets=loaded.secrets)
    lookalikes.warn(os.environ)
    with traces.running(loaded.traces, loaded.service_name):
        code = asyncio.run(service.run_collector(loaded))
    sys.exit(code)
