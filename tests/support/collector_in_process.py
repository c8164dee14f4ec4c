"""A collector in the process of the test, on an embedded stream, and requests to it over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from pipeline.collector import config
from pipeline.collector.service import Collector
from pipeline.common.listening import listen
from pipeline.transports.embedded.transport import EmbeddedTransport
from tests.support import collectors, streams

STREAM = "analytics.usage.v1"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def room_in_the_minute(seconds: float = 10.0) -> None:
    """Wait for the next minute if this one ends within so many seconds: rate limits begin anew with it."""
    left = 60 - time.time() % 60
    if left < seconds:
        await asyncio.sleep(left)


class Serving:
    """A collector that serves."""

    def __init__(
        self, collector: Collector, url: str, session: aiohttp.ClientSession, stream_url: str
    ) -> None:
        self.collector = collector
        self.url = url
        self._session = session
        self._stream_url = stream_url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        async with self._session.request(method, f"{self.url}{path}", data=body, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def post(self, body: Any, path: str = "/v1/events", **headers: str) -> Answer:
        """Post JSON, or a body of the type in the headers. An underscore in a header's name is a hyphen."""
        named = CIMultiDict({"Content-Type": "application/json"})
        for name, value in headers.items():
            named[name.replace("_", "-")] = value
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", path, data, named)

    async def stored(self) -> list[bytes]:
        """Every record of the stream."""
        transport = EmbeddedTransport(streams.config(self._stream_url, STREAM))
        try:
            end = (await transport.extents())[0].end_offset
            if not end:
                return []
            subscription = await transport.subscribe(partition=0, offset=0)
            bodies: list[bytes] = []
            while len(bodies) < end:
                bodies += (await subscription.receive()).bodies
                subscription.grant()
            return bodies
        finally:
            await transport.close()

    async def events(self) -> list[dict[str, Any]]:
        """The same as objects."""
        return [json.loads(body) for body in await self.stored()]


@asynccontextmanager
async def serving(folder: Path, **settings: str) -> AsyncIterator[Serving]:
    """Serve a collector whose stream is below ``folder``, with these settings."""
    stream_url = f"embedded://{folder}/stream"
    environment = {"RABBITMQ_URL": stream_url, **collectors.SLOW_MACHINE, **settings}
    loaded = config.load(environment)
    collector = Collector(loaded)
    runner = collector.runner()
    await runner.setup()
    (address,) = await listen(runner, loaded.hosts, 0)
    work = asyncio.create_task(collector.run())
    try:
        async with asyncio.timeout(120):
            while not collector.intake.is_open:
                assert not work.done(), work
                await asyncio.sleep(0.01)
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Serving(collector, f"http://{address}", session, stream_url)
        assert not work.done(), work
    finally:
        await collector.finish()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await runner.cleanup()
        await collector.close()
