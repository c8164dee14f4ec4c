"""A ledger over a sink in memory with the oracle beside it, and the events and dead letters for both."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

from pipeline.core.batch import Batch
from pipeline.core.dimensions import Dimension
from pipeline.core.replay import Letter, Opened
from pipeline.core.rules import Rules
from tests.support import books
from tests.support import oracle as naive
from tests.support.memory_sink import MemorySink, State
from tests.support.replays import ReplayingOracle

HOUR_US = 3_600_000_000
NOW_US = 1_790_000_000_000_000 // HOUR_US * HOUR_US + 10 * 60_000_000
RULES = Rules(
    dedupe_window_us=3 * HOUR_US,
    clients_per_org_hour_max=2,
    models_per_org_hour_max=2,
    dimensions=(Dimension("team", "metadata.team"), Dimension("user", "actorId")),
    split_hours=tuple(range(0, 24, 2)),
    values_per_org_hour_max=2,
)
ORG, MODEL = uuid.UUID(int=1), uuid.UUID(int=100)


def event(number: int, *, ago_us: int = 0, **fields: Any) -> bytes:
    """The body of an event whose id is the number."""
    at = naive.EPOCH + timedelta(microseconds=NOW_US - ago_us)
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=number)),
            "orgId": str(ORG),
            "modelId": str(MODEL),
            "clientId": "c",
            "occurredAt": at.isoformat(),
            "latencyMs": 10,
            "status": "success",
            "inputTokens": 1,
            "outputTokens": 2,
            "costEstimateCents": "0.5",
            **fields,
        }
    ).encode()


class Books:
    """Feeds the same bodies to a ledger, whose sink is in memory, and to the oracle."""

    def __init__(self, *, keep_accepted: bool = False, rules: Rules = RULES) -> None:
        self.rules = rules
        self.sink = MemorySink()
        self.oracle = ReplayingOracle(books.oracle_rules(rules))
        self._keep_accepted = keep_accepted

    @property
    def state(self) -> State:
        return self.sink.state

    async def recover(self) -> None:
        self.claim, self.ledger = await books.recover(
            self.sink, self.rules, keep_accepted=self._keep_accepted
        )

    async def read(self, *bodies: bytes, broker_us: int = NOW_US) -> None:
        first = self.ledger.received_offset
        for i, body in enumerate(bodies):
            self.oracle.feed(first + i, broker_us, body)
        await self.flush_read(*bodies, broker_us=broker_us)

    async def flush_read(self, *bodies: bytes, broker_us: int) -> None:
        """Read and flush bodies that the oracle does not get."""
        first = self.ledger.received_offset
        self.ledger.ingest(
            first_offset=first, next_offset=first + len(bodies), timestamp_us=broker_us, bodies=bodies
        )
        await self.flush()

    async def replay(self, *letters: Letter) -> list[str]:
        """Backfill letters and commit; returns the outcomes. The oracle must agree with each outcome."""
        await self.load()
        opened = self.ledger.open(letters)
        await self.load(opened)
        self.ledger.replay(opened, await self.sink.counted(self.claim, opened))
        self.state.waiting = {(letter.offset, letter.position): letter for letter in letters}
        batch = await self.flush()
        outcomes = [one.outcome for one in batch.settled]
        assert outcomes == [self.oracle.replay(letter) for letter in letters]
        return outcomes

    async def load(self, opened: Opened | None = None) -> None:
        while blocks := self.ledger.missing(opened):
            self.ledger.adopt(await self.sink.load(self.claim, blocks), blocks)

    async def flush(self) -> Batch:
        await self.load()
        batch = self.ledger.drain(now_us=NOW_US, caught_up=False)
        await self.sink.flush(self.claim, batch)
        return batch

    def check(self) -> None:
        assert not books.difference(books.stored_state(self.state), books.expected(self.oracle))


def letter(
    offset: int,
    body: bytes | None,
    *,
    broker_us: int = NOW_US,
    evidence: str = "none",
    reason: str = "too_late",
) -> Letter:
    """A dead letter of the body, read at the offset."""
    return Letter(
        offset=offset,
        position=0,
        broker_us=broker_us,
        evidence=evidence,
        absent_to_hour=2**31 if evidence == "absent" else 0,
        reason=reason,
        body=body,
    )
