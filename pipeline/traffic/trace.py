"""`spendstream replay-trace`: a public LLM inference trace, published as usage events.

The module reads the CSV of the Azure LLM inference traces (``TIMESTAMP,ContextTokens,GeneratedTokens``; times
in UTC with 100 ns digits). A seed gives the fields that the trace lacks. Row ``i`` of the same file with the
same seed is always the same event with the same id, so publishing a file twice changes no figure.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.common.operator import OperatorError
from pipeline.traffic.generator import (
    BLOCK,
    FACTS,
    Columns,
    Ints,
    Shares,
    World,
    draw_statuses,
    draw_variants,
    encode,
    stable_uuid,
    time_texts,
)

HEADER: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TOKENS_MAX: Final = 10**12
TICK_S: Final = 0.025
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|\+00:00)?", re.ASCII)


class TraceError(OperatorError):
    """The file is not a trace. The message names the file, the line and the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The rows of one file, as int64[n] each; ``digest`` is the identity of its content."""

    digest: str
    times_us: Ints
    input_tokens: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        return len(self.times_us)


def read(path: Path, *, limit: int | None = None) -> Trace:
    """Read a trace. Lines end with LF or CRLF, and the last line need not end.

    Times are cut (not rounded) to the microsecond. ``digest`` covers the whole file even under ``limit``, so
    that the first rows are the same events with and without a limit.

    Raises:
        TraceError: naming the first bad line.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        bad_line = content.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{path}, line {bad_line}: not UTF-8 text") from None
    header = tuple(name.strip() for name in lines[0].split(","))
    if header != HEADER:
        raise TraceError(f"{path}, line 1: expected the header {','.join(HEADER)}, found {_shown(lines[0])}")
    rows: list[tuple[int, int, int]] = []
    for number, line in enumerate(lines[1:], start=2):
        text = line.removesuffix("\r")
        if not text.strip():
            if any(rest.strip() for rest in lines[number:]):
                raise TraceError(f"{path}, line {number}: empty line in the middle of the trace")
            break
        if limit is not None and len(rows) >= limit:
            break
        try:
            rows.append(_row(text))
        except ValueError as error:
            raise TraceError(f"{path}, line {number}: {error}: {_shown(text)}") from None
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Trace(
        digest=hashlib.sha256(content).hexdigest(),
        times_us=columns[:, 0].copy(),
        input_tokens=columns[:, 1].copy(),
        output_tokens=columns[:, 2].copy(),
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _row(text: str) -> tuple[int, int, int]:
    cells = [cell.strip() for cell in text.split(",")]
    if len(cells) != 3:
        raise ValueError(f"expected 3 columns, found {len(cells)}")
    match = _TIME.fullmatch(cells[0])
    if match is None:
        raise ValueError("TIMESTAMP must look like 2023-11-16 18:17:03.9799600")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"TIMESTAMP is no date: {error}") from None
    if year < 1970:
        raise ValueError("TIMESTAMP is before 1970")
    counts = []
    for name, cell in zip(HEADER[1:], cells[1:], strict=True):
        if not (cell.isascii() and cell.isdigit()) or len(cell) > 13 or int(cell) > TOKENS_MAX:
            raise ValueError(f"{name} must be a whole number from 0 to {TOKENS_MAX}")
        counts.append(int(cell))
    microsecond = int((match[7] or "")[:6].ljust(6, "0"))
    return int(at.timestamp()) * 1_000_000 + microsecond, counts[0], counts[1]


def shift_us(trace: Trace, *, end_us: int) -> int:
    """The microseconds to add to all times so that the last time is ``end_us`` (0 for an empty trace)."""
    return end_us - int(trace.times_us.max()) if len(trace) else 0


def window_needed_s(trace: Trace, *, now_us: int) -> int:
    """The DEDUPE_WINDOW in seconds that reaches the first row: whole hours, with 1 to 2 hours to spare."""
    if not len(trace):
        return 0
    back_s = (now_us - int(trace.times_us.min())) // 1_000_000
    return (back_s // 3600 + 2) * 3600


def end_us(trace: Trace, *, now_us: int, speed: float) -> int:
    """The time that the last row gets: now, or the moment when it will be published at ``speed``.

    No event occurs after it is published. At the trace's own speed (1), each event occurs when it is
    published. At a lower speed, the first row occurs now, and every other row occurs before it is published.
    For example, a trace of 1 h that is published at speed 2 takes 30 minutes, so its last row occurs 30
    minutes from now.
    """
    if not speed or not len(trace):
        return now_us
    span_us = int(trace.times_us.max() - trace.times_us.min())
    return now_us + round(span_us / max(speed, 1.0))


async def replay(
    publish: Callable[[Sequence[bytes]], Awaitable[None]],
    blocks: Iterable[tuple[Ints, list[bytes]]],
    *,
    speed: float,
    stop: asyncio.Event,
    report: Callable[[int], None],
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Publish the rows in file order; returns how many were published. After ``stop`` that may not be all.

    ``speed`` is in trace seconds per second. At speed 0 the rows are published as fast as the stream takes
    them. ``report`` gets the number of rows of each batch. A row out of order is published with the rows
    around it.
    """
    published, started_s, first_us, newest_us = 0, monotonic(), None, 0
    for times_us, bodies in blocks:
        if first_us is None:
            first_us = newest_us = int(times_us[0])
        due_us = np.maximum.accumulate(np.maximum(times_us, newest_us)) - first_us
        newest_us = int(due_us[-1]) + first_us
        done = 0
        while done < len(bodies) and not stop.is_set():
            if speed:
                elapsed_us = (monotonic() - started_s) * speed * 1e6
                ready = int(np.searchsorted(due_us, elapsed_us, side="right"))
                if ready <= done:
                    await sleep(min(max((int(due_us[done]) - elapsed_us) / 1e6 / speed, TICK_S), 1.0))
                    continue
            else:
                ready = len(bodies)
            await publish(bodies[done:ready])
            report(ready - done)
            published += ready - done
            done = ready
        if stop.is_set():
            break
    return published


def events(
    trace: Trace, world: World, *, seed: int, shift_us: int = 0, shares: Shares | None = None
) -> Iterator[tuple[Ints, list[bytes]]]:
    """The rows in file order, in blocks: their shifted times (int64[n]) and their bodies.

    The trace gives times and tokens, and knows no kinds of tokens. The seed and the row give org, model,
    client, status, latency and variant. The cost comes from the model's list price. A failed request keeps
    its tokens, so that the sums equal those of the file. The id depends on the content of the file, the row
    and the seed.
    """
    shares = shares or Shares()
    for block, first in enumerate(range(0, len(trace), BLOCK)):
        rows = slice(first, min(first + BLOCK, len(trace)))
        n = rows.stop - first
        rng = np.random.default_rng([seed & (2**64 - 1), int(trace.digest[:16], 16), block])
        # Whole blocks are drawn, so that the rows before a limit are the same as without the limit.
        org, model, client = (column[:n] for column in world.draw(rng, BLOCK))
        status, code = (column[:n] for column in draw_statuses(rng, BLOCK))
        variant = draw_variants(rng, BLOCK, shares)[:n]
        input_tokens, output_tokens = trace.input_tokens[rows], trace.output_tokens[rows]
        columns = Columns(
            ids=[stable_uuid("trace", trace.digest, seed, row) for row in range(first, rows.stop)],
            org=org,
            model=model,
            client=client,
            status=status,
            code=code,
            latency_ms=world.latency_ms(rng, model, output_tokens),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_microcents=world.cost_microcents(model, input_tokens, output_tokens),
            variant=variant,
            has_facts=np.ones(n, np.int64),
            **dict.fromkeys(FACTS, np.zeros(n, np.int64)),
        )
        times_us = trace.times_us[rows] + shift_us
        heads, tails = encode(world, columns)
        triples = zip(heads, time_texts(times_us), tails, strict=True)
        yield times_us, "\n".join([head + at + tail for head, at, tail in triples]).encode().split(b"\n")
