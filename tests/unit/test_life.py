"""The life of a partition in a worker: which step follows which, and what a term is."""

from __future__ import annotations

import pytest

from pipeline.worker.life import STEPS, Event, Life, State


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
