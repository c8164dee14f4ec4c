"""What the ledger asks of whoever times it, and what it makes of the broker's clock."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from types import TracebackType

from pipeline.core import ledger as books
from pipeline.core import wire
from pipeline.core.rules import Rules
from pipeline.core.watermark import HOUR_US
from tests import mix

NOW_US = 1_790_000_000_000_000


class Stopwatch:
    """Counts how often it was entered and left, and what the ledger had counted by then."""

    def __init__(self) -> None:
        self.ledger: books.Ledger | None = None
        self.entered = self.left = 0
        self.accepted: list[int] = []

    def __enter__(self) -> None:
        self.entered += 1
        self._look()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left += 1
        self._look()

    def _look(self) -> None:
        assert self.ledger is not None
        self.accepted.append(self.ledger.position.accepted)


def test_decoding_is_timed_once_a_fold_without_dedupe_and_adding_up() -> None:
    stopwatch = Stopwatch()
    ledger = stopwatch.ledger = books.Ledger(Rules(), decoding=stopwatch)
    bodies = mix.make(300, seed=1, now_us=NOW_US).bodies
    for first in (0, 100, 200):
        ledger.ingest(
            first_offset=first,
            next_offset=first + 100,
            timestamp_us=NOW_US,
            bodies=bodies[first : first + 100],
        )
    assert stopwatch.entered == 0, "so few events wait"
    ledger.fold()
    ledger.fold()
    assert (stopwatch.entered, stopwatch.left) == (1, 1)
    assert stopwatch.accepted == [0, 0]
    assert ledger.position.accepted > 0


def test_an_id_is_known_though_the_brokers_clock_steps_back_over_an_hour() -> None:
    hour_us = NOW_US // HOUR_US * HOUR_US
    lapses_us = hour_us + HOUR_US + Rules().dedupe_window_us
    """When the ids of the hour begin to count no more."""
    ledger = books.Ledger(Rules())

    def ingest(first: int, count: int, *, at_us: int, broker_us: int) -> None:
        at = datetime.fromtimestamp(at_us / 1e6, UTC).isoformat()
        bodies = [
            json.dumps(
                {
                    "eventId": str(uuid.UUID(int=number * 2**64 + number)),
                    "orgId": str(uuid.UUID(int=1)),
                    "modelId": str(uuid.UUID(int=2)),
                    "occurredAt": at,
                    "latencyMs": 1,
                    "status": "success",
                    "inputTokens": 1,
                    "outputTokens": 1,
                    "costEstimateCents": "1",
                }
            ).encode()
            for number in range(first, first + count)
        ]
        offset = ledger.received_offset
        ledger.ingest(first_offset=offset, next_offset=offset + count, timestamp_us=broker_us, bodies=bodies)
        ledger.fold()

    last_us = hour_us + HOUR_US - 1_000_000
    ingest(0, 20_000, at_us=last_us, broker_us=last_us)
    for thousands in range(20, 40):  # the tables of ids run full, and lapsed ids go first
        ingest(1000 * thousands, 1000, at_us=lapses_us, broker_us=lapses_us + 1_000_000)
    assert ledger.position.accepted == 40_000
    ingest(0, 20_000, at_us=last_us, broker_us=lapses_us - 1_500_000)
    assert (ledger.position.accepted, ledger.position.duplicate) == (40_000, 20_000)


def test_a_client_named_other_has_a_row_of_its_own_beside_what_is_beyond_the_cap() -> None:
    ledger = books.Ledger(Rules(clients_per_org_hour_max=2))
    names = ["other", "a", "b", "c", "other"]
    bodies = [
        json.dumps(
            {
                "eventId": str(uuid.UUID(int=number)),
                "orgId": str(uuid.UUID(int=1)),
                "modelId": str(uuid.UUID(int=2)),
                "clientId": name,
                "occurredAt": datetime.fromtimestamp(NOW_US / 1e6, UTC).isoformat(),
                "latencyMs": 1,
                "status": "error",
                "errorCode": "other",
                "inputTokens": 1,
                "outputTokens": 1,
                "costEstimateCents": 1,
            }
        ).encode()
        for number, name in enumerate(names)
    ]
    ledger.ingest(first_offset=0, next_offset=5, timestamp_us=NOW_US, bodies=bodies)
    batch = ledger.drain(now_us=NOW_US, caught_up=False)
    assert batch.dead_letters == []
    tables = {rows.grain.name: rows for rows in batch.tables}
    for table in ("client_hour", "client_day"):
        counted = dict(zip(tables[table].client, tables[table].measures[:, 0].tolist(), strict=True))
        assert counted == {"other": 2, "a": 1, wire.OVERFLOW_CLIENT: 2}
    errors = tables["usage_errors_hour"]
    assert dict(zip(errors.client, errors.error_code, strict=True)) == dict.fromkeys(counted, "other")
