"""Rivals that need no server: each turns bodies in stream order into exact hourly sums, in one process.

The clock covers reading bodies from memory (DuckDB: from the page cache), counting, and making the rows of
the answer. It does not cover imports and start-up, nor turning the rows into an `Answer`.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from pipeline.bench import workload
from pipeline.bench.answers import Answer, Key, Outcome, Sums

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

CHUNK_EVENTS: Final = 4096
"""A broker delivers about this many events at once to a reader that is behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The task of a contender. URLs are None for a contender that needs no server."""

    file: Path
    """The bodies, one a line."""
    events: int
    minute_us: int
    flush_events: int = 250_000
    rabbitmq_url: str | None = None
    stream: str = ""
    """A stream that holds the bodies of all copies."""
    partitions: int = 1
    """How many partitions the stream has."""
    processes: int = 1
    """How many processes the worker has."""
    database_url: str | None = None
    """An empty database of the run's own."""
    folder: Path = Path()
    """The folder for logs."""


@dataclass(slots=True)
class Clock:
    """Wall and CPU seconds of a block that `timed` has timed."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    laps: dict[str, float] = field(default_factory=dict)


@contextmanager
def timed() -> Iterator[Clock]:
    """Time a block, after a full garbage collection that freezes the surviving objects, mostly imports.

    Without the freeze, each process would once collect all imports, which takes 0.1 s, at some moment of its
    own. The collection would cost one contender a third of a short race, and the next contender nothing.
    Objects that a contender makes while it is timed are still collected on its own time.
    """
    clock = Clock()
    gc.collect()
    gc.freeze()
    started, cpu = time.perf_counter(), time.process_time()
    yield clock
    clock.seconds, clock.cpu_s = time.perf_counter() - started, time.process_time() - cpu


def outcome(events: int, clock: Clock, answer: Answer | None, **figures: float) -> Outcome:
    return Outcome(
        events=events,
        seconds=clock.seconds,
        cpu_s=clock.cpu_s,
        peak_mib=peak_mib(),
        answer=answer,
        figures=figures,
    )


def peak_mib(pid: int | None = None) -> float:
    """The peak of resident memory of a process and its children, in MiB. 0 if /proc does not tell.

    getrusage would not do: there a child begins with the peak of its parent.
    """
    folder = Path(f"/proc/{pid or 'self'}")
    try:
        status = (folder / "status").read_text()
        children = [
            int(child) for listed in folder.glob("task/*/children") for child in listed.read_text().split()
        ]
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return (int(found[1]) / 1024 if found else 0.0) + sum(map(peak_mib, children))


# --- the floor -----------------------------------------------------------------------------------


class Event(msgspec.Struct, gc=False):
    """The event with types and rules, as any Python service would declare it."""

    eventId: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
    orgId: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
    modelId: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
    occurredAt: str
    latencyMs: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    status: Literal["success", "error", "timeout", "throttled"]
    inputTokens: Annotated[int, msgspec.Meta(ge=0, le=10**12)]
    outputTokens: Annotated[int, msgspec.Meta(ge=0, le=10**12)]
    costEstimateCents: msgspec.Raw
    actorId: str | None = None
    clientId: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    errorCode: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    metadata: dict[str, str] | None = None

    def microcents(self) -> int:
        return int(Decimal(bytes(self.costEstimateCents).strip(b'"').decode()).scaleb(6))

    def at(self) -> datetime:
        return datetime.fromisoformat(self.occurredAt)

    def hour(self) -> int:
        return int(self.at().timestamp()) // 3600


def decode(task: Task) -> Outcome:
    """Decode typed JSON by msgspec, and do nothing else. No Python is faster."""
    bodies = workload.load_bodies(task.file)
    decoder = msgspec.json.Decoder(Event)
    with timed() as clock:
        for chunk in workload.chunks(bodies, CHUNK_EVENTS):
            try:
                [decoder.decode(body) for body in chunk]
            except msgspec.MsgspecError:
                for body in chunk:
                    try:
                        decoder.decode(body)
                    except msgspec.MsgspecError:
                        continue
    return outcome(len(bodies), clock, None)


# --- ours ------------------------------------------------------------------------------------------


def core(task: Task) -> Outcome:
    """`pipeline.core` alone: from bytes to the rows of six tables, with sketches, dedupe and dead letters."""
    from pipeline.common.heap import keep_freed_memory
    from pipeline.core.batch import Batch
    from pipeline.core.ledger import Ledger
    from pipeline.core.rules import Rules
    from pipeline.core.warm_up import warm_up

    keep_freed_memory()  # as a worker does
    bodies = workload.load_bodies(task.file)
    broker_us = task.minute_us + workload.MINUTE_US
    warm_up()
    ledger, batches = Ledger(Rules()), list[Batch]()
    with timed() as clock:
        for number, chunk in enumerate(workload.chunks(bodies, CHUNK_EVENTS)):
            first = number * CHUNK_EVENTS
            ledger.ingest(
                first_offset=first, next_offset=first + len(chunk), timestamp_us=broker_us, bodies=chunk
            )
            if ledger.unflushed_events >= task.flush_events:
                batches.append(_drain(ledger, clock))
        batches.append(_drain(ledger, clock))
    rows: dict[tuple[Key, int], Sums] = {}
    dead_letters = 0
    for batch in batches:
        rows.update(_hourly(batch.tables[1]))
        dead_letters += sum(letter.records for letter in batch.dead_letters)
    sums: dict[Key, Sums] = {}
    for (key, _), mine in rows.items():
        sums[key] = tuple(add_totals([*sums[key]], [*mine])) if key in sums else mine  # type: ignore[assignment]
    position, conflicts = ledger.position, ledger.tally.rejected["conflict"]
    assert dead_letters == position.rejected, "a dead letter is missing"
    assert sum(one[0] for one in sums.values()) == position.accepted, "rows and counters disagree"
    return outcome(
        len(bodies),
        clock,
        Answer(
            sums=sums,
            accepted=position.accepted,
            duplicate=position.duplicate + conflicts,
            conflict=conflicts,
            rejected=position.rejected - conflicts,
        ),
        drain_s=clock.laps["drain"],
        rows=float(sum(batch.row_count for batch in batches)),
        ledger_mib=ledger.memory_bytes / 2**20,
    )


def _drain(ledger: Any, clock: Clock) -> Any:
    assert not ledger.missing()
    started = time.perf_counter()
    batch = ledger.drain(now_us=0, caught_up=False)
    clock.laps["drain"] = clock.laps.get("drain", 0.0) + time.perf_counter() - started
    return batch


def _hourly(rows: Any) -> dict[tuple[Key, int], Sums]:
    """The sums of hour rows, by (org, model, hour) and rate class."""

    def texts(halves: Any) -> list[str]:
        return [str(UUID(int=high << 64 | low)) for high, low in halves.tolist()]

    assert rows.grain.name == "usage_hour"
    return {
        ((org, model, hour), rate_class): (m[0], m[2] + m[3] + m[4], m[5], m[6], m[7], m[8])
        for org, model, hour, rate_class, m in zip(
            texts(rows.org),
            texts(rows.model),
            rows.bucket.tolist(),
            rows.rate_class.tolist(),
            rows.measures.tolist(),
            strict=True,
        )
    }


# --- others -----------------------------------------------------------------------------------------


class Counting:
    """Dedupe and hourly sums in dictionaries, for the rivals that take one event at a time."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.sums: dict[Key, list[int]] = {}
        self.duplicate = self.rejected = 0
        self._decoder = msgspec.json.Decoder(Event)

    def add(self, body: bytes) -> None:
        try:
            event = self._decoder.decode(body)
        except msgspec.MsgspecError:
            self.rejected += 1
            return
        identity = event.orgId, event.eventId
        if identity in self.seen:
            self.duplicate += 1
            return
        self.seen.add(identity)
        total = self.sums.setdefault((event.orgId, event.modelId, event.hour()), [0] * 6)
        add_event(total, event)

    def answer(self) -> Answer:
        return Answer(
            sums={key: tuple(total) for key, total in self.sums.items()},  # type: ignore[misc]
            accepted=len(self.seen),
            duplicate=self.duplicate,
            rejected=self.rejected,
        )


def add_event(total: list[int], event: Event) -> list[int]:
    total[0] += 1
    total[1] += event.status != "success"
    total[2] += event.inputTokens
    total[3] += event.outputTokens
    total[4] += event.microcents()
    total[5] += event.latencyMs
    return total


def add_totals(total: list[int], other: list[int]) -> list[int]:
    return [mine + more for mine, more in zip(total, other, strict=True)]


def python_loop(task: Task) -> Outcome:
    """A plain Python loop, an event at a time: msgspec, a set, a dictionary."""
    bodies = workload.load_bodies(task.file)
    counting = Counting()
    with timed() as clock:
        for body in bodies:
            counting.add(body)
    return outcome(len(bodies), clock, counting.answer())


def faust_agent(task: Task) -> Outcome:
    """A plain Faust agent: ``async for event in stream`` over a channel, an event at a time."""
    import mode

    from pipeline.worker.agents import App

    bodies = workload.load_bodies(task.file)
    counting, clock = Counting(), Clock()

    async def race() -> None:
        nonlocal clock
        app = App("bench", broker="kafka://not-used", autodiscover=False, datadir=str(task.folder / "faust"))
        channel = app.channel(maxsize=1000)
        finished = asyncio.Event()

        async def agent(events: Any) -> None:
            left = len(bodies)
            async for body in events:
                counting.add(body)
                left -= 1
                if not left:
                    finished.set()

        app.agent(channel, name="bench", supervisor_strategy=mode.CrashingSupervisor)(agent)
        async with app:
            with timed() as clock:
                for body in bodies:
                    await channel.send(value=body)
                await finished.wait()

    asyncio.run(race())
    return outcome(len(bodies), clock, counting.answer())


def bytewax(task: Task) -> Outcome:
    """bytewax with the same tables as ours, but without sketches.

    The windows are minute, hour and day by model, and hour and day by model and client.
    """
    from bytewax import operators as op
    from bytewax.testing import TestingSink

    others: list[list[tuple[str, list[int]]]] = []

    def windows(fresh: Any) -> Any:
        for length, by_client in ((MINUTE, False), (DAY, False), (HOUR, True), (DAY, True)):
            rows: list[tuple[str, list[int]]] = []
            sums = _bytewax_window(fresh, length, by_client=by_client)
            op.output(f"out {length} {by_client}", sums, TestingSink(rows))
            others.append(rows)
        return _bytewax_window(fresh, HOUR)

    done = _bytewax(task, windows)
    assert done.answer is not None
    for rows in others:
        assert sum(total[0] for _, total in rows) == done.answer.accepted, "a table does not add up"
    return done


def bytewax_hourly(task: Task) -> Outcome:
    """bytewax with hourly windows by model alone."""
    return _bytewax(task, lambda fresh: _bytewax_window(fresh, HOUR))


def _bytewax_window(fresh: Any, length: timedelta, *, by_client: bool = False) -> Any:
    """A stream of (``org model window``, totals). A window sends its totals when event time has passed it."""
    from bytewax import operators as op
    from bytewax.operators import windowing

    def key(event: Event) -> str:
        return f"{event.orgId} {event.modelId}" + (f" {event.clientId}" if by_client else "")

    step = f"{length} {by_client}"
    clock = windowing.EventClock(Event.at, wait_for_system_duration=DAY)
    windower = windowing.TumblingWindower(length=length, align_to=datetime(1970, 1, 1, tzinfo=UTC))
    keyed = op.key_on(f"key {step}", fresh, key)
    sums = windowing.fold_window(
        f"sums {step}", keyed, clock, windower, lambda: [0] * 6, add_event, add_totals, ordered=False
    )
    return op.map(f"named {step}", sums.down, lambda one: (f"{one[0]} {one[1][0]}", one[1][1]))


def bytewax_batch(task: Task) -> Outcome:
    """bytewax without windows. The sums appear when the input ends, so on a live stream never."""
    from bytewax import operators as op

    def fold(fresh: Any) -> Any:
        by_row = op.key_on("by_row", fresh, lambda event: f"{event.orgId} {event.modelId} {event.hour()}")
        return op.fold_final("sums", by_row, lambda: [0] * 6, add_event)

    return _bytewax(task, fold)


def _bytewax(task: Task, sum_up: Callable[[Any], Any]) -> Outcome:
    """Run bytewax. ``sum_up`` turns the stream of fresh events into (``org model hour``, totals)."""
    from bytewax import operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    bodies = workload.load_bodies(task.file)
    decoder = msgspec.json.Decoder(Event)
    duplicate = rejected = 0
    found: list[tuple[str, list[int]]] = []

    def read(body: bytes) -> Event | None:
        nonlocal rejected
        try:
            return decoder.decode(body)
        except msgspec.MsgspecError:
            rejected += 1
            return None

    def first_seen(seen: set[str] | None, event: Event) -> tuple[set[str], Event | None]:
        nonlocal duplicate
        seen = seen if seen is not None else set()
        if event.eventId in seen:
            duplicate += 1
            return seen, None
        seen.add(event.eventId)
        return seen, event

    flow = Dataflow("bench")
    read_in = op.input("in", flow, TestingSource(bodies, batch_size=1000))
    events = op.filter_map("read", read_in, read)
    by_org = op.key_on("by_org", events, lambda event: event.orgId)
    fresh = op.filter_value(
        "fresh", op.stateful_map("dedupe", by_org, first_seen), lambda event: event is not None
    )
    op.output("out", sum_up(op.key_rm("values", fresh)), TestingSink(found))
    with timed() as clock:
        run_main(flow)
    sums: dict[Key, Sums] = {}
    for text, total in found:
        org, model, hour = text.split()
        sums[org, model, int(hour)] = tuple(total)  # type: ignore[assignment]
    accepted = sum(one[0] for one in sums.values())
    return outcome(
        len(bodies), clock, Answer(sums=sums, accepted=accepted, duplicate=duplicate, rejected=rejected)
    )


_DUCKDB: Final = """
    SELECT orgId, modelId, epoch(hour)::BIGINT // 3600, count(*), count(*) FILTER (status <> 'success'),
        sum(inputTokens)::BIGINT, sum(outputTokens)::BIGINT, (sum(cost) * 1000000)::BIGINT,
        sum(latencyMs)::BIGINT
    FROM (
        SELECT orgId, eventId, first(modelId) AS modelId, date_trunc('hour', first(occurredAt)) AS hour,
            first(status) AS status, first(inputTokens) AS inputTokens, first(outputTokens) AS outputTokens,
            first(costEstimateCents::DECIMAL(18, 6)) AS cost, first(latencyMs) AS latencyMs
        FROM read_json($file, format = 'newline_delimited', ignore_errors = true, columns = {
            eventId: 'UUID', orgId: 'UUID', modelId: 'UUID', occurredAt: 'TIMESTAMP', latencyMs: 'BIGINT',
            status: 'VARCHAR', inputTokens: 'BIGINT', outputTokens: 'BIGINT', costEstimateCents: 'VARCHAR'})
        WHERE eventId IS NOT NULL
        GROUP BY orgId, eventId
    )
    GROUP BY 1, 2, 3
"""


def duckdb(task: Task) -> Outcome:
    """DuckDB on one thread: dedupe and GROUP BY, without sketches or dead letters.

    Of several events with one id, the first in the file counts.
    """
    import duckdb as duck

    connection = duck.connect(config={"threads": 1})
    connection.execute("SET timezone = 'UTC'")
    with timed() as clock:
        rows = connection.execute(_DUCKDB, {"file": str(task.file)}).fetchall()
    sums: dict[Key, Sums] = {(str(row[0]), str(row[1]), row[2]): tuple(row[3:]) for row in rows}
    accepted = sum(one[0] for one in sums.values())
    return outcome(task.events, clock, Answer(sums=sums, accepted=accepted))


def as_sums(rows: Sequence[tuple[Any, ...]]) -> dict[Key, Sums]:
    """Sums by key, from the rows (org, model, hour, six sums) of a database."""
    return {(str(row[0]), str(row[1]), int(row[2])): tuple(map(int, row[3:])) for row in rows}  # type: ignore[misc]
