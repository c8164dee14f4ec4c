"""Compares stored rows with the oracle's count: every row, every grain, every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pipeline.core import sketches
from pipeline.core.ledger import Ledger
from pipeline.core.rules import Rules
from pipeline.core.windows import MEASURES
from pipeline.sink import Claim, Sink
from pipeline.worker.owned import read_back
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink, State

STREAM = "analytics.usage.v1"
_LENGTH_S = {
    "usage_minute": 60,
    "usage_quarter": 900,
    "usage_hour": 3600,
    "usage_day": 86400,
    "client_hour": 3600,
    "client_day": 86400,
    "breakdown_hour": 3600,
    "breakdown_day": 86400,
}
_TEXTS = {"client": ", client_id", "breakdown": ", dimension, value"}


def oracle_rules(rules: Rules) -> naive.Rules:
    return naive.Rules(
        dedupe_window_us=rules.dedupe_window_us,
        lateness_us=rules.allowed_lateness_us,
        clients_max=rules.clients_per_org_hour_max,
        models_max=rules.models_per_org_hour_max,
        dimensions=tuple((one.name, one.source) for one in rules.dimensions),
        values_max=rules.values_per_org_hour_max,
        split_hours=rules.split_hours,
        sum_max=rules.sum_max,
        context_tiers=rules.context_tiers,
    )


def expected(oracle: naive.Oracle) -> dict[str, Any]:
    """The oracle's tables in the form of `stored`."""

    def us(at: datetime) -> int:
        return (at - naive.EPOCH) // timedelta(microseconds=1)

    tables: dict[str, Any] = {}
    for name, seconds in _LENGTH_S.items():
        tables[name] = {
            (key[0], us(key[1]) // (seconds * 1_000_000), *key[2:]): (
                *row.measures,
                sketches.of(row.latencies_ms),
            )
            for key, row in oracle.by_class[name].items()
        }
    tables["usage_errors_hour"] = {
        (key[0], us(key[1]) // 3_600_000_000, *key[2:]): count
        for key, count in oracle.errors_by_class.items()
    }
    for name in ("orgs_seen", "models_seen", "clients_seen", "values_seen"):
        tables[name] = {
            key if isinstance(key, tuple) else (key,): (us(seen.first), us(seen.last))
            for key, seen in getattr(oracle, name).items()
        }
    tables["labels"] = {
        key: (at_us, provider.decode(), name.decode())
        for key, (at_us, provider, name) in oracle.labels.items()
    }
    tables["dead_letters"] = [
        (letter.offset, letter.reason, letter.fields, letter.body) for letter in oracle.dead_letters
    ]
    tables["counters"] = (oracle.offered, oracle.accepted, oracle.duplicate, oracle.rejected)
    return tables


def stored(sink: MemorySink) -> dict[str, Any]:
    """The committed tables of a `MemorySink`."""
    return stored_state(sink.state)


def stored_state(state: State) -> dict[str, Any]:
    """The committed state of one stream, in the form of `expected`."""
    tables: dict[str, Any] = {
        name: {key: (*measures, sketch) for key, (measures, sketch) in table.items()}
        for name, table in state.tables.items()
        if name != "usage_errors_hour"
    }
    tables["usage_errors_hour"] = {
        key: measures[0] for key, (measures, _) in state.tables["usage_errors_hour"].items()
    }
    tables.update(state.seen)
    tables["labels"] = dict(state.labels)
    tables["dead_letters"] = sorted(
        (d.offset, d.reason, tuple(f.field for f in d.faults), d.body) for d in state.dead_letters
    )
    p = state.position
    tables["counters"] = (p.offered, p.accepted, p.duplicate, p.rejected)
    return tables


def difference(
    have: dict[str, Any], want: dict[str, Any], *, fields: bool = False, flooded: bool = False
) -> list[str]:
    """List the differences between two sets of tables, for a person to read.

    With ``fields`` the faulty fields of dead letters are compared too. Of a body that is larger than an event
    may be, the first `naive.BODY_BYTES_MAX` bytes and one more are kept. With ``flooded`` the dead letters
    were perhaps too many or too large for that, so a stored body may be missing.
    """
    lines: list[str] = []
    for name, rows in want.items():
        mine = have[name]
        if name == "dead_letters":
            pick = (lambda d: d) if fields else (lambda d: (d[0], d[1], d[3]))
            mine = {d[0]: pick(d) for d in mine}
            rows = {d[0]: pick(d) for d in rows}
            bodies = {offset: letter[-1] for offset, letter in mine.items() if flooded}
            rows = {o: (*d[:-1], _as_kept(d[-1], bodies.get(o, b""))) for o, d in rows.items()}
        if isinstance(rows, dict):
            for key in sorted(set(rows) | set(mine), key=repr):
                if rows.get(key) != mine.get(key):
                    lines.append(f"{name} {key}: stored {mine.get(key)}, oracle {rows.get(key)}")
        elif rows != mine:
            lines.append(f"{name}: stored {mine}, oracle {rows}")
    return lines


def uneven_sums(tables: dict[str, Any], since: Mapping[str, int]) -> list[str]:
    """List the orgs' buckets in which the models, the clients and a dimension's values do not add up alike.

    ``since`` has, for each dimension, the first hour (since 1970) in which it must be complete.
    """
    lines: list[str] = []
    for grain, hours in (("hour", 1), ("day", 24)):
        models = _sums(tables[f"usage_{grain}"])
        if _sums(tables[f"client_{grain}"]) != models:
            lines.append(f"{grain}: the clients differ from the models")
        for dimension, first in since.items():
            mine = {k: row for k, row in tables[f"breakdown_{grain}"].items() if k[3] == dimension}
            by_value = _sums(mine)
            lines += [
                f"{grain} {bucket}: {dimension} {by_value.get(bucket)}, models {sums}"
                for bucket, sums in models.items()
                if bucket[1] * hours >= first and by_value.get(bucket) != sums
            ]
    return lines


def _sums(rows: dict[Any, Any]) -> dict[Any, list[int]]:
    """The sums of the rows of each org, bucket and model; of all figures but maximum and sketch."""
    found: dict[Any, list[int]] = {}
    summed = [place for place, name in enumerate(MEASURES) if name != "latency_max_ms"]
    for key, row in rows.items():
        sums = found.setdefault(key[:3], [0] * len(summed))
        for i, place in enumerate(summed):
            sums[i] += row[place]
    return found


def _as_kept(body: bytes | None, stored: bytes | None) -> bytes | None:
    """A body as it is stored: its beginning, or None where a flood has left the body out."""
    return None if body is None or stored is None else body[: naive.BODY_BYTES_MAX + 1]


async def recover(
    sink: Sink, rules: Rules, *, stream: str = STREAM, keep_accepted: bool = False
) -> tuple[Claim, Ledger]:
    """Build a ledger as a worker does at its start."""
    claim, position = await sink.claim(stream, rules.dimensions, rules.split_hours, rules.context_tiers)
    ledger = Ledger(rules, position, keep_accepted=keep_accepted, rate_classes=claim.rate_classes)
    await read_back(sink, claim, ledger)
    return claim, ledger


async def flush(sink: Sink, claim: Claim, ledger: Ledger, *, now_us: int = 0) -> None:
    while blocks := ledger.missing():
        ledger.adopt(await sink.load(claim, blocks), blocks)
    await sink.flush(claim, ledger.drain(now_us=now_us, caught_up=False))


def chunks_of(
    bodies: Sequence[bytes], *, size: int, broker_us: int, first_offset: int = 0
) -> Iterable[dict[str, Any]]:
    """Cut bodies into chunks; yields the arguments of `Ledger.ingest` for each chunk."""
    for at in range(0, len(bodies), size):
        part = bodies[at : at + size]
        yield {
            "first_offset": first_offset + at,
            "next_offset": first_offset + at + len(part),
            "timestamp_us": broker_us,
            "bodies": part,
        }


def stored_in_database(database_url: str, partition: int | None = None) -> dict[str, Any]:
    """The committed tables of a database, in the form of `stored`: of one partition, or of all.

    Rows of one key in several partitions are not added up. A database with one partition has no such rows.
    """
    tables: dict[str, Any] = {}
    measures = ", ".join((*MEASURES, "latency_sketch"))
    only = "" if partition is None else f" WHERE partition = {int(partition)}"
    with psycopg.connect(database_url) as connection:
        for name, seconds in _LENGTH_S.items():
            texts = _TEXTS.get(name.split("_")[0], "")
            bucket = f"(EXTRACT(EPOCH FROM bucket_start) / {seconds})::bigint"
            rows = connection.execute(
                f"SELECT org_id, {bucket}, model_id{texts}, rate_class, {measures}"
                f" FROM analytics.{name}{only}"
            ).fetchall()
            width = 4 + texts.count(",")
            tables[name] = {row[:width]: row[width:] for row in rows}
            assert len(tables[name]) == len(rows), f"{name} has a key twice"
        rows = connection.execute(
            "SELECT org_id, (EXTRACT(EPOCH FROM bucket_start) / 3600)::bigint, model_id, client_id, status,"
            f" error_code, rate_class, count FROM analytics.usage_errors_hour{only}"
        ).fetchall()
        tables["usage_errors_hour"] = {row[:7]: row[7] for row in rows}
        for name, key in (
            ("orgs_seen", ""),
            ("models_seen", ", model_id"),
            ("clients_seen", ", client_id"),
            ("values_seen", ", dimension, value"),
        ):
            rows = connection.execute(
                f"SELECT org_id{key}, (EXTRACT(EPOCH FROM first_event_at) * 1000000)::bigint,"
                f" (EXTRACT(EPOCH FROM last_event_at) * 1000000)::bigint FROM analytics.{name}{only}"
            ).fetchall()
            tables[name] = {row[:-2]: row[-2:] for row in rows}
        rows = connection.execute(
            "SELECT org_id, model_id, (EXTRACT(EPOCH FROM labelled_at) * 1000000)::bigint, provider,"
            f" model_name FROM (SELECT * FROM analytics.models_seen{only}) AS s WHERE labelled_at > 'epoch'"
        ).fetchall()
        tables["labels"] = {row[:2]: row[2:] for row in rows}
        tables["dead_letters"] = [
            (offset, reason, tuple(fault["field"] for fault in faults), body)
            for offset, reason, faults, body in connection.execute(
                f'SELECT "offset", reason, faults, body FROM analytics.dead_letters{only} ORDER BY "offset"'
            )
        ]
        tables["counters"] = connection.execute(
            "SELECT sum(offered)::bigint, sum(accepted)::bigint, sum(duplicate)::bigint,"
            f" sum(rejected)::bigint FROM analytics.partitions{only}"
        ).fetchone()
    return tables
