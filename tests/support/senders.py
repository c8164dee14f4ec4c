"""Senders of events to a collector: as gateways, they send again what was not answered 200."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping

import aiohttp
import psycopg

from tests.support.processes import Process, wait_for
from tests.support.usage_events import EventMill, array


class Sender:
    """Sends requests of ``size`` events at a rate, and keeps account of the answers."""

    def __init__(
        self, url: Callable[[], str], mill: EventMill, *, size: int = 1, attempt_s: float = 10.0
    ) -> None:
        self._url = url
        self._mill = mill
        self._size = size
        self._attempt_s = attempt_s
        self.answered = 0
        """Events that were answered 200."""
        self.unanswered: list[bytes] = []
        """Bodies that were refused, or whose answer did not come."""
        self.statuses: Counter[int] = Counter()
        """How often each status came. 0: there was no answer."""
        self.slowest_s = 0.0

    async def send(self, *, rate: float, seconds: float) -> None:
        """Send new events: ``rate`` requests a second, each when it is due."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200)) as session:
            started = time.monotonic()
            tasks = []
            for number in range(round(rate * seconds)):
                wait = started + number / rate - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                events = self._mill.events(self._size)
                body = array(events) if self._size > 1 else events[0]
                tasks.append(asyncio.create_task(self._attempt(session, body)))
            await asyncio.gather(*tasks)

    async def send_again(self, *, within_s: float = 300) -> None:
        """Send what was not answered 200, again and again until all of it is."""
        deadline = time.monotonic() + within_s
        async with aiohttp.ClientSession() as session:
            while self.unanswered:
                assert time.monotonic() < deadline, f"{len(self.unanswered)} bodies are not answered"
                bodies, self.unanswered = self.unanswered, []
                for first in range(0, len(bodies), 50):
                    await asyncio.gather(
                        *(self._attempt(session, body) for body in bodies[first : first + 50])
                    )
                if self.unanswered:
                    await asyncio.sleep(0.2)

    async def _attempt(self, session: aiohttp.ClientSession, body: bytes) -> None:
        started = time.monotonic()
        status = 0
        try:
            async with session.post(
                f"{self._url()}/v1/events",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._attempt_s),
            ) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        self.statuses[status] += 1
        if status == 200:
            self.answered += self._size
        else:
            self.unanswered.append(body)
        if status:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)


def counted(url: str) -> tuple[int, int, int]:
    """Accepted, duplicate and rejected events of all partitions."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT coalesce(sum(accepted), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,"
            " coalesce(sum(rejected), 0)::bigint FROM analytics.partitions"
        ).fetchone()
    assert row is not None
    return row


def check_counted_once(env: Mapping[str, str], sender: Sender, mill: EventMill, worker: Process) -> None:
    """Every event was answered 200 in the end, and counts once."""
    assert not sender.unanswered
    url = env["DATABASE_URL"]
    wait_for(
        lambda: counted(url)[0] >= mill.made, 120, lambda: f"{counted(url)} of {mill.made}\n{worker.log()}"
    )
    time.sleep(1)  # duplicates may still come
    assert (counted(url)[0], counted(url)[2]) == (mill.made, 0)
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT sum(invocations)::bigint FROM analytics.usage_hour").fetchone()
    assert row == (mill.made,)
