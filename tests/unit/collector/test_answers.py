"""What the collector answers: JSON, problems, and OTLP's messages as an exporter's own classes read them."""

import json
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from pipeline.collector import answers
from pipeline.collector.admit import EXPLAINED_MAX, Admitted
from pipeline.common.problems import Problem
from pipeline.core.wire import Fault

REQUEST_ID = UUID("0190b5a0-7b1c-7c3e-8e0f-3f1d2c4b5a69")


def admitted(accepted: int = 2, rejected: int = 0, passed_over: int = 0) -> Admitted:
    found = Admitted(bodies=[b"{}"] * accepted, keys=["k"] * accepted, passed_over=passed_over)
    for index in range(rejected):
        found.reject(index, (Fault("model", "is missing"), Fault("", "is no span")))
    found.items = accepted + rejected + passed_over
    return found


def read(response: web.Response) -> Any:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def otlp(response: web.Response) -> ExportTraceServiceResponse:
    assert response.content_type == "application/x-protobuf"
    message = ExportTraceServiceResponse()
    message.ParseFromString(response.body)
    return message


def test_our_own_answer_says_what_was_taken_and_what_was_not() -> None:
    assert read(answers.taken(admitted(), "json", passes_over=False)) == {"accepted": 2, "rejected": []}
    assert read(answers.taken(admitted(rejected=1, passed_over=3), "json", passes_over=True)) == {
        "accepted": 2,
        "rejected": [
            {
                "index": 0,
                "errors": [
                    {"field": "model", "message": "is missing"},
                    {"field": "", "message": "is no span"},
                ],
            }
        ],
        "passedOver": 3,
    }


def test_otlp_in_protobuf_has_a_partial_success_only_where_spans_were_rejected() -> None:
    assert otlp(answers.taken(admitted(), "otlp-protobuf", passes_over=True)) == ExportTraceServiceResponse()
    message = otlp(answers.taken(admitted(rejected=300), "otlp-protobuf", passes_over=True))
    assert message.partial_success.rejected_spans == 300
    assert message.partial_success.error_message == "span 0: model: is missing; is no span"


def test_otlp_in_json_writes_the_count_as_a_string() -> None:
    assert read(answers.taken(admitted(), "otlp-json", passes_over=True)) == {}
    assert read(answers.taken(admitted(rejected=3), "otlp-json", passes_over=True)) == {
        "partialSuccess": {"rejectedSpans": "3", "errorMessage": "span 0: model: is missing; is no span"}
    }


CODES = [(400, 3), (401, 16), (403, 7), (429, 8), (503, 14), (500, 13), (418, 2)]


@pytest.mark.parametrize(("status", "code"), CODES)
def test_an_error_of_otlp_is_a_status_message_in_the_form_that_was_sent(status: int, code: int) -> None:
    problem = Problem(status=status, detail="No. Gr\u00fc\u00dfe.", headers={"Retry-After": "2"})
    answer = answers.problem(problem, REQUEST_ID, "otlp-json")
    assert (answer.status, read(answer)) == (status, {"code": code, "message": "No. Gr\u00fc\u00dfe."})
    answer = answers.problem(problem, REQUEST_ID, "otlp-protobuf")
    text = "No. Gr\u00fc\u00dfe.".encode()
    assert answer.body == bytes([0x08, code, 0x12, len(text)]) + text
    assert answer.headers["Retry-After"] == "2"


def test_a_body_of_which_nothing_was_taken_is_a_problem_with_the_list() -> None:
    problem = answers.nothing_taken(admitted(accepted=0, rejected=2))
    answer = answers.problem(problem, REQUEST_ID, "json")
    assert answer.content_type == "application/problem+json"
    told = read(answer)
    assert told["instance"] == f"urn:uuid:{REQUEST_ID}"
    assert told["detail"] == "All 2 items are faulty, so nothing was taken. Item 0: model: is missing"
    assert [one["index"] for one in told["rejected"]] == [0, 1]


@pytest.mark.parametrize(
    ("accepted", "rejected", "passed_over", "said"),
    [
        (0, 1, 0, "The item is faulty"),
        (0, 3, 0, "All 3 items are faulty"),
        (2, 1, 0, "1 of 3 items is faulty"),
        (2, 2, 1, "2 of 5 items are faulty"),
        (0, 1, 4, "1 of 5 items is faulty"),
        (0, 1200, 0, "None of the first 1200 items is right: 1200 are faulty"),
    ],
)
def test_the_detail_counts_in_plain_english(
    accepted: int, rejected: int, passed_over: int, said: str
) -> None:
    detail = answers.nothing_taken(admitted(accepted, rejected, passed_over)).detail
    assert detail.startswith(f"{said}, so nothing was taken. Item 0: ")


def test_faults_and_names_are_cut_to_bounds() -> None:
    found = Admitted(items=EXPLAINED_MAX + 1)
    for index in range(EXPLAINED_MAX + 1):
        found.reject(index, [Fault("x" * 1000, "is wrong")] * 60)
    items = read(answers.taken(found, "json", passes_over=False))["rejected"]
    assert len(items) == EXPLAINED_MAX + 1
    assert [len(one["errors"]) for one in (items[0], items[-1])] == [50, 1]
    assert len(items[0]["errors"][0]["field"]) == 100
