"""Comparing what is stored with what the oracle counted: every row, every grain, every figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from pipeline.core import sketches
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from tests import oracle as naive
from tests.memory_sink import MemorySink

_LENGTH_US = {"usage_minute": 60, "usage_hour": 3600, "usage_day": 86400, "client_hour": 3600, "client_day": 86400}


def oracle_rules(rules: Rules) -> naive.Rules:
    return naive.Rules(
        dedupe_window_us=rules.dedupe_window_us,
        lateness_us=rules.allowed_lateness_us,
        clients_max=rules.clients_per_org_hour_max,
    )


def expected(oracle: naive.Oracle) -> dict[str, Any]:
    """The oracle's tables in the form of `stored`."""

    def us(at: datetime) -> int:
        return (at - naive.EPOCH) // naive.timedelta(microseconds=1)

    tables: dict[str, Any] = {}
    for name, seconds in _LENGTH_US.items():
        tables[name] = {
            (key[0], us(key[1]) // (seconds * 1_000_000), *key[2:]): (
                row.invocations,
                row.successes,
                row.errors,
                row.timeouts,
                row.throttles,
                row.input_tokens,
                row.output_tokens,
                row.cost_microcents,
                row.latency_sum_ms,
                row.latency_max_ms,
                row.revision,
                sketches.of(row.latencies_ms),
            )
            for key, row in getattr(oracle, name).items()
        }
    tables["usage_errors_hour"] = {
        (key[0], us(key[1]) // 3_600_000_000, *key[2:]): count for key, count in oracle.usage_errors_hour.items()
    }
    for name in ("orgs_seen", "models_seen", "clients_seen"):
        tables[name] = {
            key if isinstance(key, tuple) else (key,): (us(seen.first), us(seen.last))
            for key, seen in getattr(oracle, name).items()
        }
    tables["dead_letters"] = [
        (letter.offset, letter.reason, letter.fields, letter.body) for letter in oracle.dead_letters
    ]
    tables["counters"] = (oracle.offered, oracle.accepted, oracle.duplicate, oracle.rejected)
    return tables


def stored(sink: MemorySink) -> dict[str, Any]:
    """What a `MemorySink` has committed."""
    state = sink.state
    tables: dict[str, Any] = {
        name: {key: (*measures, sketch) for key, (measures, sketch) in table.items()}
        for name, table in state.tables.items()
        if name != "usage_errors_hour"
    }
    tables["usage_errors_hour"] = {
        key: measures[0] for key, (measures, _) in state.tables["usage_errors_hour"].items()
    }
    tables.update(state.seen)
    tables["dead_letters"] = sorted(
        (d.offset, d.reason, tuple(f.field for f in d.faults), d.body) for d in state.dead_letters
    )
    p = state.position
    tables["counters"] = (p.offered, p.accepted, p.duplicate, p.rejected)
    return tables


def difference(have: dict[str, Any], want: dict[str, Any], *, fields: bool = False) -> list[str]:
    """Readable differences, empty when there are none; ``fields``: compare which fields were at fault, too."""
    lines: list[str] = []
    for name, rows in want.items():
        mine = have[name]
        if name == "dead_letters":
            pick = (lambda d: d) if fields else (lambda d: (d[0], d[1], d[3]))
            mine = {d[0]: pick(d) for d in mine}
            rows = {d[0]: pick(d) for d in rows}
        if isinstance(rows, dict):
            for key in sorted(set(rows) | set(mine), key=repr):
                if rows.get(key) != mine.get(key):
                    lines.append(f"{name} {key}: stored {mine.get(key)}, oracle {rows.get(key)}")
        elif rows != mine:
            lines.append(f"{name}: stored {mine}, oracle {rows}")
    return lines


async def recover(sink: MemorySink, rules: Rules) -> tuple[Any, Ledger]:
    """A ledger as a worker builds it at start."""
    claim, position = await sink.claim("s")
    ledger = Ledger(rules, position)
    ledger.adopt(await sink.resident_rows(claim, ledger.resident_from()))
    ledger.recover_ids(await sink.live_ids(claim, from_hour=ledger.live_hours_from()))
    return claim, ledger


async def flush(sink: MemorySink, claim: Any, ledger: Ledger, *, now_us: int = 0) -> None:
    blocks = ledger.missing()
    if blocks:
        ledger.adopt(await sink.load(claim, blocks), blocks)
    await sink.flush(claim, ledger.drain(now_us=now_us, caught_up=False))


def chunks_of(
    bodies: Sequence[bytes], *, size: int, broker_us: int, first_offset: int = 0
) -> Iterable[dict[str, Any]]:
    """Arguments of `Ledger.ingest`, one chunk each."""
    for at in range(0, len(bodies), size):
        part = bodies[at : at + size]
        yield {
            "first_offset": first_offset + at,
            "next_offset": first_offset + at + len(part),
            "timestamp_us": broker_us,
            "bodies": part,
        }
