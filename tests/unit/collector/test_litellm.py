"""LiteLLM's payloads as LiteLLM sent them: tokens, costs, outcomes, ids; and nothing of what was said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.collector import ids
from pipeline.collector.dialects import Offered, Unreadable, litellm
from pipeline.core import wire

FOLDER = Path(__file__).resolve().parents[2] / "data/litellm"
SDK: list[dict[str, Any]] = json.loads((FOLDER / "sdk.json").read_text())
PROXY: list[dict[str, Any]] = json.loads((FOLDER / "proxy.json").read_text())
ORG = UUID("5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e")
ACME = ids.org_id("acme")
SUCCESS, ERROR, TIMEOUT, THROTTLED = range(4)


def offered(*entries: Any, default_org: UUID | None = ORG) -> list[Offered]:
    return list(litellm.read(json.dumps(entries).encode(), default_org=default_org))


def event(entry: dict[str, Any], default_org: UUID | None = ORG) -> wire.Event:
    [found] = offered(entry, default_org=default_org)
    assert isinstance(found.event, bytes), found
    read = wire.read(found.event)
    assert isinstance(read, wire.Event)
    return read


def entry_of(entries: list[dict[str, Any]], **like: Any) -> dict[str, Any]:
    """A copy of the first entry that has these values."""
    return deepcopy(next(one for one in entries if all(one[name] == value for name, value in like.items())))


CHAT = entry_of(SDK, model="o4-mini", status="success", stream=None)


def changed(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """With some values changed; a name with two underscores goes into a part."""
    entry = deepcopy(entry)
    for name, value in changes.items():
        *path, last = name.split("__")
        part = entry
        for step in path:
            part = part[step]
        part[last] = value
    return entry


def test_a_plain_call_arrives_whole() -> None:
    assert event(CHAT) == wire.Event(
        event_id=UUID(CHAT["litellm_call_id"]),
        org_id=ORG,
        model_id=ids.model_id("openai", "o4-mini"),
        client_id="",
        occurred_us=round(CHAT["endTime"] * 1_000_000),
        latency_ms=round((CHAT["endTime"] - CHAT["startTime"]) * 1000),
        status=SUCCESS,
        error_code="",
        input_tokens=2006,
        output_tokens=300,
        cost_microcents=194_260,
        cache_read_tokens=1920,
        reasoning_tokens=192,
        provider="openai",
        model_name="o4-mini",
    )


def test_a_call_through_the_proxy_has_org_key_user_team_and_tags() -> None:
    entry = entry_of(PROXY, model_group="chat", stream=None)
    [found] = offered(entry, default_org=None)
    assert found.org_name == "acme"
    read = event(entry, default_org=None)
    assert (read.org_id, read.client_id) == (ACME, "checkout-service")
    assert read.actor_id == "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69"
    assert read.metadata == {
        "user": "0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69",
        "end_user": "end-user-7",
        "team": "Search",
        "key_alias": "checkout-service",
        "model_group": "chat",
        "tags": "checkout,feature:search",
    }


def test_the_org_is_the_one_that_litellm_names_else_the_callers_only_org_else_the_team() -> None:
    entry = entry_of(PROXY, model_group="chat", stream=None)
    team = changed(entry, metadata__user_api_key_org_id=None)
    nothing = changed(team, metadata__user_api_key_team_id=None)
    assert event(entry).org_id == ACME
    assert event(team).org_id == ORG, "a team is a part of the caller's org"
    assert event(team).metadata == event(entry).metadata
    [found] = offered(team, default_org=None)
    assert (found.org_name, found.org_field) == ("team-search", "metadata.user_api_key_team_id")
    assert event(team, default_org=None).org_id == ids.org_id("team-search")
    in_team = changed(nothing, metadata__team_id=str(ACME))
    assert (event(in_team).org_id, event(in_team, default_org=None).org_id) == (ORG, ACME)
    assert event(nothing).org_id == ORG
    [found] = offered(nothing, default_org=None)
    assert [fault.field for fault in found.faults] == ["metadata.user_api_key_org_id"]
    assert "name the org" in found.faults[0].message


def test_streams_cost_the_same_and_take_the_time_to_their_end() -> None:
    for entry in [one for one in (*SDK, *PROXY) if one["stream"]]:
        read = event(entry)
        assert read.latency_ms == round((entry["endTime"] - entry["startTime"]) * 1000)
        assert (read.input_tokens, read.output_tokens) == (entry["prompt_tokens"], entry["completion_tokens"])


def test_anthropics_cached_tokens_are_inside_and_those_kept_for_an_hour_apart() -> None:
    """250 tokens were sent, 1,000 read from the cache and 1,200 written, of which 1,000 for an hour."""
    entries = [
        one
        for one in (*SDK, *PROXY)
        if one["model"].endswith("claude-sonnet-4-5") and one["prompt_tokens"] > 10
    ]
    assert {one["call_type"] for one in entries} == {"acompletion", "anthropic_messages"}
    for entry in entries:
        read = event(entry)
        kinds = (read.cache_read_tokens, read.cache_write_tokens, read.cache_write_1h_tokens)
        assert (read.input_tokens, *kinds, read.output_tokens) == (2450, 1000, 200, 1000, 77)
        assert read.model_name == "claude-sonnet-4-5"


@pytest.mark.parametrize("tokens", [250, 5000])
def test_cached_tokens_that_were_left_outside_are_added(tokens: int) -> None:
    """Older versions report Anthropic's own usage at /v1/messages."""
    entry = entry_of(SDK, call_type="anthropic_messages", stream=None)
    usage = {
        "input_tokens": tokens,
        "cache_creation_input_tokens": 1200,
        "cache_read_input_tokens": 1000,
        "output_tokens": 77,
    }
    entry["response"]["usage"] = usage
    entry["metadata"]["usage_object"] = usage
    entry["prompt_tokens"] = tokens
    read = event(entry)
    assert read.input_tokens == tokens + 2200
    assert (read.cache_read_tokens, read.cache_write_tokens) == (1000, 1200)


def test_reasoning_tokens_that_were_left_outside_are_added() -> None:
    assert event(changed(CHAT, completion_tokens=100)).output_tokens == 292
    assert event(changed(CHAT, completion_tokens=192)).output_tokens == 192


def test_the_tier_is_the_one_that_the_answer_names() -> None:
    flex = entry_of(SDK, model="o4-mini", response_cost=0.00097226)
    assert event(flex).service_tier == wire.SERVICE_TIERS.index("flex")
    assert event(changed(flex, response__service_tier="default")).service_tier == 0
    assert event(changed(flex, response="redacted")).service_tier == wire.SERVICE_TIERS.index("flex")
    assert event(changed(CHAT, response__service_tier="new-tier")).service_tier == 0
    fast = changed(CHAT, metadata__usage_object__speed="fast")
    assert event(fast).service_tier == wire.SERVICE_TIERS.index("fast")


def test_a_cost_is_the_decimal_that_was_written_and_zero_only_where_litellm_knows_it() -> None:
    [found] = offered(entry_of(SDK, response_cost=6.449999999999999e-06))
    assert b'"costEstimateCents":"0.0006449999999999999"' in (found.event or b"")
    unknown = entry_of(SDK, model="my-own-unknown-model")
    assert unknown["response_cost"] == 0
    assert event(unknown).cost_microcents is None
    free = changed(CHAT, response_cost=0.0, cost_breakdown__total_cost=0.0)
    assert event(free).cost_microcents == 0
    for doubt in ({"zero_cost_diagnostic": {"reason": "missing_pricing_key"}}, {"cost_breakdown": None}):
        assert event(changed(free, **doubt)).cost_microcents is None
    assert event(changed(CHAT, response_cost=None)).cost_microcents is None
    [found] = offered(changed(CHAT, response_cost=-1))
    assert [fault.field for fault in found.faults] == ["response_cost"]


def test_an_answer_from_litellms_cache_used_no_tokens_and_cost_nothing() -> None:
    cached = entry_of(SDK, cache_hit=True)
    assert (cached["prompt_tokens"], cached["completion_tokens"]) == (10, 20)
    read = event(cached)
    assert (read.status, read.input_tokens, read.output_tokens, read.cost_microcents) == (SUCCESS, 0, 0, 0)
    assert read.metadata["cache"] == "hit"
    first = entry_of(SDK, model="gpt-4o", cache_hit=None)
    assert event(first).event_id != read.event_id
    assert event(first).input_tokens == 10


def test_failures_are_throttled_timeouts_or_errors_with_the_class_as_their_code() -> None:
    seen = {}
    for entry in SDK:
        if entry["status"] == "failure":
            read = event(entry)
            seen[entry["error_information"]["error_class"]] = read.status
            assert read.error_code == entry["error_information"]["error_class"]
            assert (read.input_tokens, read.output_tokens, read.cost_microcents) == (0, 0, 0)
            assert read.provider == "openai"
    assert seen == {
        "InternalServerError": ERROR,
        "ContextWindowExceededError": ERROR,
        "RateLimitError": THROTTLED,
        "Timeout": TIMEOUT,
    }
    strange = changed(
        entry_of(SDK, status="failure"),
        error_information={"error_class": "CANARY and more", "error_code": 504, "llm_provider": "x"},
    )
    assert (event(strange).status, event(strange).error_code) == (TIMEOUT, "504")


def test_the_attempts_of_one_request_are_events_of_their_own() -> None:
    """A retry and a fallback have the call id of the first attempt. All three count, and each counts once."""
    attempts = [one for one in SDK if one["litellm_call_id"] == "11111111-2222-4333-8444-555555555555"]
    assert [one["status"] for one in attempts] == ["failure", "failure", "success"]
    made = [event(one).event_id for one in attempts]
    assert len(set(made)) == 3
    assert made[2] == UUID("11111111-2222-4333-8444-555555555555")
    assert made == [event(one).event_id for one in attempts]


def test_without_a_uuid_the_id_is_made_of_the_id_that_is_there() -> None:
    assert event(changed(CHAT, litellm_call_id="abc")).event_id == ids.event_id(ORG, "litellm", "abc")
    assert event(changed(CHAT, litellm_call_id=None)).event_id == ids.event_id(ORG, "litellm", "chatcmpl-up1")
    [found] = offered(changed(CHAT, litellm_call_id=None, id=None))
    assert [fault.field for fault in found.faults] == ["litellm_call_id"]


def test_a_batch_that_is_looked_at_twice_counts_once() -> None:
    looks = [
        changed(CHAT, call_type="aretrieve_batch", id="batch_1", litellm_call_id=str(UUID(int=n)))
        for n in (1, 2)
    ]
    one, two = (event(look) for look in looks)
    assert one == two
    assert one.service_tier == wire.SERVICE_TIERS.index("batch")


def test_what_asked_no_model_is_passed_over() -> None:
    refused = entry_of(PROXY, model="nosuch")
    files = changed(CHAT, call_type="acreate_file", prompt_tokens=0, completion_tokens=0, response_cost=0.0)
    for entry in (refused, files, changed(files, status="failure"), None):
        assert offered(entry) == [Offered(event=None, passed_over=True)]
    assert event(changed(files, response_cost=0.25)).cost_microcents == 25_000_000
    plain = changed(files, metadata__usage_object=None, response=None)
    assert event(changed(plain, prompt_tokens=5)).input_tokens == 5


@pytest.mark.parametrize(
    ("tokens", "field"),
    [
        ({}, "prompt_tokens"),
        ({"prompt_tokens": None, "completion_tokens": None}, "prompt_tokens"),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": 1001}, "prompt_tokens"),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 1001}, "total_tokens"),
        ({"prompt_tokens": 0, "completion_tokens": None, "total_tokens": 7}, "total_tokens"),
    ],
)
def test_a_call_whose_tokens_the_entry_does_not_tell_is_a_fault(tokens: dict[str, Any], field: str) -> None:
    entry = {name: value for name, value in CHAT.items() if not name.endswith("_tokens")} | tokens
    [found] = offered(entry)
    assert [fault.field for fault in found.faults] == [field]


def test_a_call_that_has_no_tokens_counts_as_a_call() -> None:
    """LiteLLM writes 0 where the answer has no usage, and one kind alone for embeddings."""
    none = changed(CHAT, prompt_tokens=0, completion_tokens=0, total_tokens=0, call_type="aspeech")
    none = changed(none, metadata__usage_object=None, response=None)
    assert (event(none).input_tokens, event(none).output_tokens) == (0, 0)
    assert event(changed(none, total_tokens=None)).input_tokens == 0
    one = changed(none, prompt_tokens=8, completion_tokens=None, total_tokens=8)
    assert (event(one).input_tokens, event(one).output_tokens) == (8, 0)
    failed = changed(entry_of(SDK, status="failure"), prompt_tokens=None, completion_tokens=None)
    assert event(failed).input_tokens == 0


@pytest.mark.parametrize(
    ("times", "field", "message"),
    [
        ({"endTime": None}, "endTime", "missing"),
        ({"endTime": ...}, "endTime", "missing"),
        ({"endTime": ""}, "endTime", "expected seconds since 1970"),
        ({"endTime": "x"}, "endTime", "expected seconds since 1970"),
        ({"endTime": True}, "endTime", "expected seconds since 1970"),
        ({"endTime": 1e11}, "endTime", "more than 2147483647 ms after startTime"),
        ({"endTime": 999_999_999_999.0}, "endTime", "after the year 9999"),
        ({"startTime": None}, "startTime", "missing"),
        ({"startTime": ...}, "startTime", "missing"),
        ({"startTime": "x"}, "startTime", "expected seconds since 1970"),
        ({"startTime": CHAT["endTime"] + 100}, "startTime", "more than 10 s after endTime"),
    ],
)
def test_a_wrong_time_is_named_with_its_reason(times: dict[str, Any], field: str, message: str) -> None:
    entry = {name: value for name, value in (CHAT | times).items() if value is not ...}
    [found] = offered(entry)
    assert [fault.field for fault in found.faults] == [field]
    assert message in found.faults[0].message


def test_a_clock_that_was_set_back_during_a_call_costs_its_latency_alone() -> None:
    assert event(changed(CHAT, startTime=CHAT["endTime"] + 9.5)).latency_ms == 0


@pytest.mark.parametrize(("levels", "is_read"), [(190, True), (250, False), (1000, False), (100_000, False)])
def test_an_entry_that_nests_too_deep_in_a_dropped_field_is_the_fault_of_this_entry(
    levels: int, is_read: bool
) -> None:
    deep = json.dumps(CHAT | {"messages": "DEEP"}).replace('"DEEP"', "[" * levels + "]" * levels)
    good = json.dumps(CHAT)
    for body in (f"[{good},{deep},{good}]", f"{good}\n{deep}\n{good}"):
        found = list(litellm.read(body.encode(), default_org=ORG))
        assert [one.event is not None for one in found] == [True, is_read, True]
        assert is_read or "nested more than 200 deep" in found[1].faults[0].message


def test_embeddings_and_images_are_counted() -> None:
    assert event(entry_of(SDK, call_type="aembedding")).input_tokens == 8
    image = event(entry_of(SDK, call_type="aimage_generation"))
    assert (image.input_tokens, image.output_tokens, image.cost_microcents) == (50, 1056, 4_249_000)


def test_arrays_lines_and_single_entries_are_read_alike() -> None:
    entries = [one for one in SDK if one["status"] == "success"]
    expected = offered(*entries)
    lines = "\n".join(json.dumps(entry) for entry in entries).encode()
    assert list(litellm.read(lines, default_org=ORG)) == expected, "LiteLLM calls lines application/json, too"
    assert list(litellm.read(lines, default_org=ORG, content_type="application/x-ndjson")) == expected
    for entry, found in zip(entries, expected, strict=True):
        assert list(litellm.read(json.dumps(entry).encode(), default_org=ORG)) == [found]


def test_a_broken_line_is_the_fault_of_this_line_only() -> None:
    good = json.dumps(CHAT).encode()
    found = list(litellm.read(b"\n".join([good, good[:-1], b"5", good]), default_org=ORG))
    assert [one.event is None for one in found] == [False, True, True, False]
    for body in (b"", b"x", good[:-1], b"[" + good, b"\xff", b"[" * 100_000):
        with pytest.raises(Unreadable):
            list(litellm.read(body, default_org=ORG))


def test_half_of_a_surrogate_pair_in_a_prompt_keeps_no_entry_from_counting() -> None:
    """Python writes it as an escape, where an emoji was cut in two."""
    halves = changed(CHAT, messages=[{"role": "user", "content": "CANARY \ud83d"}])
    body = json.dumps([halves, CHAT]).encode()
    assert rb"\ud83d" in body
    found = list(litellm.read(body, default_org=ORG))
    assert found == offered(CHAT, CHAT)


def test_an_entry_that_is_none_of_litellms_says_what_is_missing() -> None:
    [found] = offered({"eventId": "x", "prompt": "CANARY"})
    assert {"status", "model", "endTime"} <= {fault.field for fault in found.faults}
    [found] = offered(changed(CHAT, status="CANARY", prompt_tokens="CANARY", startTime="CANARY"))
    assert {"status", "prompt_tokens", "startTime"} == {fault.field for fault in found.faults}
    assert "CANARY" not in str(found)


READ = {
    *("model", "model_group", "custom_llm_provider", "end_user", *(f"request_tags.{n}" for n in range(4))),
    *(
        f"metadata.user_api_key_{name}"
        for name in ("hash", "alias", "user_id", "org_id", "team_id", "team_alias")
    ),
    *("metadata.user_api_key_end_user_id", "error_information.error_class", "error_information.error_code"),
    *(
        "error_information.llm_provider",
        "metadata.user_api_key_project_id",
        "metadata.user_api_key_project_alias",
    ),
    *("metadata.team_id", "metadata.team_alias"),
}


def leaves(part: Any, path: str = "") -> Iterator[str]:
    """The paths of all leaves."""
    members = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else None
    if members is None:
        yield path
    else:
        for name, inner in members:
            yield from leaves(inner, f"{path}.{name}".lstrip("."))


def put(entry: Any, path: str, value: Any) -> Any:
    entry = deepcopy(entry)
    *steps, last = path.split(".")
    part = entry
    for step in steps:
        part = part[int(step) if isinstance(part, list) else step]
    part[int(last) if isinstance(part, list) else last] = value
    return entry


def test_nothing_but_what_the_page_names_leaves_the_parser() -> None:
    """A canary in each leaf of each capture, one after the other: it comes out only where a label is read."""
    tried = 0
    for entry in (*SDK[:8], *SDK[10:18], *PROXY):
        for path in leaves(entry):
            for canary in ("CANARY-zq9x", {"CANARY-zq9x": "CANARY-zq9x"}, ["CANARY-zq9x"]):
                [found] = offered(put(entry, path, canary))
                said = str(found.faults).encode()
                assert b"zq9x" not in said, path
                if path not in READ or not isinstance(canary, str):
                    assert b"zq9x" not in (found.event or b""), path
                    assert found.org_name is None or "zq9x" not in found.org_name, path
                tried += 1
    assert tried > 2_000


def test_labels_are_cut_to_their_bounds_and_tags_too() -> None:
    entry = entry_of(PROXY, model_group="chat", stream=None)
    long = changed(
        entry,
        model="m" * 70_000,
        end_user="u" * 1000 + "\0",
        request_tags=["t" * 100, "u" * 100, "v", 5, None, *["w"] * 1000],
        metadata__user_api_key_alias="k" * 1000,
    )
    read = event(long)
    assert (len(read.model_name), len(read.client_id)) == (128, 128)
    assert read.metadata["tags"] == "t" * 100 + ",v" + ",w" * 11
    assert all(len(value) <= 128 for value in read.metadata.values())
    assert event(changed(entry, end_user="a\0b"))


def test_the_batch_of_the_page_is_an_event() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/howto/collect-litellm.md").read_text()
    batch = page.partition("cat > batch.json <<EOF\n")[2].partition("\nEOF\n")[0]
    (entry,) = json.loads(batch.replace("$(date +%s)", "1796006292"))
    found = event(entry, default_org=None)
    assert (found.org_id, found.client_id, found.latency_ms) == (ACME, "checkout", 800)
    assert (found.input_tokens, found.output_tokens, found.model_name) == (10, 20, "gpt-4o-mini")
    (offer,) = offered(entry, default_org=None)
    assert offer.event is not None
    assert not offer.passed_over
