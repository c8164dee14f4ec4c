"""What is admitted: valid by the contract, of the caller's orgs, in canonical JSON; and nothing else."""

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.collector import admit as module
from pipeline.collector import ids
from pipeline.collector.admit import Admission, Admitted
from pipeline.collector.config import BodyBounds
from pipeline.collector.dialects import Offered, Unreadable, contract, litellm, otlp
from pipeline.collector.in_work import InWork
from pipeline.common.access.caller import Caller
from pipeline.common.problems import Problem
from pipeline.core import wire
from pipeline.core.wire import Event, Fault
from tests.support import mix
from tests.support.usage_events import EventMill, array

BOUNDS = BodyBounds(events_max=20_000)
EVERYBODY = Caller(subject="local", roles=frozenset({"admin"}), orgs=None)
MINE, THEIRS = (uuid.UUID(f"{letter * 8}-0000-4000-8000-000000000001") for letter in "ab")


def admitted(
    offers: Iterable[Offered],
    *,
    caller: Caller = EVERYBODY,
    bounds: BodyBounds = BOUNDS,
    body_bytes: int = 1000,
    event_bytes_max: int | None = None,
) -> Admitted:
    """``bounds`` and the others as in `Admission`. No event is ahead of the clock, in the year 11476."""
    in_work = InWork(2**30)

    async def run() -> Admitted:
        with in_work.share("a") as share:
            found = await Admission(bounds, clock=lambda: 3e11).admit(
                iter(offers),
                body_bytes=body_bytes,
                caller=caller,
                share=share,
                event_bytes_max=event_bytes_max,
            )
            assert share.bytes == found.body_bytes == sum(map(len, found.bodies))
            return found

    return asyncio.run(run())


@pytest.mark.parametrize("body_bytes", [1000, module.LARGE_BYTES + 1], ids=["small", "large"])
def test_a_body_is_admitted_where_the_contract_takes_it_and_else_rejected_with_its_faults(
    body_bytes: int,
) -> None:
    bodies = [
        body
        for body in mix.make(4000, seed=21, now_us=time.time_ns() // 1000, bad=0.3).bodies
        if b"\n" not in body and len(body) <= wire.BODY_BYTES_MAX
    ]
    offers = [offer for body in bodies for offer in _read_alone(body)]
    assert len(offers) == len(bodies)
    found = admitted(offers, body_bytes=body_bytes)
    verdicts = [wire.read(body) for body in bodies]
    good = [verdict for verdict in verdicts if isinstance(verdict, Event)]
    assert [wire.read(body) for body in found.bodies] == good
    assert found.keys == [str(event.org_id) for event in good]
    assert [one.index for one in found.rejected] == [
        index for index, verdict in enumerate(verdicts) if not isinstance(verdict, Event)
    ]
    assert len(good) > 1000
    assert len(found.rejected) > 400
    names = set(wire.CAMEL_NAMES)
    assert all(json.loads(body).keys() <= names for body in found.bodies)


def test_an_event_larger_than_the_broker_takes_is_rejected_as_it_would_be_published() -> None:
    """What counts is the size of the contract's fields, not that of what was sent."""
    (event,) = (json.loads(body) for body in EventMill(seed=1).events(1))
    bodies = [
        json.dumps({**event, "metadata": {"team": "x" * length}}, separators=(",", ":")).encode()
        for length in (100, 101)
    ]
    with_prompt = bodies[0][:-1] + b',"prompt":"' + b"y" * 500 + b'"}'
    offers = [offer for body in (*bodies, with_prompt) for offer in contract.read(body)]
    found = admitted(offers, event_bytes_max=len(bodies[0]))
    assert [json.loads(body) for body in found.bodies] == [json.loads(bodies[0])] * 2
    (rejected,) = found.rejected
    size = len(bodies[0])
    said = f"has {size + 1} bytes, and the broker takes at most {size} (its stream.frame_max)"
    assert (rejected.index, list(rejected.faults)) == (1, [Fault("", said)])
    assert len(admitted(offers).bodies) == 3, "nothing is known of the broker"


def _read_alone(body: bytes) -> list[Offered]:
    try:
        return list(contract.read(body)) if body[:1] != b"[" else [Offered(event=None)]
    except Unreadable as error:
        return [Offered(event=None, faults=(Fault("", str(error)),))]


def test_a_mapping_is_written_in_the_contracts_order_and_its_numbers_stay_exact() -> None:
    (given,) = (json.loads(body) for body in EventMill(seed=1).events(1))
    event = {**dict(reversed(given.items())), "costEstimateCents": "0.12345678901234567890"}
    found = admitted([Offered(event=event)])
    written = json.loads(found.bodies[0])
    assert list(written) == [name for name in wire.CAMEL_NAMES if name in given]
    assert b'"costEstimateCents":"0.12345678901234567890"' in found.bodies[0]


def test_a_value_that_json_cannot_hold_is_a_fault_of_its_item_alone() -> None:
    good, bad, large = (json.loads(body) for body in EventMill(seed=2).events(3))
    found = admitted(
        Offered(event=event)
        for event in (good, {**bad, "clientId": "\ud800"}, {**large, "inputTokens": 10**400})
    )
    assert len(found.bodies) == 1
    assert [one.index for one in found.rejected] == [1, 2]


def test_a_dialect_that_passes_another_field_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError):
        admitted([Offered(event={"eventId": "a", "prompt": "b"})])


def test_items_are_counted_by_what_became_of_them() -> None:
    good = EventMill(seed=3).events(2)
    found = admitted(
        [
            Offered(event=None, passed_over=True),
            Offered(event=good[0]),
            Offered(event=None, faults=(Fault("span", "is none"),)),
            Offered(event=good[1], org_name="Acme"),
            Offered(event=b"{}"),
            Offered(event=None),
        ]
    )
    assert (found.items, found.passed_over, found.bodies) == (6, 1, good)
    assert [one.index for one in found.rejected] == [2, 4, 5]
    assert found.org_names == {uuid.UUID(found.keys[1]): "Acme"}


@pytest.mark.parametrize("body_bytes", [1000, module.LARGE_BYTES + 1], ids=["small", "large"])
def test_reading_stops_at_the_bound_of_items(body_bytes: int) -> None:
    read = 0

    def offers() -> Iterator[Offered]:
        nonlocal read
        while True:
            read += 1
            yield Offered(event=None, passed_over=True)

    with pytest.raises(Problem) as refused:
        admitted(offers(), bounds=BodyBounds(events_max=1000), body_bytes=body_bytes)
    assert refused.value.status == 413
    assert read <= 1300


@pytest.mark.parametrize("body_bytes", [1000, module.LARGE_BYTES + 1], ids=["small", "large"])
def test_reading_stops_after_many_faults_unless_an_event_was_right(body_bytes: int) -> None:
    (good,) = EventMill(seed=1).events(1)
    faulty = [Offered(event=b"{}")] * 5000
    found = admitted(faulty, body_bytes=body_bytes)
    assert found.is_futile
    assert module.FUTILE <= found.items < 2000
    found = admitted([Offered(event=good), *faulty], body_bytes=body_bytes)
    assert (len(found.bodies), len(found.rejected)) == (1, 5000)


def test_events_of_more_bytes_than_the_bound_are_a_413() -> None:
    (event,) = EventMill(seed=4).events(1)
    with pytest.raises(Problem) as refused:
        admitted([Offered(event=event)] * 100, bounds=BodyBounds(unpacked_bytes_max=50 * len(event)))
    assert refused.value.status == 413


async def test_others_have_their_turns_while_a_body_of_many_items_is_admitted() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    with InWork(2**30).share("a") as share:
        body = array(EventMill(seed=5).events(5000))
        await Admission(BOUNDS).admit(contract.read(body), body_bytes=1000, caller=EVERYBODY, share=share)
    assert turns >= 15
    task.cancel()


# --- tenancy ------------------------------------------------------------------------------------------

NAMES = st.sampled_from(("Acme", "Umbrella", "acme ", "\u00c4", str(MINE), str(MINE).upper(), str(THEIRS)))
ORGS = st.none() | st.just("") | NAMES | st.uuids().map(str) | st.integers() | st.lists(NAMES, max_size=2)


def _contract_event(org: Any, other: Any, extra: Any) -> dict[str, Any]:
    (body,) = EventMill(seed=6).events(1)
    event: dict[str, Any] = {**json.loads(body), "eventId": str(uuid.uuid4()), "orgId": org, "org_id": other}
    if org is None:
        del event["orgId"]
    return {**event, "metadata": {"orgId": str(extra), "org_id": str(extra)}, "tenant": extra}


def _snake(event: dict[str, Any], org: Any) -> dict[str, Any]:
    found = {mix.SNAKE.get(name, name): value for name, value in event.items()}
    return {**found, "orgId": str(THEIRS), "org_id": org}


def _envelope(event: dict[str, Any], org: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": wire.EVENT_TYPE,
        "id": "1",
        "source": f"/{org}",
        "subject": str(org),
        "orgId": org,
        "data": event,
    }


def _usage_record(org: Any, other: Any) -> dict[str, Any]:
    return {
        "record_id": str(uuid.uuid4()),
        "organization_id": org,
        "orgId": other,
        "api_key_id": "key-1",
        "model": "gpt-4o",
        "provider": "openai",
        "tokens_input": 3,
        "tokens_output": 4,
        "cost_usd": 0.01,
        "latency_ms": 5,
        "status": "success",
        "timestamp": "2026-11-23T10:00:00Z",
    }


def _litellm(org: Any, team: Any) -> dict[str, Any]:
    return {
        "litellm_call_id": str(uuid.uuid4()),
        "call_type": "acompletion",
        "status": "success",
        "custom_llm_provider": "openai",
        "model": "gpt-4o",
        "startTime": 1_795_000_000.0,
        "endTime": 1_795_000_001.0,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "metadata": {"user_api_key_org_id": org, "user_api_key_team_id": team, "orgId": str(THEIRS)},
    }


def _attribute(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": str(value)}}


def _traces(org: Any, other: Any) -> bytes:
    named = (
        "spendstream.org.id",
        "spendstream.org_id",
        "org.id",
        "org_id",
        "orgId",
        "tenant.id",
        "organization.id",
    )
    span = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "name": "chat gpt-4o",
        "startTimeUnixNano": "1795000000000000000",
        "endTimeUnixNano": "1795000001000000000",
        "attributes": [
            _attribute("gen_ai.operation.name", "chat"),
            _attribute("gen_ai.provider.name", "openai"),
            _attribute("gen_ai.request.model", "gpt-4o"),
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "3"}},
            {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "4"}},
            *([] if other is None else [_attribute(name, other) for name in named]),
        ],
    }
    resource = {"attributes": [] if org is None else [_attribute(name, org) for name in named]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}).encode()


CALLERS = st.sampled_from(
    (
        frozenset({MINE}),
        frozenset({ids.org_id("Acme")}),
        frozenset({MINE, ids.org_id("Acme")}),
        frozenset[uuid.UUID](),
    )
)


@settings(max_examples=300)
@given(orgs=CALLERS, org=ORGS, other=ORGS, extra=ORGS)
def test_a_caller_writes_no_other_orgs_event_in_any_dialect_whatever_it_names(
    orgs: frozenset[uuid.UUID], org: Any, other: Any, extra: Any
) -> None:
    caller = Caller(subject="a", roles=frozenset({"analytics:events:write"}), orgs=orgs)
    default = next(iter(orgs)) if len(orgs) == 1 else None
    ours = _contract_event(org, other, extra)
    bodies = [ours, _snake(ours, org), _envelope(ours, other), _envelope(_snake(ours, other), org)]
    bodies.append(_usage_record(org, other))
    lines = b"\n".join(json.dumps(body).encode() for body in bodies)
    offers = [
        *contract.read(json.dumps(bodies).encode(), default_org=default),
        *contract.read(lines, default_org=default, content_type="application/x-ndjson"),
        *contract.read(
            json.dumps(bodies[2:4]).encode(), default_org=default, content_type=contract.CLOUD_EVENTS
        ),
        *contract.read(
            json.dumps(ours).encode(),
            default_org=default,
            headers={"ce-specversion": "1.0", "ce-type": wire.EVENT_TYPE, "ce-subject": str(other)},
        ),
        *litellm.read(json.dumps([_litellm(org, other)]).encode(), default_org=default),
        *otlp.read(_traces(org, other), default_org=default, content_type="application/json"),
    ]
    found = admitted(offers, caller=caller)
    for body, key in zip(found.bodies, found.keys, strict=True):
        event = wire.read(body)
        assert isinstance(event, Event)
        assert event.org_id in orgs
        assert key == str(event.org_id)
        assert json.loads(body)["orgId"].lower() == key
    assert set(found.org_names) <= orgs


def test_an_event_of_the_callers_own_org_is_admitted_in_every_dialect() -> None:
    """So the property before holds of something."""
    caller = Caller(subject="a", roles=frozenset(), orgs=frozenset({MINE}))
    ours = _contract_event(str(MINE), None, "x")
    del ours["org_id"]
    snake = {mix.SNAKE.get(name, name): value for name, value in ours.items()}
    offers = [
        *contract.read(
            json.dumps([ours, snake, _envelope(ours, "x"), _usage_record(str(MINE), None)]).encode()
        ),
        *litellm.read(
            json.dumps([_litellm(str(MINE), None), _litellm(None, None)]).encode(), default_org=MINE
        ),
        *otlp.read(_traces(None, None), default_org=MINE, content_type="application/json"),
    ]
    found = admitted(offers, caller=caller)
    assert (found.rejected, len(found.bodies)) == ([], 7)


def test_an_event_that_is_ahead_of_our_clock_is_rejected_in_the_senders_words() -> None:
    now_s = 1_795_000_000.0
    ahead, near = (
        "2026-11-18T12:06:41Z",
        "2026-11-18T12:06:39Z",
    )  # an hour after, and a second on either side
    offers: list[Offered] = []
    for time_ in (ahead, near):
        (body,) = EventMill(seed=1).events(1)
        camel = json.loads(body) | {"occurredAt": time_}
        snake = {wire.SNAKE_NAMES[name]: value for name, value in camel.items()}
        wrapped = {"specversion": "1.0", "type": wire.EVENT_TYPE, "data": snake}
        for form in (camel, snake, wrapped):
            offers += _read_alone(json.dumps(form).encode())
        offers.append(Offered(event=json.dumps(camel).encode(), time_field="endTime"))
    in_work = InWork(2**30)

    async def run() -> Admitted:
        with in_work.share("a") as share:
            admission = Admission(BOUNDS, clock=lambda: now_s)
            return await admission.admit(iter(offers), body_bytes=1000, caller=EVERYBODY, share=share)

    found = asyncio.run(run())
    assert [one.index for one in found.rejected] == [0, 1, 2, 3]
    assert [one.faults[0].field for one in found.rejected] == [
        "occurredAt",
        "occurred_at",
        "data.occurred_at",
        "endTime",
    ]
    assert "60 minutes ahead of the collector's clock" in found.rejected[0].faults[0].message
    assert len(found.bodies) == 4


@pytest.mark.parametrize("body_bytes", [1000, module.LARGE_BYTES + 1], ids=["small", "large"])
def test_as_many_faults_as_the_page_says_are_futile(body_bytes: int) -> None:
    bad = Offered(event=None, faults=(Fault("a", "wrong"),))
    for passed_over in ([], [Offered(event=None, passed_over=True)] * 7):
        found = admitted([*passed_over, *[bad] * 3000], body_bytes=body_bytes)
        assert (found.is_futile, len(found.rejected)) == (True, module.FUTILE)
        assert found.items == module.FUTILE + len(passed_over)
