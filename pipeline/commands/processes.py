"""``spendstream worker``, ``api``, ``exporter`` and ``alerts``: the processes of a deployment."""

from __future__ import annotations

import os
import sys

import click

from pipeline.common import lookalikes, settings


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Workers on this host, each a process. They share the partitions; more than those only stand by.",
)
def worker(processes: int) -> None:
    """Read the stream and keep the rollups up to date until stopped (SIGTERM drains and exits 0).

    Waits for a database or broker that is away. Serves /metrics, /healthz and /readyz on METRICS_PORT. With
    --processes, each process has a port, from METRICS_PORT on and beside those of API and collector, and a
    process that dies is started again.
    """
    import asyncio

    from pipeline import config as configuration
    from pipeline.common import logs, traces

    loaded = configuration.load(os.environ)
    logs.configure(loaded.log_level, loaded.service_name, secrets=loaded.secrets)
    lookalikes.warn(os.environ)
    if processes > 1:
        from pipeline.processes import supervisor as workers

        if fault := workers.port_fault(loaded, processes=processes):
            raise settings.ConfigError([fault])
        sys.exit(workers.run(loaded, os.environ, processes=processes))
    from pipeline.worker import service

    with traces.running(loaded.traces, loaded.service_name):
        code = asyncio.run(service.run_worker(loaded))
    sys.exit(code)


@click.command()
def api() -> None:
    """Serve the REST API on HTTP_HOST:HTTP_PORT (needs DATABASE_URL)."""
    from pipeline.processes import child

    argv = child.command_line("api")
    os.execve(argv[0], argv, child.environment(os.environ))


@click.command()
def exporter() -> None:
    """Make the exports that callers asked the API for, until stopped. Set EXPORT_IN_API=false for the API.

    Any number of exporters may run. On SIGTERM an exporter gives its job back and exits with 0. With
    EXPORT_METRICS_PORT it serves /metrics, /healthz and /readyz.
    """
    from pipeline.processes import child

    argv = child.command_line("api", "exporter")
    os.execve(argv[0], argv, child.environment(os.environ))


@click.command()
def alerts() -> None:
    """Judge the budgets of orgs after each flush, until stopped (needs DATABASE_URL).

    Any number may run: an alert is committed once, whoever finds it. With ALERTS_METRICS_PORT it serves
    /metrics, /healthz and /readyz.
    """
    from pipeline.processes import child

    argv = child.command_line("api", "alerts")
    os.execve(argv[0], argv, child.environment(os.environ))
