"""Server-sent events: writes what `api.live.hub` has to say to one connection, until the connection ends.

``event: usage`` carries the figures; its id says how far the org had come. ``event: freshness`` comes at
least every 5 s, whatever the database does, so that a client notices a stall. ``event: dropped`` is the last
event. It says why the connection ends: the client was too slow, the server stops, or the connection has had
its time. EventSource then connects again by itself, and the caller's credentials are checked again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from api.access.guard import ORG_ID
from api.answering import answers
from api.asking.questions import Parser
from api.config import FreshnessConfig, LiveConfig
from api.live.hub import Hub, Listener, State
from api.metrics import Metrics
from api.reading.freshness import freshness

log = logging.getLogger(__name__)

FRESHNESS_S: Final = 4.0
_ALIVE_S: Final = 0.5
"""How often a connection is checked for a client that has gone."""
_WRITE_BUFFER_BYTES: Final = 32 * 1024
_KERNEL_BUFFER_BYTES: Final = 64 * 1024
"""Of one connection. Without it the kernel keeps megabytes for a client that does not read."""
_DROPPED: Final = {
    "slow": "The client does not read as fast as messages come.",
    "shutdown": "The server stops.",
    "time": "This connection has had its time; connect again.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The handler of live figures, and what it works with. ``clock`` gives the time in UTC."""

    hub: Hub
    parser: Parser
    config: LiveConfig
    freshness: FreshnessConfig
    metrics: Metrics
    clock: Callable[[], datetime]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Write events to the client until the connection ends."""
        self.parser.nothing(request.query)
        org_id: UUID = request[ORG_ID]
        if request.method == "HEAD":
            return _response()
        listener = self.hub.join(org_id, lambda: request.transport is not None)
        self.metrics.live_clients(self.hub.count)
        try:
            state = await self.hub.current(org_id)  # once the answer has begun, there can be no 503
            response = _response()
            await response.prepare(request)
            if request.transport is not None:
                request.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
                _bound_kernel(request.transport)
            await self._follow(request, response, listener, state)
        finally:
            self.hub.leave(listener)
            self.metrics.live_clients(self.hub.count)
        return response

    async def _follow(
        self, request: web.Request, response: web.StreamResponse, listener: Listener, state: State
    ) -> None:
        loop = asyncio.get_running_loop()
        out = _Out(request, response, self.config.slow_s)
        end_at = loop.time() + self.config.duration_s
        try:
            await out.send(b"retry: 2000\n\n")
            if state.usage is not None and request.headers.get("Last-Event-ID") != state.event_id:
                await out.event("usage", state.usage, state.event_id)
            fresh_at = loop.time()
            while listener.ended is None:
                now = loop.time()
                if now >= end_at:
                    listener.end("time")
                    break
                if now >= fresh_at:
                    last = self.hub.last(listener.org_id) or state
                    await out.event("freshness", self._freshness(listener.org_id, last))
                    fresh_at = loop.time() + FRESHNESS_S
                if request.transport is None:
                    return
                found = await listener.take(max(0.0, min(fresh_at, end_at, now + _ALIVE_S) - loop.time()))
                if found is not None and found.usage is not None and found.is_after(state):
                    state = found
                    await out.event("usage", found.usage, found.event_id)
            assert listener.ended is not None
            self.metrics.live_dropped(listener.ended)
            await out.event(
                "dropped", answers.LiveDropped(reason=listener.ended, detail=_DROPPED[listener.ended])
            )
            await response.write_eof()
        except TimeoutError:
            self.metrics.live_dropped("slow")
            log.info("live_client_stuck", extra={"org_id": str(listener.org_id)})
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has gone

    def _freshness(self, org_id: UUID, state: State) -> answers.LiveFreshness:
        found = freshness(state.standings, self.clock(), self.freshness)
        return answers.LiveFreshness(org_id=org_id, org_name=state.org_name, **found.fields())


class _Out:
    """Writes with a time limit: TimeoutError when the client does not read for ``slow_s``."""

    def __init__(self, request: web.Request, response: web.StreamResponse, slow_s: float) -> None:
        self._request = request
        self._response = response
        self._slow_s = slow_s

    async def event(self, name: str, data: Any, event_id: str | None = None) -> None:
        head = f"event: {name}\n" + (f"id: {event_id}\n" if event_id is not None else "")
        await self.send(head.encode() + b"data: " + answers.encode(data) + b"\n\n")

    async def send(self, block: bytes) -> None:
        if self._request.transport is None:
            raise ConnectionResetError
        async with asyncio.timeout(self._slow_s):
            await self._response.write(block)


def _bound_kernel(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER_BYTES)


def _response() -> web.StreamResponse:
    return web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }
    )
