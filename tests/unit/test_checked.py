"""The collector's check of many bodies says what `wire.read` says, body for body."""

import json
import time

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import checked, wire
from pipeline.core.checked import Checker
from pipeline.core.wire import Event
from tests.support import mix
from tests.support.usage_events import EventMill


def expected(body: bytes) -> checked.Verdict:
    found = wire.read(body)
    return found.org_id.bytes if isinstance(found, Event) else found


def test_good_and_bad_bodies_get_the_verdict_of_the_contract() -> None:
    bodies = mix.make(5000, seed=11, now_us=time.time_ns() // 1000, bad=0.3).bodies
    verdicts = Checker().check(bodies)
    assert verdicts == [expected(body) for body in bodies]
    assert sum(isinstance(verdict, bytes) for verdict in verdicts) > 1000
    assert sum(not isinstance(verdict, bytes) for verdict in verdicts) > 500


@given(st.lists(st.integers(0, 4), max_size=40))
def test_one_checker_serves_batches_of_any_size(kinds: list[int]) -> None:
    mill = EventMill(kinds=7, seed=5)
    good = mill.events(3)
    bodies = [(*good, b"{}", b"not json")[kind] for kind in kinds]
    checker = Checker()
    for _ in range(2):
        assert checker.check(bodies) == [expected(body) for body in bodies]


def test_the_model_of_the_overflow_is_rejected_among_good_events() -> None:
    (body,) = EventMill(seed=1).events(1)
    reserved = json.dumps({**json.loads(body), "modelId": str(wire.OVERFLOW_MODEL)}).encode()
    verdicts = Checker().check([body, body, reserved, body, body])
    assert [isinstance(verdict, bytes) for verdict in verdicts] == [True, True, False, True, True]
    assert verdicts[2] == expected(reserved)


def test_the_org_of_a_verdict_is_the_org_of_the_event() -> None:
    bodies = EventMill(seed=2, orgs=5).events(50)
    verdicts = Checker().check(bodies)
    orgs = [str(checked.org_of(verdict)) for verdict in verdicts if isinstance(verdict, bytes)]
    assert orgs == [json.loads(body)["orgId"] for body in bodies]


def test_an_event_after_the_latest_time_is_ahead_of_time_however_it_is_read() -> None:
    mill = EventMill(seed=2)
    (plain,) = mill.events(1)
    event = wire.read(plain)
    assert isinstance(event, wire.Event)
    spaced = plain.replace(b'":', b'" :')  # valid, and not plainly right
    for latest_us, is_ahead in ((event.occurred_us, False), (event.occurred_us - 1, True)):
        for verdict in Checker().check([plain, b"{}", spaced], latest_us=latest_us)[::2]:
            assert isinstance(verdict, bytes) is not is_ahead
            assert is_ahead is (isinstance(verdict, wire.Invalid) and verdict.reason == "future")
