"""The race: the list of contenders, their runs in turn, the check of every answer, and the medians."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Final

from pipeline.bench import contenders, servers, workload
from pipeline.bench.answers import Answer, Outcome
from pipeline.bench.contenders import Task
from pipeline.processes import child

RUN_S_MAX: Final = 1800.0

Run = Callable[[Task], Outcome]


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender: its name for ``--only``, its description, and its needs."""

    name: str
    about: str
    run: Run
    _: KW_ONLY
    slow: bool = False
    """It takes one event at a time, so it gets only the head of the events."""
    module: str | None = None
    """The contender is skipped if this module cannot be imported."""
    stream: bool = False
    database: bool = False
    worker: bool = False
    """It runs ``spendstream worker``, of which there can be several processes."""


def _bytewax(name: str, about: str, run: Run) -> Contender:
    return Contender(name, about, run, slow=True, module="bytewax")


CONTENDERS: Final = (
    Contender("drain", "floor: chunks from the broker, unread", servers.drain, stream=True),
    Contender("decode", "floor: msgspec typed decode", contenders.decode),
    Contender("core", "ours: core alone, bytes to rows", contenders.core),
    Contender(
        "committed",
        "ours: broker to committed rows",
        servers.committed,
        stream=True,
        database=True,
        worker=True,
    ),
    Contender("duckdb", "DuckDB, one thread", contenders.duckdb, module="duckdb"),
    Contender("python", "plain Python loop, msgspec", contenders.python_loop, slow=True),
    Contender("faust", "plain Faust agent per event", contenders.faust_agent, slow=True),
    _bytewax("bytewax", "bytewax, windows for the same five tables", contenders.bytewax),
    _bytewax("bytewax-hourly", "bytewax, hourly windows alone", contenders.bytewax_hourly),
    _bytewax("bytewax-batch", "bytewax, sums at the end of the input", contenders.bytewax_batch),
    Contender(
        "insert",
        "insert 500 rows, then roll up in SQL",
        servers.insert_then_roll_up,
        slow=True,
        database=True,
    ),
)
BY_NAME: Final[Mapping[str, Contender]] = {contender.name: contender for contender in CONTENDERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a race."""

    shape: workload.Shape = field(default_factory=workload.Shape)
    repeat: int = 3
    copies: int = 5
    """The stream of contenders behind the broker holds this many copies of the minute of `shape`."""
    slow_events: int = 30_000
    partitions: tuple[int, ...] = (1,)
    """Numbers of partitions. Each contender behind the broker races once on each number."""
    processes: tuple[int, ...] = (1,)
    """Numbers of worker processes. The worker races once with each number.

    A number above the number of partitions is left out, because the other processes would only stand by.
    """
    only: tuple[str, ...] = tuple(BY_NAME)
    rabbitmq_url: str | None = None
    database_url: str | None = None


@dataclass(slots=True, kw_only=True)
class Result:
    """All runs of one contender on one layout. ``faults`` has the faults of these runs.

    ``partitions`` is None for a contender that reads no stream. ``processes`` is None for a contender that is
    no worker.
    """

    contender: Contender
    partitions: int | None = None
    processes: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: str | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        parts = [self.contender.name]
        if self.partitions is not None:
            parts.append(f"{self.partitions} partition{'s' * (self.partitions > 1)}")
        if self.processes is not None and self.processes > 1:
            parts.append(f"{self.processes} processes")
        return ", ".join(parts)

    def rate(self) -> float:
        """Median events a second."""
        return statistics.median(one.events / one.seconds for one in self.outcomes)

    def rate_by_cpu(self) -> float:
        """Median events a second of CPU time of the contender's own process."""
        return statistics.median(one.events / max(one.cpu_s, 1e-9) for one in self.outcomes)

    def spread(self) -> float:
        """(fastest - slowest) / median of the rates."""
        rates = [one.events / one.seconds for one in self.outcomes]
        return (max(rates) - min(rates)) / statistics.median(rates)


def why_not(contender: Contender, options: Options) -> str | None:
    """The reason why a contender cannot run here. None if it can."""
    if contender.module is not None and importlib.util.find_spec(contender.module) is None:
        return f"{contender.module} is not installed"
    if contender.stream and not options.rabbitmq_url:
        return "RABBITMQ_URL is not set"
    if contender.database and not options.database_url:
        return "DATABASE_URL is not set"
    return None


def line_up(options: Options) -> list[Result]:
    """An empty result for each row of the table."""
    results = []
    for name in options.only:
        contender = BY_NAME[name]
        for partitions in options.partitions if contender.stream else (None,):
            for processes in options.processes if contender.worker else (None,):
                if partitions is None or processes is None or processes <= partitions:
                    row = Result(contender=contender, partitions=partitions, processes=processes)
                    row.skipped = why_not(contender, options)
                    results.append(row)
    return results


def race(options: Options, *, echo: Callable[[str], None]) -> list[Result]:
    """Run the contenders in turn, ``repeat`` times over. Never raises for a contender that fails."""
    results = line_up(options)
    running = [result for result in results if not result.skipped]
    with tempfile.TemporaryDirectory(prefix="spendstream-bench-") as name, ExitStack() as streams:
        folder = Path(name)
        echo(f"making {options.shape.events} events")
        span_us = options.copies * workload.MINUTE_US
        whole = workload.make(options.shape, end_us=time.time_ns() // 1000 - span_us)
        tracks = {
            False: _Track(whole, folder / "events"),
            True: _Track(whole.head(options.slow_events), folder / "head"),
        }
        layouts = sorted({result.partitions for result in running if result.partitions is not None})
        stream_of = {
            partitions: streams.enter_context(_stream(whole, options, partitions, echo))
            for partitions in layouts
        }
        for number in range(options.repeat):
            for result in running:
                contender = result.contender
                echo(f"run {number + 1} of {options.repeat}: {result.label}")
                track = tracks[contender.slow]
                task, truth = track.task, track.workload.truth
                if result.partitions is not None:
                    truth = whole.truth_of(options.copies)
                    task = replace(
                        task,
                        events=len(whole.bodies) * options.copies,
                        rabbitmq_url=options.rabbitmq_url,
                        stream=stream_of[result.partitions],
                        partitions=result.partitions,
                        processes=result.processes or 1,
                    )
                if contender.database:
                    assert options.database_url is not None
                    with servers.database(options.database_url) as url:
                        _one(result, replace(task, database_url=url), truth)
                else:
                    _one(result, task, truth)
                if result.faults:
                    echo(f"  FAILED: {result.faults[-1]}")
    return results


def _one(result: Result, task: Task, truth: Answer) -> None:
    try:
        outcome = in_a_process_of_its_own(result.contender, task)
    except servers.BenchError as error:
        result.faults.append(str(error))
        return
    judge(result, outcome, truth)


def judge(result: Result, outcome: Outcome, truth: Answer) -> None:
    """Keep the outcome of a run, and the faults of its answer."""
    result.outcomes.append(outcome)
    if outcome.answer is not None:
        result.faults.extend(outcome.answer.faults(truth))


@dataclass(frozen=True, slots=True)
class _Track:
    """Events in a file, and the task that names it."""

    workload: workload.Workload
    file: Path

    def __post_init__(self) -> None:
        self.workload.save(self.file)

    @property
    def task(self) -> Task:
        return Task(
            file=self.file,
            events=len(self.workload.bodies),
            minute_us=self.workload.minute_us,
            folder=self.file.parent,
        )


@contextmanager
def _stream(
    whole: workload.Workload, options: Options, partitions: int, echo: Callable[[str], None]
) -> Iterator[str]:
    """Fill a stream with all copies, and delete it afterwards."""
    assert options.rabbitmq_url is not None
    url, stream = options.rabbitmq_url, servers.new_name()
    echo(f"publishing {options.copies * len(whole.bodies)} events to {partitions} partition(s)")
    try:
        asyncio.run(servers.fill(url, stream, map(whole.copy, range(options.copies)), partitions=partitions))
        yield stream
    finally:
        asyncio.run(servers.delete_stream(url, stream))


# --- processes ---------------------------------------------------------------------------------------


def in_a_process_of_its_own(contender: Contender, task: Task) -> Outcome:
    """Run a contender in a fresh Python, so that it inherits no memory and no imports of another.

    Raises:
        BenchError: the contender failed, or it took longer than `RUN_S_MAX`.
    """
    told, answer = task.folder / "task", task.folder / "outcome"
    told.write_bytes(pickle.dumps(task))
    answer.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            child.command_line("pipeline.bench.race", contender.name, str(told), str(answer)),
            env=child.environment(os.environ),
            capture_output=True,
            text=True,
            timeout=RUN_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise servers.BenchError(f"{contender.name} took more than {RUN_S_MAX:g} s") from None
    if done.returncode != 0:
        raise servers.BenchError(f"{contender.name}: {(done.stderr.strip() or 'no message')[-2000:]}")
    outcome: Outcome = pickle.loads(answer.read_bytes())
    return outcome


def main(arguments: Sequence[str]) -> None:
    name, told, answer = arguments
    task: Task = pickle.loads(Path(told).read_bytes())
    Path(answer).write_bytes(pickle.dumps(BY_NAME[name].run(task)))


if __name__ == "__main__":
    main(sys.argv[1:])
