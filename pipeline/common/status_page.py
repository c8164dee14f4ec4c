"""The page of a process that answers no questions: ``/metrics``, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.common.listening import listen
from pipeline.common.served import CONTENT_TYPE
from pipeline.common.serving import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What ``/readyz`` says of the process.

    ``error`` returns why the process cannot work now; None: it can. Anybody may ask, so no server of ours is
    named in ``well`` and ``unwell``: the log has the cause.
    """

    name: str
    well: str
    unwell: str
    error: Callable[[], str | None]


def application(registry: CollectorRegistry, component: Component) -> web.Application:
    """The page's three paths."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def readyz(_: web.Request) -> web.Response:
        ready = component.error() is None
        detail = component.well if ready else component.unwell
        said = {"status": "ok" if ready else "unavailable", "detail": detail}
        return web.json_response(
            {"status": "ready" if ready else "unavailable", "components": {component.name: said}},
            status=200 if ready else 503,
        )

    app = web.Application()
    for path, handler in (("/metrics", show_metrics), ("/healthz", healthz), ("/readyz", readyz)):
        app.router.add_get(path, handler)
    return app


@asynccontextmanager
async def shown(
    registry: CollectorRegistry,
    component: Component,
    hosts: Sequence[str],
    port: int,
    log: logging.Logger,
) -> AsyncIterator[None]:
    """Serve the page meanwhile. Raises `listening.CannotListen`."""
    page = Runner(application(registry, component), handle_signals=False)
    await page.setup()
    try:
        addresses = await listen(page, hosts, port)
        log.info("page_listening", extra={"addresses": addresses})
        yield
    finally:
        await page.cleanup()
