"""The oracle itself, on cases small enough to be worked out by hand: what counts, and where."""

from __future__ import annotations

import json
import random

from tests.support import mix
from tests.support.oracle import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    OVERFLOW_CLIENT,
    OVERFLOW_ERROR_CODE,
    SECOND_US,
    Accepted,
    Duplicate,
    Oracle,
    Rejected,
    Rules,
    decode,
    total,
)
from tests.support.oracle_events import MODEL, NOON, NOON_US, ORG, ORG_2, body, event, feed


def test_a_plain_event_counts_in_every_rollup() -> None:
    oracle = Oracle()
    feed(oracle, body(clientId="app", status="timeout", errorCode="deadline"))
    day = NOON.replace(hour=0)
    measures = (1, 0, 0, 1, 0, 10, 20, 250_000, 120, 120, 0, 0, 0, 0, 0, 0)
    assert {key: row.measures for key, row in oracle.usage_minute.items()} == {(ORG, NOON, MODEL): measures}
    assert {key: row.measures for key, row in oracle.usage_hour.items()} == {(ORG, NOON, MODEL): measures}
    assert {key: row.measures for key, row in oracle.usage_day.items()} == {(ORG, day, MODEL): measures}
    assert {key: row.measures for key, row in oracle.client_hour.items()} == {
        (ORG, NOON, MODEL, "app"): measures
    }
    assert {key: row.measures for key, row in oracle.client_day.items()} == {
        (ORG, day, MODEL, "app"): measures
    }
    assert dict(oracle.usage_errors_hour) == {(ORG, NOON, MODEL, "app", 2, "deadline"): 1}
    assert oracle.orgs_seen[ORG].first == oracle.orgs_seen[ORG].last == NOON
    assert (oracle.offered, oracle.accepted, oracle.duplicate, oracle.rejected) == (1, 1, 0, 0)


def test_future_and_too_late_are_decided_by_the_brokers_time() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    outcomes = feed(
        oracle,
        body(1, NOON_US + 5 * MINUTE_US),
        body(2, NOON_US + 5 * MINUTE_US + 1),
        body(3, NOON_US - 2 * HOUR_US),
        body(4, NOON_US - 2 * HOUR_US - 1),
    )
    assert [type(each) for each in outcomes] == [Accepted, Rejected, Accepted, Rejected]
    assert [each.reason for each in oracle.dead_letters] == ["future", "too_late"]
    assert [each.offset for each in oracle.dead_letters] == [1, 3]


def test_dedupe_is_by_org_and_event_and_the_first_counts() -> None:
    oracle = Oracle()
    outcomes = feed(
        oracle,
        body(1, inputTokens=5),
        body(1, inputTokens=7),
        body(1, inputTokens=5, orgId=str(ORG_2)),
        body(1, inputTokens=5, actorId=str(ORG_2)),
        body(1, NOON_US - 3 * HOUR_US, inputTokens=5),
    )
    assert [type(each) for each in outcomes] == [Accepted, Rejected, Accepted, Duplicate, Rejected]
    assert {each.reason for each in outcomes if isinstance(each, Rejected)} == {"conflict"}
    assert oracle.usage_hour[ORG, NOON, MODEL].input_tokens == 5
    assert oracle.orgs_seen[ORG].first == NOON


def test_a_rejected_event_does_not_take_its_id() -> None:
    oracle = Oracle()
    outcomes = feed(oracle, body(1, status="?"), body(1, NOON_US + HOUR_US), body(1))
    assert [type(each) for each in outcomes] == [Rejected, Rejected, Accepted]


def test_an_id_is_forgotten_by_the_hour_of_its_first_occurrence() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    at_us = NOON_US + 30 * MINUTE_US  # remembered until 12:00 + 1 h + 2 h
    end_us = NOON_US + 3 * HOUR_US
    assert isinstance(oracle.feed(0, at_us, body(1, at_us)), Accepted)
    assert oracle.feed(1, end_us - 1, body(1, end_us)) == Rejected("conflict", ("eventId",))
    assert isinstance(oracle.feed(2, end_us, body(1, end_us)), Accepted)
    assert isinstance(oracle.feed(3, end_us + 1, body(1, end_us)), Duplicate)


def test_the_floor_of_the_window_never_goes_back() -> None:
    oracle = Oracle(Rules(dedupe_window_us=2 * HOUR_US))
    assert isinstance(oracle.feed(0, NOON_US, body(1, NOON_US)), Accepted)
    assert isinstance(oracle.feed(1, NOON_US + HOUR_US, body(2, NOON_US)), Accepted)
    assert oracle.feed(2, NOON_US, body(3, NOON_US - HOUR_US - 1)) == Rejected("too_late")
    assert isinstance(oracle.feed(3, NOON_US, body(3, NOON_US - HOUR_US)), Accepted)
    assert oracle.feed(4, NOON_US, body(4, NOON_US + 5 * MINUTE_US + 1)) == Rejected("future")


def test_revision_counts_events_behind_the_watermark() -> None:
    oracle = Oracle()
    later_us = NOON_US + MINUTE_US + 10 * SECOND_US
    feed(oracle, body(1), body(2, later_us - 1), broker_us=later_us)
    feed(oracle, body(3), broker_us=later_us)  # watermark 12:00:59.999999
    minute = oracle.usage_minute[ORG, NOON, MODEL]
    assert (minute.invocations, minute.revision) == (2, 0)
    feed(oracle, body(4, later_us), body(5), body(5), broker_us=later_us)  # watermark 12:01:00
    assert (minute.invocations, minute.revision) == (3, 1)
    assert oracle.usage_hour[ORG, NOON, MODEL].revision == 0
    assert oracle.usage_day[ORG, NOON.replace(hour=0), MODEL].invocations == 5


def test_an_event_does_not_move_its_own_watermark() -> None:
    oracle = Oracle()
    feed(oracle, body(1))
    assert oracle.usage_minute[ORG, NOON, MODEL].revision == 0
    assert oracle.watermark_us == NOON_US - 10 * SECOND_US


def test_clients_beyond_the_bound_share_a_row_per_hour() -> None:
    oracle = Oracle(Rules(clients_max=3))
    names = ["a", "", "other", "b", "c", "a", "other"]
    feed(oracle, *(body(i, clientId=name) for i, name in enumerate(names)))
    feed(oracle, body(100, NOON_US - HOUR_US, clientId="c"))
    day = NOON.replace(hour=0)
    count = {key[3]: row.invocations for key, row in oracle.client_hour.items() if key[1] == NOON}
    assert count == {"a": 2, "": 1, "other": 2, "b": 1, OVERFLOW_CLIENT: 1}
    of_day = {key[3]: row.invocations for key, row in oracle.client_day.items() if key[1] == day}
    assert of_day == {"a": 2, "": 1, "other": 2, "b": 1, OVERFLOW_CLIENT: 1, "c": 1}
    assert set(oracle.clients_seen) == {(ORG, name) for name in of_day}


def test_error_codes_beyond_the_bound_share_a_row() -> None:
    oracle = Oracle(Rules(error_codes_max=1))
    feed(oracle, body(0, errorCode="x"))  # a success: no error, and it takes no slot
    for i, code in enumerate(["a", "b", None, "a", "other"], start=1):
        feed(oracle, body(i, status="error", errorCode=code))
    assert {key[4:]: count for key, count in oracle.usage_errors_hour.items()} == {
        (1, "a"): 2,
        (1, OVERFLOW_ERROR_CODE): 2,
        (1, ""): 1,
    }


def test_total_equals_the_sum_over_clients_and_over_minutes() -> None:
    oracle = Oracle()
    for i in range(50):
        at_us = NOON_US - i * 7 * MINUTE_US
        feed(oracle, body(i, at_us, clientId=str(i % 3), latencyMs=i, costEstimateCents=f"0.00{i}"))
    measures = total(oracle.usage_day.values()).measures
    assert total(oracle.client_day.values()).measures == measures
    assert total(oracle.client_hour.values()).measures[:10] == measures[:10]
    assert total(oracle.usage_minute.values()).measures[:10] == measures[:10]
    assert measures[0] == 50


def test_percentiles_are_nearest_rank() -> None:
    oracle = Oracle()
    feed(oracle, *(body(i, latencyMs=i) for i in range(1, 101)))
    row = oracle.usage_day[ORG, NOON.replace(hour=0), MODEL]
    assert [row.percentile_ms(p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]


def test_a_day_starts_at_midnight_utc() -> None:
    oracle = Oracle()
    midnight_us = NOON_US // DAY_US * DAY_US
    feed(oracle, body(1, midnight_us - 1), body(2, midnight_us), broker_us=midnight_us)
    assert [key[1].day for key in sorted(oracle.usage_day)] == [22, 23]


def test_the_oracle_decides_the_acceptance_mix_as_it_was_made() -> None:
    made = mix.make(40_000, seed=7, now_us=NOON_US)
    oracle = Oracle()
    outcomes = feed(oracle, *made.bodies)
    wrong = []
    for kind, reason, raw, outcome in zip(made.kinds, made.reasons, made.bodies, outcomes, strict=True):
        if reason:
            expected = isinstance(outcome, Rejected) and outcome.reason == reason
        else:
            expected = isinstance(outcome, Accepted if kind in ("good", "late", "other_org") else Duplicate)
        if not expected:
            wrong.append((kind, reason, outcome, raw[:300]))
    assert wrong == []
    assert oracle.offered == oracle.accepted + oracle.duplicate + oracle.rejected == 40_000
    kinds = {each.name for each in (*mix.MALFORMED, *mix.INVALID)}
    assert kinds <= set(made.kinds)
    assert {"late", "duplicate", "respelled", "reused", "other_org"} <= set(made.kinds)
    conflicts = sum(letter.reason == "conflict" for letter in oracle.dead_letters)
    assert 0.04 < (oracle.duplicate + conflicts) / 40_000 < 0.06


def test_every_invalid_kind_names_its_field() -> None:
    maker = mix.make(1, seed=1, now_us=NOON_US)
    good = {name: json.dumps(value) for name, value in event(metadata={}).items()}
    assert maker.bodies
    for kind in mix.INVALID:
        for variant in mix.VARIANTS:
            outcome = decode(kind.spoil(good, variant, random.Random(1)))
            assert isinstance(outcome, Rejected), (kind.name, variant)
            assert outcome.fields[0] == kind.fields[0], (kind.name, variant, outcome)


def test_the_mix_is_the_same_for_the_same_seed() -> None:
    assert mix.make(500, seed=3, now_us=NOON_US) == mix.make(500, seed=3, now_us=NOON_US)
    assert mix.make(500, seed=3, now_us=NOON_US) != mix.make(500, seed=4, now_us=NOON_US)


def test_groups_keep_the_order() -> None:
    bodies = [b"%d" % i for i in range(1000)]
    grouped = list(mix.groups(bodies, ("raw", "gzip"), seed=1))
    assert [each for _, group in grouped for each in group] == bodies
    assert {framing for framing, _ in grouped} == {"raw", "gzip"}
