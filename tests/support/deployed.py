"""What a manifest may say of our processes: commands, ports, routes and settings, as the code has them."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import click
from aiohttp import web
from prometheus_client import CollectorRegistry

import api.config
from api import __main__ as exporter
from api.contract.operations import OPERATIONS
from deploy.local.ports import free_port
from pipeline import config
from pipeline.cli import main
from pipeline.collector import app as collector_app
from pipeline.collector import config as collector_config
from pipeline.collector.metrics import Metrics
from pipeline.common import settings, status_page
from pipeline.common.settings_table import SETTINGS
from pipeline.common.status_page import Component
from pipeline.worker import service

NAMES: Final = {
    name for setting in SETTINGS for name in (setting.name, setting.file_name) if name is not None
}
"""Every environment variable that is a setting, or names the file of one."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of ours: the settings of its address and port, if it has one, and how it is configured."""

    host: str | None
    port: str | None
    load: Callable[[Mapping[str, str]], Any]


PROCESSES: Final = {
    "worker": Process("METRICS_HOST", "METRICS_PORT", config.load),
    "api": Process("HTTP_HOST", "HTTP_PORT", api.config.load),
    "collector": Process("COLLECTOR_HOST", "COLLECTOR_PORT", collector_config.load),
    "exporter": Process("METRICS_HOST", "EXPORT_METRICS_PORT", api.config.load),
    "alerts": Process("METRICS_HOST", "ALERTS_METRICS_PORT", api.config.load),
    "migrate": Process(
        None, None, lambda environment: settings.read(environment, required=("DATABASE_URL",))
    ),
}
_PORTS: Final = {"exporter": 8087, "alerts": 8088}
"""The ports of pages in every manifest whose settings have no default."""


def command(arguments: Sequence[str]) -> str:
    """The name of the process that these arguments start. Raises AssertionError if there is none."""
    found: click.Command | None = main
    words = list(arguments)
    while isinstance(found, click.Group) and words:
        found = found.get_command(click.Context(found), words.pop(0))
    assert found is not None, f"there is no command {arguments}"
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, arguments
    assert arguments[0] in PROCESSES, f"{arguments[0]} is no process"
    return arguments[0]


def port(process: str) -> int | None:
    """The port on which a process listens, unless a setting says otherwise."""
    name = PROCESSES[process].port
    return None if name is None else int(settings.read({})[name] or _PORTS[process])


def routes(process: str) -> set[str]:
    """The paths that a process answers to GET."""
    match process:
        case "api":
            return {operation.path for operation in OPERATIONS if operation.method == "GET"}
        case "worker":
            return asyncio.run(_worker_routes())
        case "exporter":
            return asyncio.run(_exporter_routes())
        case "alerts":
            return _alerts_routes()
        case "collector":
            return _paths(collector_app.create_app(cast(Any, _Doors()), Metrics(), cast(Any, None)))
    return set()


async def _worker_routes() -> set[str]:
    environment = {
        "DATABASE_URL": "postgresql://h/d",
        "RABBITMQ_URL": "rabbitmq-stream://h",
        "METRICS_PORT": "0",
    }
    page = await service._serve_page(config.load(environment), service._State())
    try:
        return _paths(page.app)
    finally:
        await page.cleanup()


async def _exporter_routes() -> set[str]:
    """The exporter's pages can only be asked: this one asks while it should make exports."""
    port = free_port()
    found: set[str] = set()

    class Asking:
        error = None

        def run(self) -> None:
            for path in ("/metrics", "/healthz", "/readyz", "/elsewhere"):
                if _status(f"http://127.0.0.1:{port}{path}") == 200:
                    found.add(path)

    loaded = api.config.load({"DATABASE_URL": "postgresql://h/d", "EXPORT_METRICS_PORT": str(port)})
    await exporter._export_with_page(loaded.exports, cast(Any, Asking()), CollectorRegistry())
    return found


def _alerts_routes() -> set[str]:
    component = Component(name="budgets", well="", unwell="", error=lambda: None)
    return _paths(status_page.application(CollectorRegistry(), component))


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class _Doors:
    """Stands for the collector's doors, which a route needs when it is made."""

    def handler(self, door: object) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            raise NotImplementedError

        return handle


def _paths(app: web.Application) -> set[str]:
    return {
        route.resource.canonical for route in app.router.routes() if route.method == "GET" and route.resource
    }
