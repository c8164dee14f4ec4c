"""Trace replay: reading the CSV, and events that are a function of file, row and seed."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.traffic import trace
from pipeline.traffic.generator import BLOCK, Shares, World
from tests.support import traces
from tests.support.oracle import Accepted, Event, Oracle, Rejected, Rules, decode

NOW_US = 1_795_435_200_000_000
HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def file(tmp_path: Path, *rows: str, end: str = "\r\n") -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER + end.join(rows).encode())
    return path


def bodies(read: trace.Trace, **arguments: Any) -> list[bytes]:
    given = {"seed": 0, **arguments}
    world = given.pop("world", World())
    return [body for _, block in trace.events(read, world, **given) for body in block]


def decoded(all_bodies: Sequence[bytes]) -> list[Event]:
    events = [decode(body) for body in all_bodies]
    return [event for event in events if isinstance(event, Event)]


ROW = "2023-11-16 18:17:03.9799600,4808,10"
ROW_US = 1_700_158_623_979_960


def test_rows_are_read_and_times_are_cut_to_the_microsecond(tmp_path: Path) -> None:
    read = trace.read(file(tmp_path, ROW, "2023-11-16 18:17:03.9799609,1,0", "2023-11-16 18:17:03,0,2"))
    assert read.times_us.tolist() == [ROW_US, ROW_US, ROW_US // 1_000_000 * 1_000_000]
    assert read.input_tokens.tolist() == [4808, 1, 0]
    assert read.output_tokens.tolist() == [10, 0, 2]


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_line_ends_do_not_matter(tmp_path: Path, end: str, last: str) -> None:
    rows = [ROW, ROW, *([""] if last else [])]
    assert len(trace.read(file(tmp_path, *rows, end=end))) == 2


def test_a_header_alone_is_an_empty_trace(tmp_path: Path) -> None:
    read = trace.read(file(tmp_path))
    assert len(read) == 0
    assert bodies(read) == []
    assert trace.shift_us(read, end_us=5) == 0
    assert trace.window_needed_s(read, now_us=NOW_US) == 0
    assert trace.end_us(read, now_us=NOW_US, speed=1) == NOW_US


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:17:03.97", "expected 3 columns, found 1"),
        (ROW + ",7", "expected 3 columns, found 4"),
        ("16.11.2023 18:17,1,2", "TIMESTAMP must look like"),
        ("2023-02-30 18:17:03,1,2", "no date"),
        ("2023-11-16 25:17:03,1,2", "no date"),
        ("1969-11-16 05:17:03,1,2", "before 1970"),
        ("2023-11-16 18:17:03,x,2", "ContextTokens must be a whole number"),
        ("2023-11-16 18:17:03,1,-2", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:17:03,1,1.5", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:17:03,1,", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:17:03,1,1000000000001", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:17:03,١,2", "ContextTokens must be a whole number"),
        ("", "empty line in the middle"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(trace.TraceError, match=rf"trace\.csv, line 3: .*{message}"):
        trace.read(file(tmp_path, ROW, row, ROW))


def test_a_wrong_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b,c\n")
    with pytest.raises(trace.TraceError, match="line 1: expected the header TIMESTAMP,"):
        trace.read(path)
    path.write_bytes(b"")
    with pytest.raises(trace.TraceError, match="line 1"):
        trace.read(path)


def test_a_file_that_is_not_text_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(HEADER + ROW.encode() + b"\r\n\xff\xfe")
    with pytest.raises(trace.TraceError, match="line 3: not UTF-8"):
        trace.read(path)


def many(tmp_path: Path, n: int) -> Path:
    return file(
        tmp_path, *(f"2023-11-16 18:{i // 3600 % 60:02d}:{i % 60:02d}.5,{i},{i % 700}" for i in range(n))
    )


def test_the_same_file_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    path = many(tmp_path, BLOCK + 50)
    assert bodies(trace.read(path)) == bodies(trace.read(path))
    assert bodies(trace.read(path)) != bodies(trace.read(path), seed=1)


def test_ids_differ_between_files_seeds_and_rows(tmp_path: Path) -> None:
    path = many(tmp_path, 300)
    one, two = decoded(bodies(trace.read(path))), decoded(bodies(trace.read(path), seed=1))
    path.write_bytes(path.read_bytes() + b"\r\n" + ROW.encode())
    three = decoded(bodies(trace.read(path)))
    assert len({event.event_id for event in (*one, *two, *three)}) == 300 + 300 + 301


def test_a_limit_gives_the_first_of_the_same_events(tmp_path: Path) -> None:
    path = many(tmp_path, BLOCK + 500)
    whole = bodies(trace.read(path))
    for limit in (0, 1, 100, BLOCK, BLOCK + 7):
        assert bodies(trace.read(path, limit=limit)) == whole[:limit]


def test_publishing_twice_changes_no_figure_even_with_shifted_times(tmp_path: Path) -> None:
    read = trace.read(many(tmp_path, 500))
    oracle = Oracle()
    for run in range(2):
        shift_us = trace.shift_us(read, end_us=NOW_US + run * 60_000_000)
        for body in bodies(read, shift_us=shift_us):
            outcome = oracle.feed(oracle.next_offset, NOW_US + 60_000_000, body)
            assert outcome == Rejected("conflict", ("eventId",)) if run else isinstance(outcome, Accepted)
    assert (oracle.accepted, oracle.rejected) == (500, 500)


def test_the_shift_ends_the_trace_now(tmp_path: Path) -> None:
    read = trace.read(many(tmp_path, 100))
    events = decoded(bodies(read, shift_us=trace.shift_us(read, end_us=NOW_US)))
    assert max(event.occurred_us for event in events) == NOW_US
    spans = [e.occurred_us - int(t) for e, t in zip(events, read.times_us, strict=True)]
    assert len(set(spans)) == 1


@pytest.mark.parametrize(
    ("speed", "first_s", "last_s"), [(0, -60, 0), (1, 0, 60), (10, -54, 6), (0.5, 0, 60)]
)
def test_no_event_is_published_before_it_occurs(
    tmp_path: Path, speed: float, first_s: int, last_s: int
) -> None:
    read = trace.read(file(tmp_path, "2023-11-16 18:00:00,1,1", "2023-11-16 18:01:00,1,1"))
    shift_us = trace.shift_us(read, end_us=trace.end_us(read, now_us=NOW_US, speed=speed))
    assert [e.occurred_us - NOW_US for e in decoded(bodies(read, shift_us=shift_us))] == [
        first_s * 1_000_000,
        last_s * 1_000_000,
    ]


def test_the_window_needed_for_original_times_is_enough(tmp_path: Path) -> None:
    read = trace.read(many(tmp_path, 10))
    window_us = trace.window_needed_s(read, now_us=NOW_US) * 1_000_000
    oracle = Oracle(Rules(dedupe_window_us=window_us))
    for body in bodies(read):
        oracle.feed(oracle.next_offset, NOW_US + 600_000_000, body)  # published within ten minutes
    assert oracle.accepted == 10


class Clock:
    now_s = 50.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


async def test_speed_paces_the_rows(tmp_path: Path) -> None:
    read = trace.read(
        file(tmp_path, *(f"2023-11-16 18:00:{s:02d},{s},1" for s in (0, 10, 10, 9, 20)))  # one out of order
    )
    clock = Clock()
    sent: list[tuple[float, int]] = []

    async def publish(batch: Sequence[bytes]) -> None:
        sent.extend((round(clock.now_s - 50.0, 1), event.input_tokens) for event in decoded(batch))

    reported: list[int] = []
    n = await trace.replay(
        publish,
        trace.events(read, World(), seed=0),
        speed=2.0,
        stop=asyncio.Event(),
        report=reported.append,
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    )
    assert sent == [(0.0, 0), (5.0, 10), (5.0, 10), (5.0, 9), (10.0, 20)]
    assert n == sum(reported) == 5


async def test_stop_ends_a_replay(tmp_path: Path) -> None:
    read = trace.read(many(tmp_path, 3 * BLOCK))
    stop = asyncio.Event()

    async def publish(batch: Sequence[bytes]) -> None:
        stop.set()

    n = await trace.replay(
        publish, trace.events(read, World(), seed=0), speed=0, stop=stop, report=lambda _: None
    )
    assert n == BLOCK


@pytest.mark.parametrize("name", traces.NAMES)
def test_the_public_traces_keep_every_token(name: str) -> None:
    path = traces.path(name)
    with path.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    read = trace.read(path)
    events = decoded(bodies(read, shares=Shares(snake_case=0.3, cloudevents=0.3)))
    assert len(rows) >= 3000
    assert len(events) == len(rows) == len({event.event_id for event in events})
    for event, row in zip(events, rows, strict=True):
        assert event.input_tokens == int(row["ContextTokens"])
        assert event.output_tokens == int(row["GeneratedTokens"])
        at = datetime.fromtimestamp(event.occurred_us // 1_000_000, UTC)
        assert row["TIMESTAMP"].startswith(f"{at:%Y-%m-%d %H:%M:%S}.{event.occurred_us % 1_000_000:06d}")
