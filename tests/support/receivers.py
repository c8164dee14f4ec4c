"""Endpoints of webhooks: they keep what comes, and answer as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Any]


@dataclass(slots=True)
class Receiver:
    """One server on loopback. ``answers`` has by path what it answers; every other path is taken (200)."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    taken: dict[str, list[tuple[Mapping[str, str], str]]] = field(default_factory=dict)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def wait(self, path: str, count: int = 1) -> None:
        """Return once so many requests have come to the path."""
        async with asyncio.timeout(60):
            while len(self.taken.get(path, ())) < count:
                self._came.clear()
                await self._came.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.taken.setdefault(request.path, []).append((dict(request.headers), body))
        self._came.set()
        answer = self.answers.get(request.path)
        found = web.Response() if answer is None else answer(request)
        if asyncio.iscoroutine(found):
            found = await found
        assert isinstance(found, web.StreamResponse)
        return found


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver at work."""
    one = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.port = runner.addresses[0][1]
    try:
        yield one
    finally:
        await runner.cleanup()
