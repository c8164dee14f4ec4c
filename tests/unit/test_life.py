"""The life of a partition in a worker: which step follows which, and what a term is."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import FlushConfig
from pipeline.core.batch import Position
from pipeline.core.rules import Rules
from pipeline.sink import Claim, Contested, SinkUnavailable
from pipeline.worker.life import STEPS, Event, Life, State
from pipeline.worker.partition import PartitionWorker
from tests.support.memory_sink import MemoryDatabase, MemorySink
from tests.support.memory_transport import MemoryBroker, MemoryTransport


def test_a_partition_is_recovered_owned_and_handed_over() -> None:
    life = Life()
    states = []
    for event in (Event.RECOVERS, Event.ACTIVATED, Event.DEACTIVATED, Event.LET_GO):
        life.follow(event)
        states.append(life.state)
    assert states == [State.RECOVERING, State.OWNING, State.HANDING_OVER, State.STANDING_BY]


def test_a_claim_stays_contested_until_it_succeeds() -> None:
    """Else readiness would flicker at every further attempt."""
    life = Life()
    life.follow(Event.RECOVERS)
    for event in (Event.REFUSED, Event.RECOVERS, Event.REFUSED, Event.RECOVERS):
        life.follow(event)
        assert life.state is State.CONTESTED
    life.follow(Event.ACTIVATED)
    assert life.state is State.OWNING


def test_a_chunk_of_before_a_loss_belongs_to_no_later_term() -> None:
    """A reconnect that keeps the partition begins a new term, too: it reads on from an offset of its own."""
    life = Life()
    terms = [life.term]
    for event in (
        Event.RECOVERS,
        Event.ACTIVATED,
        Event.ACTIVATED,
        Event.LOST,
        Event.RECOVERS,
        Event.ACTIVATED,
        Event.DEACTIVATED,
    ):
        life.follow(event)
        terms.append(life.term)
    assert terms == [0, 0, 1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_step_that_the_table_lacks_raises_and_changes_nothing(state: State, event: Event) -> None:
    life = Life(state)
    if (state, event) in STEPS:
        life.follow(event)
        return
    with pytest.raises(AssertionError, match=f"{state.value}: {event.value}"):
        life.follow(event)
    assert (life.state, life.term) == (state, 0)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {after for (before, _), after in STEPS.items() if before is not after}
    left = {before for (before, _), after in STEPS.items() if before is not after}
    assert reached == left == set(State)


class Attempts:
    """A `Backoff` that notes what is said of the stream before each further attempt."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self.worker: PartitionWorker | None = None

    async def wait(self) -> None:
        assert self.worker is not None
        self.said.append(self.worker.stream_error)

    def reset(self) -> None: ...


async def test_a_contested_partition_is_said_to_be_so_until_the_claim_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim, errors = MemorySink.claim, [Contested("group b commits there"), SinkUnavailable("away")]

    async def contested(self: MemorySink, *what: Any) -> tuple[Claim, Position]:
        if errors:
            raise errors.pop(0)
        return await claim(self, *what)

    monkeypatch.setattr(MemorySink, "claim", contested)
    attempts = Attempts()
    attempts.worker = worker = PartitionWorker(
        index=0,
        stream="s",
        transport=MemoryTransport(MemoryBroker("s")),
        sink=MemorySink(),
        rules=Rules(),
        flush=FlushConfig(),
        backoff=lambda: attempts,
    )
    assert worker.stream_error == "not connected yet"
    await worker.activated()
    assert attempts.said == ["group b commits there", "group b commits there"]
    assert worker.stream_error == "not connected yet"
    assert worker.database_error is None
    assert worker.active
    await worker.close()


class Once:
    """A `Backoff` whose first wait brings the database back, with the partition claimed by another worker."""

    def __init__(self, sink: MemorySink) -> None:
        self.said: list[str | None] = []
        self.worker: PartitionWorker | None = None
        self._sink = sink

    async def wait(self) -> None:
        assert self.worker is not None
        self.said.append(self.worker.database_error)
        self._sink.down = False
        await MemorySink(self._sink.database).claim("s")

    def reset(self) -> None: ...


async def test_a_worker_that_lost_its_partition_while_the_database_was_away_is_ready_again() -> None:
    """The worker stands by afterwards and commits nothing, so no later flush would take the error back."""
    sink = MemorySink(MemoryDatabase())
    once = Once(sink)
    once.worker = worker = PartitionWorker(
        index=0,
        stream="s",
        transport=MemoryTransport(MemoryBroker("s")),
        sink=sink,
        rules=Rules(),
        flush=FlushConfig(),
        backoff=lambda: once,
    )
    await worker.activated()
    sink.down = True
    await worker.flush()
    assert once.said == ["away"]
    assert not worker.active, "the other worker has the partition"
    assert worker.database_error is None
    await worker.close()
