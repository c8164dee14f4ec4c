"""Having dead letters counted: examine them, ask the workers in one transaction, and wait for the outcomes.

If this process dies before the transaction is committed, nothing was asked for. If it dies afterwards, the
workers settle every letter all the same, and a second request finds the letters counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final
from uuid import UUID, uuid4

from pipeline.archive.lookup import Lookup
from pipeline.archive.rebuild import connected as snapshot
from pipeline.archive.reconcile import time_of
from pipeline.archive.store import Store
from pipeline.config import StreamConfig
from pipeline.core import replay
from pipeline.core.dedupe import SeenIds
from pipeline.core.events import Reader
from pipeline.core.judge import stored_hours_from
from pipeline.core.replay import CountedIds, Letter
from pipeline.core.rules import FUTURE_US, Rules
from pipeline.core.watermark import DAY_US, HOUR_US
from pipeline.dead_letters import stream, table
from pipeline.dead_letters.examine import REPLAY, Examined, Terms, examine
from pipeline.dead_letters.life import COUNTED_OUTCOMES
from pipeline.dead_letters.table import Chosen, Connection, StoredDeadLetter
from pipeline.sink import Claim
from pipeline.sink.timescale import TimescaleSink
from sql import queries

BLOCK: Final = 2000
"""Letters that are examined at once, to bound the memory."""
SHOWN: Final = 100
"""The most letters that a report names."""
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The database, the stream, the archive, and the rules."""

    database_url: str
    stream: StreamConfig | None
    """None: RABBITMQ_URL is not set, so no bytes can be read back."""
    store: Store | None
    """None: there is no archive."""
    window_us: int
    rollups_from_us: int
    silent_s: float = 15.0
    """A partition without a commit for this long has no owner."""


@dataclass(slots=True, kw_only=True)
class Report:
    """The outcome of a request for the chosen letters."""

    run: UUID
    dry: bool = False
    requested: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """The number of letters that were not asked for, by verdict."""
    waiting_before: int = 0
    """The chosen letters that an earlier request asked for and that still wait."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """The number of requested letters, by outcome. After a dry run: by the outcome that is expected."""
    waiting: int = 0
    """The requested letters that were not settled when the waiting ended."""
    lost: int = 0
    """The requested letters whose request is gone, because a failover to a standby lost it."""
    silent: list[str] = field(default_factory=list)
    """Why letters wait: partitions without an owner."""
    named: list[tuple[str, int, int, str, str]] = field(default_factory=list)
    """The first `SHOWN` letters that were not counted: (stream, offset, position, verdict, why)."""

    def name(self, letter: Examined, verdict: str, why: str) -> None:
        if len(self.named) < SHOWN:
            record = letter.record
            self.named.append((record.stream, record.offset, record.position, verdict, why))

    @property
    def unknown(self) -> int:
        """The number of letters for which an operator must decide (--accept)."""
        return self.left["unknown"] + self.outcomes["unknown"]


def request(
    setup: Setup,
    chosen: Chosen,
    *,
    org: UUID | None = None,
    limit: int | None = None,
    accept: bool = False,
    dry_run: bool = False,
) -> Report:
    """Ask the workers for every chosen letter that can be replayed, in one transaction.

    ``dry_run`` asks for nothing, and forecasts the outcomes.

    Raises:
        psycopg.Error, StoreError, TransportError: nothing was asked for.
    """
    report = Report(run=uuid4(), dry=dry_run)
    forecast = _Forecast(setup)
    with ExitStack() as stack:
        reading = stack.enter_context(snapshot(setup.database_url))
        writing = stack.enter_context(table.connected(setup.database_url))
        terms = terms_of(setup, reading, accept=accept)
        report.waiting_before = table.count_waiting(reading, chosen)
        letters = _examined(setup, reading, chosen, terms)
        if org is not None:
            letters = (
                letter for letter in letters if letter.event is not None and letter.event.org_id == org
            )
        letters = islice(letters, limit)
        while block := list(islice(letters, BLOCK)):
            for letter in block:
                if letter.verdict != REPLAY:
                    report.left[letter.verdict] += 1
                    report.name(letter, letter.verdict, letter.why)
            good = [letter for letter in block if letter.verdict == REPLAY]
            if dry_run:
                report.requested += len(good)
                for letter, outcome in zip(good, forecast.of(good, terms), strict=True):
                    report.outcomes[outcome] += 1
                    if outcome not in COUNTED_OUTCOMES:
                        report.name(letter, outcome, _WHY[outcome])
            else:
                report.requested += _ask(writing, report.run, good)
        if report.requested and not dry_run:
            detail = {**chosen.named(), "run": str(report.run), "letters": report.requested, "accept": accept}
            table.audit(writing, "dead_letters.replay", detail, org=org)
    return report


def wait(setup: Setup, report: Report, *, timeout_s: float) -> None:
    """Wait until the workers have settled the letters of a run, and enter the outcomes in the report.

    Raises `psycopg.Error`: the database is away; the workers settle the letters all the same.
    """
    deadline = time.monotonic() + timeout_s
    with table.connected(setup.database_url) as connection:
        connection.autocommit = True
        run = {"run": report.run}
        while True:
            counts = dict(connection.execute(_REPLAYS["of_run"], run).fetchall())
            report.waiting = counts.pop(None, 0)
            report.outcomes = Counter(counts)
            report.lost = report.requested - report.waiting - report.outcomes.total()
            if not report.waiting or time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
        if report.waiting:
            for partition, name, silent_s in connection.execute(_REPLAYS["owners"], run).fetchall():
                if silent_s > setup.silent_s:
                    silence = f"nothing committed for {silent_s:.0f} s"
                    report.silent.append(f"no worker owns partition {partition} ({name}): {silence}")
        rows = connection.execute(_REPLAYS["left_of_run"], {**run, "limit": SHOWN}).fetchall()
        for name, offset, position, outcome in rows:
            if outcome is not None and len(report.named) < SHOWN:
                report.named.append((name, offset, position, outcome, _WHY[outcome]))


def terms_of(setup: Setup, reading: Connection, *, accept: bool = False) -> Terms:
    """The facts by which letters are judged now. Raises `psycopg.Error`."""
    standing = reading.execute(_REPLAYS["standing"]).fetchall()
    return Terms(
        rollups_from_us=setup.rollups_from_us,
        ids_from={
            partition: stored_hours_from(broker_us, setup.window_us, ids_from_hour)
            for partition, _, broker_us, ids_from_hour in standing
        },
        window_us=setup.window_us,
        live={
            partition: range(
                max((broker_us - setup.window_us) // HOUR_US, ids_from_hour),
                (broker_us + FUTURE_US) // HOUR_US + 1,
            )
            for partition, _, broker_us, ids_from_hour in standing
        },
        lookup=None if setup.store is None else Lookup(reading, setup.store),
        accept=accept,
    )


def examined(setup: Setup, records: Sequence[StoredDeadLetter], terms: Terms) -> list[Examined]:
    """The verdicts on some letters. Bytes that a flood left out are read back from the stream.

    Raises:
        psycopg.Error, StoreError, TransportError: the database, the archive or the stream is away.
    """
    return examine(records, _read_back(setup, records), terms)


def forecast(setup: Setup, letter: Examined, terms: Terms) -> str:
    """The outcome to expect for one letter that may be replayed, as far as the committed ids tell."""
    return _Forecast(setup).of([letter], terms)[0]


def _examined(setup: Setup, reading: Connection, chosen: Chosen, terms: Terms) -> Iterator[Examined]:
    records = table.uncounted(reading, chosen)
    while block := list(islice(records, BLOCK)):
        yield from examined(setup, block, terms)


def _read_back(setup: Setup, records: Sequence[StoredDeadLetter]) -> stream.Found:
    wanted: dict[str, set[int]] = {}
    for record in records:
        if record.body is None and record.offset >= 0:
            wanted.setdefault(record.stream, set()).add(record.offset)
    if not wanted or setup.stream is None:
        return {}
    return asyncio.run(stream.read_back(setup.stream, wanted))


def _ask(writing: Connection, run: UUID, letters: Sequence[Examined]) -> int:
    """Ask for letters; the number asked for. Letters that another run has asked for are left to that run."""
    with writing.cursor() as cursor:
        cursor.executemany(_REPLAYS["request"], [_row(run, letter) for letter in letters])
        return max(cursor.rowcount, 0)


def _row(run: UUID, letter: Examined) -> Mapping[str, Any]:
    record = letter.record
    return {
        "partition": record.partition,
        "offset": record.offset,
        "position": record.position,
        "run": run,
        "broker_time": time_of(letter.broker_us),
        "evidence": letter.evidence,
        "absent_to": time_of(letter.absent_to_hour * HOUR_US) if letter.absent_to_hour else None,
        "body": letter.body if record.body is None else None,
    }


class _Forecast:
    """Forecasts the outcomes of letters from committed ids and sums; later letters see earlier ones."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._readers: dict[int, Reader] = {}
        self._accepted: dict[int, list[CountedIds]] = {}
        self._sums: dict[tuple[int, UUID, int], tuple[int, int, int, int]] = {}
        """By (partition, org, day): tokens in, tokens out, cost and latency, with the forecast events."""

    def of(self, letters: Sequence[Examined], terms: Terms) -> list[str]:
        outcomes: dict[int, str] = {}
        for partition in {letter.record.partition for letter in letters}:
            places = [i for i, letter in enumerate(letters) if letter.record.partition == partition]
            mine = [letters[i] for i in places]
            outcomes.update(zip(places, self._of_partition(partition, mine, terms), strict=True))
        return [outcomes[i] for i in range(len(letters))]

    def _of_partition(self, partition: int, letters: Sequence[Examined], terms: Terms) -> list[str]:
        live = terms.live.get(partition, range(0))
        opened = replay.open_letters(
            [
                Letter(
                    offset=letter.record.offset,
                    position=letter.record.position,
                    broker_us=letter.broker_us,
                    evidence=letter.evidence,
                    absent_to_hour=letter.absent_to_hour,
                    reason=letter.record.reason,
                    body=letter.body,
                )
                for letter in letters
            ],
            self._readers.setdefault(partition, Reader()),
            live_from=live.start,
            stored_from=terms.ids_from.get(partition, 0),
            window_us=terms.window_us,
            future_us=FUTURE_US,
            looked_up_to=live.stop,  # the database also has the ids that a worker has in memory
        )
        counted = asyncio.run(self._counted(letters[0].record.stream, partition, opened))
        before = self._accepted.setdefault(partition, [])
        known = CountedIds.join([counted, *before])
        settled = replay.settle(
            opened, replay.judge(opened, known, SeenIds(), future_us=FUTURE_US), at_offset=0
        )
        settled = self._where_there_is_room(partition, letters, settled)
        before.append(CountedIds.of_settled(settled))
        return [one.outcome for one in settled]

    def _where_there_is_room(
        self, partition: int, letters: Sequence[Examined], settled: Sequence[replay.Settled]
    ) -> list[replay.Settled]:
        """Make an event invalid if a sum of its org's day has no room, as `pipeline.core.room` does."""
        judged = []
        for letter, one in zip(letters, settled, strict=True):
            if one.outcome == "accepted" and letter.event is not None:
                e = letter.event
                day = partition, e.org_id, e.occurred_us // DAY_US
                brings = e.input_tokens, e.output_tokens, e.cost_microcents or 0, e.latency_ms
                a, b, c, d = (x + y for x, y in zip(self._day_sums(day), brings, strict=True))
                if max(a, b, c, d) > Rules().sum_max:
                    one = replace(one, outcome="invalid")
                else:
                    self._sums[day] = a, b, c, d
            judged.append(one)
        return judged

    def _day_sums(self, day: tuple[int, UUID, int]) -> tuple[int, int, int, int]:
        if day not in self._sums:
            partition, org, number = day
            values = {"partition": partition, "org_id": org, "day": time_of(number * DAY_US)}
            with table.connected(self._setup.database_url) as connection:
                row = connection.execute(_REPLAYS["day_sums"], values).fetchone()
                assert row is not None
                self._sums[day] = (int(row[0]), int(row[1]), int(row[2]), int(row[3]))
        return self._sums[day]

    async def _counted(self, name: str, partition: int, opened: replay.Opened) -> CountedIds:
        sink = TimescaleSink(self._setup.database_url, application_name="spendstream-dead-letters")
        try:
            return await sink.counted(Claim(name, partition, 0), opened)
        finally:
            await sink.close()


_WHY: Final = {
    "conflict": "its id was counted before with another payload",
    "unknown": "its ids were dropped meanwhile, and nothing tells whether it was counted: --accept counts it",
    "future": "more than 5 minutes after the broker received it",
    "malformed": "not an event",
    "invalid": "breaks a rule of the wire contract, or the sums of its bucket have no room",
    "gone": "its bytes are gone",
}
"""Why a letter was not counted, by outcome, in words for people."""

_REPLAYS: Final = queries.load("replays")
