"""Rows in memory and rows that wait: the rollups alone, without a judge or a stream."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np

from pipeline.core.batch import StoredRows, Tally
from pipeline.core.events import Reader
from pipeline.core.rollups import Rollups
from pipeline.core.rules import Rules
from pipeline.core.watermark import DAY_US, HOUR_US, MINUTE_US, NEVER, QUARTER_US
from pipeline.core.windows import ERRORS, USAGE_DAY, USAGE_HOUR, USAGE_MINUTE, USAGE_QUARTER

NOW_US = 1_790_000_000_000_000 // DAY_US * DAY_US + 12 * HOUR_US


class Books:
    def __init__(self, rules: Rules) -> None:
        self.reader, self.tally = Reader(), Tally()
        self.rollups = Rollups(rules, self.reader, self.tally)

    def add(self, *bodies: bytes) -> None:
        columns, rejected = self.reader.read(bodies)
        assert not rejected
        self.rollups.add(columns, np.full(len(columns), NEVER, np.int64))

    def drain(self) -> dict[str, StoredRows]:
        self.rollups.gather()
        return {rows.grain.name: rows for rows in self.rollups.drain().tables}


def event(*, ago_us: int = 0, client: str = "", **more: Any) -> bytes:
    at = np.datetime64(NOW_US - ago_us, "us")
    return json.dumps(
        {
            "eventId": str(uuid.uuid4()),
            "orgId": str(uuid.UUID(int=1)),
            "modelId": str(uuid.UUID(int=2)),
            "clientId": client,
            "occurredAt": f"{at}Z",
            "latencyMs": 1,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 0,
            "costEstimateCents": "0",
            **more,
        }
    ).encode()


def test_a_row_is_known_once_it_has_been_handed_out_or_read() -> None:
    """The sink updates known rows, and inserts the others."""
    books = Books(Rules())
    books.add(event())
    first = books.drain()
    books.add(event(), event(client="another"))
    second = books.drain()
    again = Books(Rules())
    again.rollups.adopt([second["client_hour"]])
    again.add(event(), event(client="third"))
    third = again.drain()
    known = [
        {client: bool(known) for client, known in zip(rows.client, rows.known, strict=True)}
        for rows in (one["client_hour"] for one in (first, second, third))
        if rows.known is not None
    ]
    assert known == [{"": False}, {"": True, "another": False}, {"": True, "third": False}]


def test_a_row_stays_known_when_older_ones_leave_memory() -> None:
    books = Books(Rules())
    books.add(event(), event(ago_us=3 * HOUR_US))
    books.drain()
    books.rollups.let_go(NOW_US)
    books.add(event(), event(client="new"))
    hour = books.drain()["usage_hour"]
    assert hour.known is not None
    assert (hour.bucket.tolist(), hour.known.tolist()) == ([NOW_US // HOUR_US], [True])


def test_events_become_a_row_in_each_table() -> None:
    books = Books(Rules())
    books.add(event(), event(), event(status="error", errorCode="e"))
    tables = books.drain()
    assert [rows.measures[:, 0].tolist() for rows in tables.values()] == [[3]] * 5 + [[1]]
    assert tables["usage_errors_hour"].error_code == ["e"]
    assert books.rollups.dirty_rows == 0


def test_a_late_event_waits_for_the_rows_that_have_left_memory() -> None:
    books = Books(Rules())
    books.add(event(ago_us=3 * HOUR_US))
    written = books.drain()
    books.rollups.let_go(NOW_US)
    books.add(event(ago_us=3 * HOUR_US))
    books.rollups.gather()
    assert books.rollups.waits
    missing = books.rollups.missing()
    grains = {block.grain for block in missing}
    assert {USAGE_MINUTE, USAGE_HOUR} < grains
    assert USAGE_DAY not in grains
    books.rollups.adopt([written[grain.name] for grain in grains - {ERRORS}], missing)
    assert not books.rollups.waits
    assert [rows.measures[:, 0].tolist() for rows in books.drain().values()] == [[2]] * 5 + [[]]


def test_clients_beyond_the_cap_share_one_row_and_the_first_ones_are_known_after_a_recovery() -> None:
    rules = Rules(clients_per_org_hour_max=2)
    books = Books(rules)
    books.add(*(event(client=name) for name in "abc"))
    tables = books.drain()
    names = tables["client_hour"].client
    assert len(names) == 3
    assert {"a", "b"} < set(names)
    assert books.tally.capped_clients == 1
    again = Books(rules)
    again.rollups.adopt(list(tables.values()))
    again.add(*(event(client=name) for name in "cba"))
    assert sorted(again.drain()["client_hour"].client) == sorted(names)


def test_blocks_leave_memory_once_the_watermark_is_well_past_them() -> None:
    books = Books(Rules())
    books.add(event())
    books.drain()
    assert books.rollups.let_go(NOW_US + 3 * MINUTE_US) is not None
    first = dict(books.rollups.resident_from())
    assert first[USAGE_MINUTE] > NOW_US // MINUTE_US
    assert first[USAGE_HOUR] == NOW_US // HOUR_US - 1
    left = books.rollups.let_go(NOW_US + 2 * DAY_US)
    assert left is not None
    assert left[0].tolist() == [[0, NOW_US // DAY_US]]


def test_only_split_hours_have_rows_by_the_quarter() -> None:
    books = Books(Rules(split_hours=(11,)))
    books.add(*(event(ago_us=minutes * MINUTE_US) for minutes in (50, 25, 20, 0)))
    rows = books.drain()["usage_quarter"]
    quarters = NOW_US // QUARTER_US - rows.bucket
    assert dict(zip(quarters.tolist(), rows.measures[:, 0].tolist(), strict=True)) == {4: 1, 2: 2}
    books.rollups.let_go(NOW_US + HOUR_US)
    books.add(event(ago_us=20 * MINUTE_US))
    books.rollups.gather()
    blocks = [block for block in books.rollups.missing() if block.grain is USAGE_QUARTER]
    assert [NOW_US // QUARTER_US - block.bucket for block in blocks] == [2]
    books.add(event())
    books.rollups.gather()
    assert [block for block in books.rollups.missing() if block.grain is USAGE_QUARTER] == blocks
