"""Where admitted events go: to the stream in batches, or to the spool while the broker is away.

One task publishes. A batch is whatever waits when the batch before is confirmed, and at least `PACE_S` after
it was sent if that one had events of several requests. So batches grow with the load, and a lone event waits
for nobody. Each request has one answer, after the broker has confirmed all its
events. The events that wait are bounded by `pipeline.collector.in_work`, which the requests hold until they
have their answers.

A request waits for the broker for a bounded time. After that its events go to the spool, or the request gets
`Away`: the broker may store the events all the same, and the worker counts them once if they come again.
While the broker is known to be away, nobody waits for it.

Another task drains the spool: it publishes the oldest records in order, and lets the spool delete them once
they are confirmed. A record that is too large for the broker is set aside, so that it stops none behind it. A
third task looks for a broker that has gone while nobody sends: readiness then says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pipeline.collector.config import SPOOL_NEARLY_FULL
from pipeline.collector.spool import Spool, SpoolError, SpoolFull, Taken
from pipeline.common import traces
from pipeline.common.backoff import Backoff, ExponentialBackoff
from pipeline.common.seldom import Seldom
from pipeline.transports import Publisher, Transport, TransportError

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 2**20
BATCH_EVENTS: Final = 4096
"""A batch is closed at the first of these bounds."""
PACE_S: Final = 0.005
"""A batch of several requests is followed by the next one after so long at the earliest.

A batch costs broker and worker 0.6 ms of CPU, however few events it has. Example: 500 single events a second
made 400 batches a second without this pause, and make 160 with it."""
_DRAIN_BYTES: Final = 2**18
_DRAIN_RECORDS: Final = 1024
"""The spool's records join the batches in such portions, so that the events of requests wait little for
them."""
_KEEP_S: Final = 5.0
"""How long a request waits for the spool's disk."""
_LOOK_S: Final = 1.0
_LOOK_PATIENCE_S: Final = 5.0
"""How often a quiet stream is looked at, and how long the broker may take to answer."""
SILENT: Final = "the broker does not confirm in time"
SPOOL_FULL: Final = "the collector's spool is full (COLLECTOR_SPOOL_BYTES_MAX)"
SPOOL_FAILS: Final = "the disk of the collector's spool fails"

Went = Literal["stream", "spool"]


class Away(Exception):
    """The events are neither confirmed nor kept, and the sender should send them again. The text says why.

    ``spool`` says why the spool has not kept them, in words for the sender; '' if there is no spool.
    """

    def __init__(self, why: str, *, spool: str = "") -> None:
        super().__init__(why)
        self.spool = spool


class Refused(Away):
    """The broker has become another one meanwhile, and takes no body so large."""


@dataclass(slots=True, eq=False)
class _Parcel:
    """The events of one request, or of one portion of the spool, until they are confirmed."""

    bodies: Sequence[bytes]
    keys: Sequence[str]
    confirmed: asyncio.Future[None]
    sent: int = 0
    """How many of the bodies are in a batch that was sent."""
    trace: traces.Context | None = field(default_factory=traces.context)
    """The place of the request in its trace."""

    @property
    def given_up(self) -> bool:
        return self.confirmed.done()


@dataclass(slots=True)
class _Batch:
    bodies: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    parcels: list[_Parcel] = field(default_factory=list)

    def traces(self) -> list[traces.Context]:
        """The places of the first requests in their traces; a span has no more links."""
        if not traces.is_on():
            return []
        return [one.trace for one in self.parcels[: traces.LINKS_MAX] if one.trace is not None]


class Outlet:
    """See the module. `run` does the work; requests call `send`."""

    def __init__(
        self,
        transport: Transport,
        *,
        patience_s: float,
        spool: Spool | None = None,
        confirmed: Callable[[float], None] = lambda seconds: None,
        new_backoff: Callable[[], Backoff] = ExponentialBackoff,
        look_s: float = _LOOK_S,
    ) -> None:
        """``patience_s`` is how long a request waits for the broker, before its events go to the spool or
        back.

        ``confirmed`` is told the seconds from the sending of each batch to its confirmation.
        """
        self._transport = transport
        self._patience_s = patience_s
        self._spool = spool
        self._confirmed = confirmed
        self._new_backoff = new_backoff
        self._backoff = new_backoff()
        self._waiting: deque[_Parcel] = deque()
        self._news = asyncio.Event()
        self._publisher: Publisher | None = None
        self._in_use = asyncio.Event()
        """Set while there is a publisher."""
        self._away_since: float | None = None
        self._look_s = look_s
        self._seldom = Seldom()
        self._gone: TransportError | None = None
        """What `_look` has found out about the stream; None: nothing is wrong."""
        self._alone = 0
        """So many of the next parcels get batches of their own, because a batch was refused as a whole."""
        self._next_at = 0.0
        """The next batch is sent no earlier (of the loop's clock)."""
        self._sent_at: float | None = None
        """When the batch in flight was sent (of the loop's clock)."""
        self.body_bytes_max: int | None = None
        """The size of the largest body that the broker takes, as far as is known; None: nothing is known."""
        self.error: str | None = "not connected yet"
        """Why the stream cannot be used; None: it can."""

    # --- for requests -----------------------------------------------------------------------------

    async def send(self, bodies: Sequence[bytes], keys: Sequence[str]) -> Went:
        """Return when the events are safe: where they went.

        ``keys`` has the routing key of each body, its orgId.

        Raises:
            Away: they are not safe. Some may be stored all the same.
        """
        if not bodies:
            return "stream"
        if not self.is_stuck:
            parcel = self._enqueue(bodies, keys)
            try:
                async with asyncio.timeout(self._patience_s):
                    await parcel.confirmed
                return "stream"
            except TimeoutError:
                pass
        if self._spool is None:
            raise Away(self.error or SILENT)
        try:
            async with asyncio.timeout(_KEEP_S):
                await self._spool.append(list(zip(keys, bodies, strict=True)))
        except (SpoolError, TimeoutError) as error:
            fault = str(error) or f"the spool's disk did not answer in {_KEEP_S:g} s"
            self._say_not_kept(error, fault, len(bodies))
            spool = SPOOL_FULL if isinstance(error, SpoolFull) else SPOOL_FAILS
            raise Away(f"{self.error or SILENT}; {fault}", spool=spool) from error
        self._say_nearly_full(self._spool)
        return "spool"

    def _say_not_kept(self, error: Exception, fault: str, events: int) -> None:
        """Say that a sender got these events back, at most once a minute, with all since the line before."""
        kind = "spool_full" if isinstance(error, SpoolFull) else "spool_not_written"
        refused = self._seldom.count(kind, events)
        if refused is not None:
            facts = {"error": fault, "events_refused": refused, "stream_error": self.error or SILENT}
            remedy = {"remedy": "bring the broker back, or raise COLLECTOR_SPOOL_BYTES_MAX"}
            log.error(kind, extra=facts | (remedy if kind == "spool_full" else {}))

    def _say_nearly_full(self, spool: Spool) -> None:
        if spool.bytes >= SPOOL_NEARLY_FULL * spool.bytes_max and self._seldom.count("spool_nearly_full"):
            facts = {"bytes": spool.bytes, "bytes_max": spool.bytes_max, "stream_error": self.error or SILENT}
            log.warning("spool_nearly_full", extra=facts)

    @property
    def is_stuck(self) -> bool:
        """Has the broker been away, or silent about a batch, for longer than a request waits?"""
        now = asyncio.get_running_loop().time()
        return any(
            since is not None and now - since > self._patience_s
            for since in (self._away_since, self._sent_at)
        )

    # --- the work ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish and drain until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_all())
            tasks.create_task(self._look())
            if self._spool is not None:
                tasks.create_task(self._drain(self._spool))

    async def _publish_all(self) -> None:
        try:
            while True:
                self._publisher, self._gone = await self._connected(), None
                self.body_bytes_max = self._publisher.body_bytes_max
                self._in_use.set()
                try:
                    while True:
                        await self._publish_next(self._publisher)
                except TransportError as error:
                    self._lost(error)
                finally:
                    publisher, self._publisher = self._publisher, None
                    self._in_use.clear()
                    with suppress(TransportError):
                        await publisher.close()
        finally:
            self._sent_at = None

    async def _connected(self) -> Publisher:
        """A publisher, as soon as there is one."""
        while True:
            try:
                await self._transport.open()
                publisher = await self._transport.publisher()
            except TransportError as error:
                self._lost(error)
                await self._backoff.wait()
            else:
                if self.error is not None:
                    log.info("stream_connected", extra={"stream": self._transport.stream})
                self.error, self._away_since = None, None
                return publisher

    def _lost(self, error: TransportError) -> None:
        if self.error != str(error):
            log.warning("stream_away", extra={"stream": self._transport.stream, "error": str(error)})
        self.error = str(error)
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()

    async def _publish_next(self, publisher: Publisher) -> None:
        """Publish one batch of what waits, and answer for it. If that fails, its events wait again."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
            if self._gone is not None:
                raise self._gone
        clock = asyncio.get_running_loop().time
        if (pause_s := self._next_at - clock()) > 0:
            await asyncio.sleep(pause_s)
        batch = self._next_batch()
        if not batch.bodies:
            return
        self._sent_at = clock()
        self._next_at = self._sent_at + PACE_S if len(batch.parcels) > 1 else 0.0
        try:
            with traces.span("publish batch", "producer", links=batch.traces(), events=len(batch.bodies)):
                await publisher.publish(batch.bodies, batch.keys)
        except TransportError:
            self._wait_again(batch)
            raise
        except ValueError as error:  # a body is larger than the broker's frames
            self._refuse(batch, error)
            return
        finally:
            sent_at, self._sent_at = self._sent_at, None
        self._backoff.reset()
        self._confirmed(clock() - sent_at)
        for parcel in batch.parcels:
            if parcel.sent == len(parcel.bodies) and not parcel.given_up:
                parcel.confirmed.set_result(None)

    def _next_batch(self) -> _Batch:
        """Take events out of what waits. A parcel that does not fit stays in front with its rest."""
        batch = _Batch()
        size = 0
        while self._waiting and not (self._alone and batch.parcels):
            parcel = self._waiting[0]
            if not parcel.given_up:
                batch.parcels.append(parcel)
                end = self._fitting(parcel, size, len(batch.bodies))
                bodies = parcel.bodies[parcel.sent : end]
                batch.bodies += bodies
                batch.keys += parcel.keys[parcel.sent : end]
                size += sum(map(len, bodies))
                parcel.sent = end
                if end < len(parcel.bodies):
                    break
            self._waiting.popleft()
        self._alone = max(0, self._alone - 1)
        return batch

    @staticmethod
    def _fitting(parcel: _Parcel, size: int, events: int) -> int:
        """The end of the bodies of a parcel that fit in a batch; at least one fits in an empty batch."""
        end = parcel.sent
        while end < len(parcel.bodies) and events < BATCH_EVENTS:
            size += len(parcel.bodies[end])
            if events and size > BATCH_BYTES:
                break
            events += 1
            end += 1
        return end

    def _wait_again(self, batch: _Batch) -> None:
        """Put the parcels of a batch in front again, whole: nobody knows which events are stored."""
        for parcel in reversed(batch.parcels):
            parcel.sent = 0
            if not self._waiting or self._waiting[0] is not parcel:
                self._waiting.appendleft(parcel)

    def _refuse(self, batch: _Batch, error: ValueError) -> None:
        """Fail the one parcel of a batch. If there are several, find out which one it was."""
        if len(batch.parcels) > 1:
            self._wait_again(batch)
            self._alone = len(batch.parcels)
            return
        log.error("stream_refuses", extra={"stream": self._transport.stream, "error": str(error)})
        for parcel in batch.parcels:
            if not parcel.given_up:
                parcel.confirmed.set_exception(Refused(f"the broker takes no such event: {error}"))

    def _enqueue(self, bodies: Sequence[bytes], keys: Sequence[str]) -> _Parcel:
        parcel = _Parcel(bodies, keys, asyncio.get_running_loop().create_future())
        self._waiting.append(parcel)
        self._news.set()
        return parcel

    async def _look(self) -> None:
        """Find out that the broker has gone, where no batch does."""
        while True:
            await asyncio.sleep(self._look_s)
            if self._publisher is None or self._sent_at is not None or self._waiting:
                continue
            publisher = self._publisher
            try:
                async with asyncio.timeout(_LOOK_PATIENCE_S):
                    await self._transport.ping()
            except (TransportError, TimeoutError) as error:
                if publisher is self._publisher:
                    self._gone = TransportError(str(error) or "the broker does not answer")
                    self._news.set()

    async def _drain(self, spool: Spool) -> None:
        """Publish the spool's records, a portion at a time. While the broker is away, the portion waits."""
        backoff = self._new_backoff()
        while True:
            await self._in_use.wait()
            try:
                taken = await spool.oldest(bytes_max=_DRAIN_BYTES, records_max=_DRAIN_RECORDS)
            except SpoolError as error:
                log.error("spool_not_read", extra={"error": str(error)})
                await backoff.wait()
                continue
            try:
                await self._publish_taken(spool, taken)
            except (Refused, SpoolError) as error:
                log.error("spool_not_drained", extra={"error": str(error)})
                spool.put_back(taken)
                await backoff.wait()
            else:
                spool.published(taken)
                backoff.reset()

    async def _publish_taken(self, spool: Spool, taken: Taken) -> None:
        """Publish the records of a portion. Those that are too large for the broker are set aside first.

        Raises:
            SpoolError: they cannot be set aside now.
            Refused: the broker became another one meanwhile, which takes even smaller bodies alone.
        """
        assert self.body_bytes_max is not None
        records = list(zip(taken.keys, taken.bodies, strict=True))
        fitting = [record for record in records if len(record[1]) <= self.body_bytes_max]
        if len(fitting) < len(records):
            large = [record for record in records if len(record[1]) > self.body_bytes_max]
            path = await spool.set_aside(large, at=taken.oldest_at)
            _say_too_large(path, [len(body) for _, body in large], self.body_bytes_max)
        if fitting:
            await self._enqueue([body for _, body in fitting], [key for key, _ in fitting]).confirmed


def _say_too_large(path: Path, sizes: Sequence[int], body_bytes_max: int) -> None:
    log.error(
        "spool_records_too_large",
        extra={
            "file": str(path),
            "records": len(sizes),
            "largest_bytes": max(sizes),
            "body_bytes_max": body_bytes_max,
            "effect": "these events are not counted; the file keeps them, and all others are published",
            "remedy": f"raise stream.frame_max of the broker by {max(sizes) - body_bytes_max} or more, and"
            " start the collector again: it publishes the file",
        },
    )
