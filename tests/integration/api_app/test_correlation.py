"""X-Request-ID and traceparent: every answer and every line of the log has what the caller sent."""

import logging
import uuid
from typing import Any

import pytest

from api.contract.operations import BASE, OPERATIONS
from tests.support.api_alone import ORG, READER, problem
from tests.support.api_in_process import Client, filled, serving
from tests.support.logs import Written, written_log

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GIVEN = {"X-Request-ID": "gateway/17", "traceparent": TRACEPARENT}


def served(written: Written) -> list[dict[str, Any]]:
    """The lines about requests; others are about the database that is away."""
    return [line for line in written.lines if line["event"] == "request_served"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_every_answer_and_its_log_line_have_the_id_and_the_trace(
    gateway: Client, operation: Any
) -> None:
    """Without a database and with the roles of a reader: 200, 302, 400, 403 and 503."""
    with written_log() as written:
        answer = await gateway.request(
            operation.method, filled(operation.path), headers={**READER, **GIVEN}, allow_redirects=False
        )
    assert {name: answer.headers[name] for name in GIVEN} == GIVEN
    (line,) = served(written)
    assert (line["request_id"], line["traceparent"]) == ("gateway/17", TRACEPARENT)
    if answer.content_type == "application/problem+json":
        assert (await answer.json())["instance"] == f"urn:uuid:{line['instance']}"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("PATCH", f"{BASE}/orgs", {}, 405),
        ("HEAD", f"{BASE}/status/healthz", {}, 200),
        ("GET", f"{BASE}/openapi.json", {"If-None-Match": "*"}, 304),
        ("GET", f"{BASE}/orgs/{ORG}/usage", {}, 401),
        ("POST", f"{BASE}/events/validate", {"Expect": "a miracle", **READER}, 417),
    ],
)
async def test_answers_of_no_handler_have_them_too(
    gateway: Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await gateway.request(method, path, headers={**headers, **GIVEN})
    assert answer.status == status
    assert {name: answer.headers[name] for name in GIVEN} == GIVEN


async def test_a_preflight_request_is_answered_with_them() -> None:
    async with serving({"AUTH_MODE": "gateway", "CORS_ORIGINS": "https://app.example.com"}) as client:
        asked = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
        answer = await client.options(f"{BASE}/orgs", headers={**asked, **GIVEN})
    assert answer.status == 204
    assert answer.headers["X-Request-ID"] == "gateway/17"


async def test_what_goes_wrong_in_a_request_is_logged_with_its_id_and_nothing_after_it() -> None:
    """Redis is away: the line about that has the id of the request that asked it."""
    async with serving({"AUTH_MODE": "gateway", "REDIS_URL": "redis://127.0.0.1:9/0"}) as client:
        with written_log() as written:
            await client.get(f"{BASE}/orgs/{ORG}/freshness", headers={**READER, **GIVEN})
            await client.get("/nothing", headers={"X-Request-ID": "next"})
            logging.getLogger("api").info("between_requests")
    events = {line["event"]: line.get("request_id") for line in written.lines}
    assert events["redis_unavailable"] == "gateway/17"
    assert [line["request_id"] for line in served(written)] == ["gateway/17", "next"]
    assert events["between_requests"] is None


async def test_an_id_that_is_a_uuid_is_the_instance_of_a_problem(gateway: Client) -> None:
    given = str(uuid.uuid4())
    with written_log() as written:
        for sent in (given, given.upper()):
            answer = await gateway.get("/nothing", headers={"X-Request-ID": sent})
            assert answer.headers["X-Request-ID"] == sent
            assert (await problem(answer, 404))["instance"] == f"urn:uuid:{given}"
    assert [line.get("instance") for line in served(written)] == [None, given]


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "caf\u00e9"])
async def test_an_id_of_another_form_gives_way_to_one_of_ours(gateway: Client, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    with written_log() as written:
        answer = await gateway.get("/nothing", headers=headers)
    ours = answer.headers["X-Request-ID"]
    assert str(uuid.UUID(ours)) == ours
    assert (await answer.json())["instance"] == f"urn:uuid:{ours}"
    assert [line["request_id"] for line in served(written)] == [ours]


@pytest.mark.parametrize(
    "given",
    [
        "00-abc",
        TRACEPARENT.upper(),
        TRACEPARENT.replace("00-0", "ff-0", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"{TRACEPARENT} ",
    ],
)
async def test_a_trace_of_another_form_is_left_out(gateway: Client, given: str) -> None:
    answer = await gateway.get("/nothing", headers={"traceparent": given})
    is_right = given.strip() == TRACEPARENT  # blanks around a value are not a part of it
    assert answer.headers.get("traceparent") == (TRACEPARENT if is_right else None)


async def test_a_header_that_comes_twice_is_nobodys(gateway: Client) -> None:
    twice = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
    answer = await gateway.get("/nothing", headers=twice)
    assert uuid.UUID(answer.headers["X-Request-ID"])
