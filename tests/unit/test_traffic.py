"""The simulator: what its events say, and when it sends them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.traffic.generator import BAD_KINDS, BLOCK, Shares, Traffic, World, daily_shape
from pipeline.traffic.simulate import (
    BATCH_EVENTS_MAX,
    Pace,
    PatientPublisher,
    Progress,
    open_patiently,
    simulate,
)
from pipeline.transports import Publisher, TransportError
from tests.support.memory_transport import PartialTransport
from tests.support.oracle import Accepted, Duplicate, Event, Oracle, Rejected, decode

NOON_US = 1_795_435_200_000_000


def times(n: int, step_us: int = 1000) -> Any:
    return NOON_US + np.arange(n, dtype=np.int64) * step_us


def decoded(bodies: Sequence[bytes]) -> list[Event]:
    events = [decode(body) for body in bodies]
    assert all(isinstance(event, Event) for event in events), [e for e in events if isinstance(e, Rejected)]
    return [event for event in events if isinstance(event, Event)]


# --- what events say ----------------------------------------------------------------------------


def test_every_good_event_obeys_the_contract_in_every_variant() -> None:
    bodies = Traffic(World(), seed=1, shares=Shares(snake_case=0.3, cloudevents=0.3)).take(times(10_000))
    decoded(bodies)
    variants = Counter(
        "cloudevents" if b.startswith(b'{"spec') else "snake" if b.startswith(b'{"event_id') else "camel"
        for b in bodies
    )
    assert all(2500 < n < 4500 for n in variants.values()), variants
    assert len(variants) == 3


def test_an_event_occurred_exactly_when_the_caller_said() -> None:
    at = times(5000, 1)
    assert [e.occurred_us for e in decoded(Traffic(World(), seed=1).take(at))] == at.tolist()


def test_the_same_seed_gives_the_same_bytes_however_they_are_taken() -> None:
    shares = Shares(duplicates=0.05, late=0.05, bad=0.05)
    at = times(2 * BLOCK + 100)
    whole = Traffic(World(), seed=5, shares=shares).take(at)
    other = Traffic(World(), seed=5, shares=shares)
    pieces = [body for part in np.array_split(at, 37) for body in other.take(part)]
    assert pieces == whole
    assert Traffic(World(), seed=6, shares=shares).take(at) != whole


def test_two_seeds_share_the_world_but_no_event() -> None:
    one, two = (decoded(Traffic(World(orgs=5), seed=seed).take(times(1000))) for seed in (1, 2))
    assert {e.org_id for e in one} == {e.org_id for e in two}
    assert not {e.event_id for e in one} & {e.event_id for e in two}


def test_traffic_looks_like_traffic() -> None:
    world = World(orgs=40, models=6, clients_per_org=10)
    events = decoded(Traffic(world, seed=1).take(times(50_000)))
    orgs = Counter(e.org_id for e in events).most_common()
    assert len(orgs) == 40
    assert orgs[0][1] > 5 * orgs[20][1], "a few orgs make most of it"
    assert len({e.model_id for e in events}) == 6
    assert len({(e.org_id, e.client_id) for e in events}) == 400
    statuses = Counter(e.status for e in events)
    assert 0.965 < statuses[0] / len(events) < 0.975
    assert all(statuses[status] for status in (1, 2, 3))
    assert {e.error_code for e in events if not e.status} == {""}
    assert {e.latency_ms for e in events if e.status == 2} == {60_000}
    latencies = sorted(e.latency_ms for e in events if not e.status)
    assert 500 < latencies[len(latencies) // 2] < 10_000
    costs = [e.cost_microcents for e in events if not e.status and e.cost_microcents is not None]
    assert len(costs) == sum(not e.status for e in events)
    assert sum(cost < 1_000_000 for cost in costs) > len(costs) / 2, "most calls cost less than a cent"
    assert any(cost % 1_000_000 for cost in costs)


def test_costs_are_the_list_price_to_the_last_digit() -> None:
    world = World(orgs=3)
    prices = {model.model_id: model for model in world.models}
    for event in decoded(Traffic(world, seed=1).take(times(2000))):
        model = prices[str(event.model_id)]
        assert event.cost_microcents == (
            event.input_tokens * model.input_cents_per_million
            + event.output_tokens * model.output_cents_per_million
        )


def test_facts_are_those_of_the_contract() -> None:
    world = World()
    names = {model.model_id: (model.provider, model.name) for model in world.models}
    events = decoded(Traffic(world, seed=1, shares=Shares(facts=0.8)).take(times(20_000)))
    told = [event for event in events if event.model_name]
    assert 0.78 < len(told) / len(events) < 0.82
    assert all((event.provider, event.model_name) == names[str(event.model_id)] for event in told)
    assert {event.service_tier for event in told} == {0, 1, 2, 3, 4}
    tiers_of_client = {(event.org_id, event.client_id, event.service_tier) for event in told}
    assert len(tiers_of_client) == len({(org, client) for org, client, _ in tiers_of_client})
    for kind in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"):
        assert any(getattr(event, kind) for event in told), kind
    assert {event.provider for event in told if event.cache_write_tokens} == {"anthropic"}
    untold = [event for event in events if not event.model_name]
    assert {event.payload for event in untold} == {event.without_details for event in untold}


def test_the_rest_of_the_events_is_the_same_with_and_without_facts() -> None:
    with_facts, without = (
        decoded(Traffic(World(), seed=3, shares=Shares(facts=share)).take(times(5000)))
        for share in (1.0, 0.0)
    )
    actors = [event.actor_id for event in with_facts]
    assert [event.without_details for event in with_facts] == [event.payload for event in without]
    assert actors == [event.actor_id for event in without]
    assert {name for event in with_facts for name, _ in event.metadata} == {"region", "team", "feature"}
    assert {name for event in without for name, _ in event.metadata} == {"region"}
    assert with_facts != without


def test_costs_come_as_numbers_and_as_strings() -> None:
    bodies = Traffic(World(orgs=4), seed=1, shares=Shares(snake_case=0, cloudevents=0)).take(times(500))
    assert {type(json.loads(body)["costEstimateCents"]) for body in bodies} == {str, float}


def test_shares_of_duplicates_late_and_bad() -> None:
    shares = Shares(duplicates=0.05, late=0.02, bad=0.01)
    oracle, n = Oracle(), 50_000
    outcomes = [
        oracle.feed(i, NOON_US + i * 1000, body)
        for i, body in enumerate(Traffic(World(), seed=1, shares=shares).take(times(n)))
    ]
    assert 0.045 < oracle.duplicate / n < 0.055
    assert 0.008 < oracle.rejected / n < 0.012
    late = sum(
        isinstance(each, Accepted) and each.event.occurred_us < NOON_US + i * 1000
        for i, each in enumerate(outcomes)
    )
    assert 0.017 < late / n < 0.023
    assert {letter.reason for letter in oracle.dead_letters} == {"malformed", "invalid", "future", "too_late"}


@pytest.mark.parametrize("kind", range(len(BAD_KINDS)))
@pytest.mark.parametrize(
    "shares", [Shares(), Shares(snake_case=1, cloudevents=0), Shares(snake_case=0, cloudevents=1)]
)
def test_every_bad_kind_is_rejected(kind: int, shares: Shares) -> None:
    (body,) = Traffic(World(), seed=1, shares=shares).take(times(1))
    assert isinstance(Oracle().feed(0, NOON_US, BAD_KINDS[kind](body)), Rejected)


def test_a_duplicate_is_the_same_bytes() -> None:
    bodies = Traffic(World(), seed=1, shares=Shares(duplicates=0.5)).take(times(4000))
    oracle = Oracle()
    repeated = [b for i, b in enumerate(bodies) if isinstance(oracle.feed(i, NOON_US, b), Duplicate)]
    assert len(repeated) > 1500
    assert all(bodies.count(body) > 1 for body in repeated[:50])


@pytest.mark.parametrize(
    "shares",
    [{"duplicates": -0.1}, {"duplicates": 0.6, "bad": 0.6}, {"snake_case": 0.6, "cloudevents": 0.6}],
)
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="share"):
        Shares(**shares)


@pytest.mark.parametrize("world", [{"orgs": 0}, {"models": 0}, {"clients_per_org": 0}])
def test_an_empty_world_is_refused(world: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        World(**world)


def test_the_shape_of_a_day_has_a_mean_of_one() -> None:
    of_day = [daily_shape(NOON_US + minute * 60_000_000) for minute in range(1440)]
    assert sum(of_day) / 1440 == pytest.approx(1.0)
    assert min(of_day) == pytest.approx(0.45, abs=0.01)
    assert of_day.index(max(of_day)) == 180, "three hours after noon"


# --- when they are sent ---------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody sleeps, or when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


async def run(
    pace: Pace,
    publish: Callable[[Sequence[bytes]], Awaitable[None]],
    *,
    clock: Clock,
    stop: asyncio.Event | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    return await simulate(
        publish,
        Traffic(World(orgs=3), seed=1),
        pace,
        stop=stop or asyncio.Event(),
        report=report,
        now_us=lambda: NOON_US,
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    )


@pytest.mark.parametrize("rate", [0.5, 7.0, 333.3, 1000.0, 5_000.0])
async def test_the_rate_is_kept_without_drift(rate: float) -> None:
    clock, sent = Clock(), list[bytes]()

    async def publish(bodies: Sequence[bytes]) -> None:
        sent.extend(bodies)
        clock.now_s += 0.0037  # publishing takes time; the schedule must not slip by it

    last = await run(Pace(rate=rate, duration_s=10), publish, clock=clock)
    assert last.published == len(sent) == int(rate * 10)
    at = [e.occurred_us for e in decoded(sent)]
    assert at == sorted(at)
    assert at[0] >= NOON_US
    assert at[-1] < NOON_US + 10_000_000


async def test_batches_are_small_and_frequent() -> None:
    clock, sizes = Clock(), list[int]()

    async def publish(bodies: Sequence[bytes]) -> None:
        sizes.append(len(bodies))

    await run(Pace(rate=1000, duration_s=2), publish, clock=clock)
    assert sum(sizes) == 2000
    assert max(sizes) <= 51
    assert len(sizes) >= 40


async def test_a_stream_that_stalls_is_caught_up_with_in_bounded_batches() -> None:
    clock, sizes = Clock(), list[int]()

    async def publish(bodies: Sequence[bytes]) -> None:
        if not sizes:
            clock.now_s += 3
        sizes.append(len(bodies))

    last = await run(Pace(rate=30_000, duration_s=4), publish, clock=clock)
    assert last.published == 30_000 * 4
    assert max(sizes) <= BATCH_EVENTS_MAX


async def test_a_daily_shape_bends_the_rate() -> None:
    clock, sent = Clock(), 0

    async def publish(bodies: Sequence[bytes]) -> None:
        nonlocal sent
        sent += len(bodies)

    await run(Pace(rate=1000, duration_s=2, shape=lambda _: 0.5), publish, clock=clock)
    assert sent == pytest.approx(1000, abs=1)


async def test_stop_ends_the_simulation_after_the_batch_in_hand() -> None:
    clock, stop, batches = Clock(), asyncio.Event(), 0

    async def publish(bodies: Sequence[bytes]) -> None:
        nonlocal batches
        batches += 1
        stop.set()

    last = await run(Pace(rate=1000), publish, clock=clock, stop=stop)
    assert batches == 1
    assert last.published > 0


class FlakyTransport(PartialTransport):
    """Stores what it is given, but claims at first not to know."""

    stream = "flaky"

    body_bytes_max = 2**20

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.stored: list[bytes] = []
        self.opened = self.closed = 0

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise TransportError("cut")

    async def open(self) -> None:
        self._maybe_fail()
        self.opened += 1

    async def publisher(self) -> Publisher:
        self.opened += 1
        return self

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        self.stored.extend(bodies)
        self._maybe_fail()

    async def close(self) -> None:
        self.closed += 1


async def test_after_a_transport_error_the_same_bodies_go_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.traffic.simulate.BACKOFF_S", (0.0,))
    transport, warnings = FlakyTransport(failures=2), list[str]()
    publisher = PatientPublisher(transport, warn=warnings.append)
    await publisher.publish([b"1", b"2"])
    assert transport.stored == [b"1", b"2"] * 3
    assert publisher.retries == 2
    assert transport.opened == 3, "a publisher that failed is not used again"
    assert "cut" in warnings[0]
    await publisher.close()
    assert transport.closed == 3


async def test_opening_waits_for_a_stream_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.traffic.simulate.BACKOFF_S", (0.0,))
    transport, warnings = FlakyTransport(failures=3), list[str]()
    await open_patiently(transport, warn=warnings.append)
    assert transport.opened == 1
    assert len(warnings) == 3
