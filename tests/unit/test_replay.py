"""Dead letters taken back into the books: once, where it can be shown, and without moving time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.core import replay
from pipeline.core.replay import CountedIds
from pipeline.core.rules import Rules
from tests.support import mix
from tests.support.ledgers import HOUR_US, NOW_US, ORG, RULES, Books, event, letter


@pytest.fixture
async def kept() -> Books:
    kept = Books()
    await kept.recover()
    return kept


async def test_a_late_batch_that_is_replayed_has_the_totals_of_one_in_time(kept: Books) -> None:
    made = mix.make(800, seed=61, now_us=NOW_US - 5 * HOUR_US, span_us=2 * HOUR_US, late=0, bad=0).bodies
    await kept.read(event(1), event(2, ago_us=HOUR_US), *made)
    late = [d for d in kept.state.dead_letters if d.reason == "too_late"]
    assert len(late) == len(made)
    in_time = Books()
    await in_time.recover()
    await in_time.read(*made, broker_us=NOW_US - 5 * HOUR_US)
    await in_time.read(event(1), event(2, ago_us=HOUR_US))

    outcomes = await kept.replay(*(letter(d.offset, d.body) for d in late))
    assert set(outcomes) == {"accepted", "duplicate", "conflict"}
    kept.check()
    replayed, timely = kept.state.tables, in_time.state.tables
    for name in replayed:
        # All but the revision (the last measure), which says that the figures came later.
        assert {key: (row[0][:10], row[1]) for key, row in replayed[name].items()} == {
            key: (row[0][:10], row[1]) for key, row in timely[name].items()
        }, name
    assert kept.state.seen == in_time.state.seen
    p = kept.state.position
    assert (p.accepted, p.duplicate, p.rejected) == (
        in_time.state.position.accepted,
        in_time.state.position.duplicate,
        in_time.state.position.rejected,
    )
    assert p.offered == p.accepted + p.duplicate + p.rejected


async def test_a_replay_moves_neither_watermark_nor_offset_and_raises_the_revision(kept: Books) -> None:
    await kept.read(event(1, ago_us=5 * HOUR_US, occurredAt="2026-09-21T10:00:00Z"), event(2))
    before = kept.state.position
    batch_before = (before.next_offset, before.newest_us, before.watermark_us, before.broker_us)
    assert await kept.replay(letter(0, event(1, ago_us=4 * HOUR_US))) == ["accepted"]
    after = kept.state.position
    assert (after.next_offset, after.newest_us, after.watermark_us, after.broker_us) == batch_before
    assert (after.replays, after.rejected, after.accepted) == (1, 0, 2)
    hour = (NOW_US - 4 * HOUR_US) // HOUR_US
    assert [row[0][10] for key, row in kept.state.tables["usage_hour"].items() if key[1] == hour] == [1]
    assert kept.state.seen["orgs_seen"][(ORG,)][0] == NOW_US - 4 * HOUR_US


async def test_an_event_that_was_counted_is_recognised_wherever_its_id_is_kept(kept: Books) -> None:
    timely = event(1, ago_us=HOUR_US)
    await kept.read(timely, event(2), broker_us=NOW_US)
    # In the window, by the ids in memory.
    assert await kept.replay(letter(10, timely)) == ["duplicate"]
    assert await kept.replay(letter(11, event(1, ago_us=HOUR_US, latencyMs=11))) == ["conflict"]
    # Older than the window, by the stored ids of its hour.
    await kept.read(event(3, ago_us=-10 * HOUR_US), broker_us=NOW_US + 10 * HOUR_US)
    for _ in range(2):
        assert await kept.replay(letter(12, timely)) == ["duplicate"]
        assert await kept.replay(letter(13, event(1, ago_us=HOUR_US, latencyMs=11))) == ["conflict"]
        await kept.recover()
    assert await kept.replay(letter(14, event(4, ago_us=HOUR_US))) == ["accepted"]
    kept.check()


async def test_a_copy_with_another_hour_is_found_in_the_hour_that_holds_the_id(kept: Books) -> None:
    counted, copy = event(1), event(1, ago_us=HOUR_US)
    await kept.read(counted, copy, event(1, ago_us=4 * HOUR_US))
    assert [d.reason for d in kept.state.dead_letters] == ["too_late", "conflict"]
    letters = [letter(d.offset, d.body, reason=d.reason) for d in kept.state.dead_letters]
    assert await kept.replay(*letters) == ["conflict", "conflict"]
    # 5 h later the window has passed them, and the database still has the ids of their hours.
    await kept.read(event(2, ago_us=-5 * HOUR_US), broker_us=NOW_US + 5 * HOUR_US)
    await kept.recover()
    assert await kept.replay(*letters) == ["conflict", "conflict"]
    # An hour that could hold the id is stored no more, and nothing else tells of that hour.
    await kept.read(event(3, ago_us=-30 * HOUR_US), broker_us=NOW_US + 30 * HOUR_US)
    assert await kept.replay(*letters) == ["unknown", "unknown"]
    assert kept.state.position.accepted == 3
    kept.check()


async def test_a_conflict_is_accepted_on_the_operators_word_alone(kept: Books) -> None:
    await kept.read(event(1), event(1, latencyMs=11))
    [refused] = kept.state.dead_letters
    kept.state.ids.clear()  # as if nothing told any more that the id was counted
    await kept.read(event(2, ago_us=-10 * HOUR_US), broker_us=NOW_US + 10 * HOUR_US)
    await kept.recover()

    async def outcome(evidence: str, reason: str = refused.reason) -> str:
        waits = letter(refused.offset, refused.body, evidence=evidence, reason=reason)
        kept.state.waiting = {(waits.offset, waits.position): waits}
        opened = kept.ledger.open([waits])
        kept.ledger.replay(opened, await kept.sink.counted(kept.claim, opened))
        batch = await kept.flush()
        return batch.settled[0].outcome

    assert await outcome("none") == "conflict"
    assert await outcome("absent") == "conflict"
    assert await outcome("none", reason="") == "unknown", "its row was purged: the reason is not known"
    assert await outcome("accept") == "accepted"


async def test_a_letter_that_version_0_1_0_counted_is_a_duplicate(kept: Books) -> None:
    old = event(1, ago_us=4 * HOUR_US)
    await kept.read(old, event(2))
    assert await kept.replay(letter(0, old)) == ["accepted"]
    [(counted, settled)] = kept.state.settled
    columns, _ = kept.ledger._reader.read([old])
    [[narrow, _]] = kept.ledger._reader.older_checks(columns).tolist()
    assert settled.check is not None
    assert narrow < 2**32 <= settled.check
    kept.state.settled[0] = counted, replace(settled, check=narrow)
    assert await kept.replay(letter(5, old)) == ["duplicate"]
    assert await kept.replay(letter(6, event(1, ago_us=4 * HOUR_US, latencyMs=11))) == ["conflict"]


async def test_an_archive_that_told_of_some_hours_vouches_for_no_other(kept: Books) -> None:
    old = event(1, ago_us=10 * HOUR_US)
    await kept.read(old)
    await kept.read(event(2, ago_us=-40 * HOUR_US), broker_us=NOW_US + 40 * HOUR_US)
    stored_from = kept.ledger.open([]).stored_from
    hours = replay.Hours.of(
        NOW_US - 10 * HOUR_US, NOW_US, window_us=RULES.dedupe_window_us, future_us=5 * 60_000_000
    )
    assert hours.between(0, stored_from) == [*hours.window, hours.own]
    for told_to, outcome in ((hours.window.stop - 1, "unknown"), (hours.window.stop, "accepted")):
        waits = replace(letter(0, old, evidence="absent"), absent_to_hour=told_to)
        kept.state.waiting = {(0, 0): waits}
        opened = kept.ledger.open([waits])
        kept.ledger.replay(opened, await kept.sink.counted(kept.claim, opened))
        assert [one.outcome for one in (await kept.flush()).settled] == [outcome]


async def test_without_ids_or_archive_nothing_counts_until_it_is_accepted(kept: Books) -> None:
    old = event(1, ago_us=40 * HOUR_US)
    await kept.read(old, old, event(2))
    assert await kept.replay(letter(0, old), letter(1, old)) == ["unknown", "unknown"]
    assert kept.state.position.rejected == 2
    assert await kept.replay(letter(0, old, evidence="counted")) == ["duplicate"]
    assert await kept.replay(letter(1, old, evidence="accept"), letter(5, old, evidence="absent")) == [
        "accepted",
        "duplicate",
    ]
    kept.check()


async def test_two_letters_of_one_event_count_once_in_one_run_or_in_two(kept: Books) -> None:
    old, other = event(1, ago_us=4 * HOUR_US), event(1, ago_us=4 * HOUR_US, inputTokens=7)
    await kept.read(old, old, other, old, event(2))
    assert await kept.replay(letter(0, old), letter(1, old), letter(2, other)) == [
        "accepted",
        "duplicate",
        "conflict",
    ]
    await kept.recover()
    # Its hour is stored no more, and the letter itself may be purged: the replay's own key tells.
    await kept.read(event(3, ago_us=-60 * HOUR_US), broker_us=NOW_US + 60 * HOUR_US)
    kept.state.ids.clear()
    assert await kept.replay(letter(3, old, evidence="accept")) == ["duplicate"]
    assert kept.state.position.accepted == 3
    kept.check()


async def test_a_replayed_event_of_the_window_is_a_duplicate_when_the_stream_brings_it_again(
    kept: Books,
) -> None:
    await kept.read(b"{", event(2))
    recent = event(1, ago_us=HOUR_US)
    assert await kept.replay(letter(0, recent)) == ["accepted"]
    await kept.read(recent)
    await kept.recover()
    await kept.read(recent)
    assert kept.state.position.duplicate == 2
    kept.check()


async def test_what_is_still_wrong_stays_a_dead_letter(kept: Books) -> None:
    future = event(1, ago_us=-6 * 60_000_000)
    await kept.read(b"{", event(2, latencyMs=-1), future, event(3))
    assert await kept.replay(
        letter(0, b"{"),
        letter(1, event(2, latencyMs=-1)),
        letter(2, future),
        letter(3, None),
        letter(4, future, broker_us=NOW_US + 60_000_000),
    ) == ["malformed", "invalid", "future", "gone", "accepted"]
    assert kept.ledger.tally.replayed["gone"] == 1
    kept.check()
    assert await kept.replay(letter(3, None)) == ["gone"]


async def test_the_archive_gets_replayed_events_and_is_not_called_whole_without_them() -> None:
    kept = Books(keep_accepted=True)
    await kept.recover()
    old = event(1, ago_us=4 * HOUR_US)
    await kept.read(old, event(2))
    assert await kept.replay(letter(0, old)) == ["accepted"]
    [before, batch] = kept.state.outbox
    assert (batch.offset.tolist(), batch.first_number) == ([0], len(before))
    assert (batch.occurred_us.tolist(), batch.late.tolist()) == ([NOW_US - 4 * HOUR_US], [2])
    opened = kept.ledger.open([letter(5, event(7, ago_us=5 * HOUR_US))])
    kept.ledger.replay(opened, CountedIds.join([]))
    kept.ledger.missing()
    assert kept.ledger._judge._replayed_from_us == NOW_US - 5 * HOUR_US


def test_every_outcome_and_evidence_has_a_bound() -> None:
    assert len(set(replay.OUTCOMES)) == len(replay.OUTCOMES) == 8
    assert set(replay.EVIDENCE) == {"none", "absent", "counted", "accept"}


async def test_a_longer_window_does_not_count_again_what_lost_its_id_under_the_shorter_one(
    kept: Books,
) -> None:
    mine = event(1, ago_us=2 * HOUR_US)
    await kept.read(mine)
    later_us = NOW_US + 30 * HOUR_US
    await kept.read(event(2, ago_us=-30 * HOUR_US), broker_us=later_us)
    hour = (NOW_US - 2 * HOUR_US) // HOUR_US
    # As maintenance does: more than the window and a day have passed.
    kept.state.ids = [pair for pair in kept.state.ids if pair[0] != hour]
    kept.state.position.ids_from_hour = hour + 1
    kept.rules = Rules(dedupe_window_us=72 * HOUR_US, clients_per_org_hour_max=2, models_per_org_hour_max=2)
    await kept.recover()

    late = event(3, ago_us=HOUR_US)
    accepted = kept.state.position.accepted
    await kept.flush_read(mine, late, broker_us=later_us)
    assert kept.state.position.accepted == accepted + 1, "the hour that lost no id is open again"
    refused = kept.state.dead_letters[-1]
    assert (refused.reason, refused.body) == ("too_late", mine)
    assert refused.faults[0].message == "its ids were dropped, under a shorter DEDUPE_WINDOW"
    waits = letter(refused.offset, mine, broker_us=later_us)
    kept.state.waiting = {(waits.offset, waits.position): waits}
    opened = kept.ledger.open([waits])
    assert opened.stored_from == hour + 1
    kept.ledger.replay(opened, await kept.sink.counted(kept.claim, opened))
    batch = await kept.flush()
    assert [one.outcome for one in batch.settled] == ["unknown"]
