"""What the collector answers: JSON of its own, problems, and OTLP's own messages in both encodings.

An OTLP exporter reads ``ExportTraceServiceResponse`` and, with an error, ``google.rpc.Status``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal
from uuid import UUID

import msgspec
from aiohttp import web

from pipeline.collector.admit import Admitted, Rejected
from pipeline.collector.dialects import framing, otlp
from pipeline.common import problems
from pipeline.common.problems import FIELD_CHARS_MAX, ErrorDetail, Problem, ProblemDetails

Form = Literal["json", "otlp-json", "otlp-protobuf"]
"""Our own JSON, or OTLP's JSON or protobuf."""
_TYPES: Final = {"otlp-json": framing.JSON, "otlp-protobuf": otlp.PROTOBUF}
_MESSAGE_CHARS_MAX: Final = 1000
# Codes of google.rpc.Code.
_RPC_CODES: Final = {
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    408: 4,
    413: 3,
    415: 3,
    429: 8,
    500: 13,
    501: 12,
    503: 14,
}
_UNKNOWN: Final = 2


class RejectedItem(msgspec.Struct, frozen=True):
    index: int
    errors: list[ErrorDetail]


class Taken(msgspec.Struct, frozen=True, rename="camel"):
    accepted: int
    rejected: list[RejectedItem]
    passed_over: int | msgspec.UnsetType = msgspec.UNSET


class _Details(ProblemDetails, frozen=True, kw_only=True):
    rejected: list[RejectedItem]


@dataclass(slots=True, kw_only=True, eq=False)
class NothingTaken(Problem):
    """Nothing of the body was published, because of these items."""

    rejected: Sequence[Rejected]


def nothing_taken(admitted: Admitted) -> NothingTaken:
    """No item is right, or one is faulty and the sender wants all or nothing."""
    first = admitted.rejected[0]
    fault = first.faults[0]
    count = len(admitted.rejected)
    if admitted.is_futile:
        which = f"None of the first {admitted.items} items is right: {count}"
    elif count < admitted.items:
        which = f"{count} of {admitted.items} items"
    else:
        which = f"All {count} items" if count > 1 else "The item"
    detail = (
        f"{which} {'are' if count > 1 else 'is'} faulty, so nothing was taken. Item {first.index}:"
        f" {fault.field and fault.field[:FIELD_CHARS_MAX] + ': '}{fault.message}"
    )
    return NothingTaken(
        status=400,
        kind="invalid-events",
        title="Invalid events",
        detail=detail,
        rejected=admitted.rejected,
    )


def taken(admitted: Admitted, form: Form, *, passes_over: bool) -> web.Response:
    """The answer once the events are safe."""
    if form == "json":
        body = Taken(
            accepted=len(admitted.bodies),
            rejected=_items(admitted.rejected),
            passed_over=admitted.passed_over if passes_over else msgspec.UNSET,
        )
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")
    count = len(admitted.rejected)
    message = f"span {first_fault(admitted.rejected)}" if count else ""
    told = otlp.answer(content_type=_TYPES[form], rejected=count, message=message)
    return web.Response(body=told, content_type=_TYPES[form])


def problem(error: Problem, instance: UUID, form: Form) -> web.Response:
    """The answer to a request that cannot be met."""
    if form != "json":
        code = _RPC_CODES.get(error.status, _UNKNOWN)
        return web.Response(
            status=error.status,
            body=otlp.failure(error.detail, code=code, content_type=_TYPES[form]),
            content_type=_TYPES[form],
            headers={"Cache-Control": "no-store", **error.headers},
        )
    if not isinstance(error, NothingTaken):
        return problems.response(error, instance)
    details = _Details(
        type=f"urn:spendstream:problem:{error.kind}",
        title=error.title or HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        instance=f"urn:uuid:{instance}",
        rejected=_items(error.rejected),
    )
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(details),
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", **error.headers},
    )


def first_fault(rejected: Sequence[Rejected]) -> str:
    """The place and every fault of the first item that was rejected, of at most 1,000 characters."""
    first = rejected[0]
    faults = "; ".join(
        f"{fault.field[:FIELD_CHARS_MAX]}: {fault.message}" if fault.field else fault.message
        for fault in first.faults
    )
    return f"{first.index}: {faults}"[:_MESSAGE_CHARS_MAX]


def _items(rejected: Sequence[Rejected]) -> list[RejectedItem]:
    return [
        RejectedItem(
            one.index, [ErrorDetail(fault.field[:FIELD_CHARS_MAX], fault.message) for fault in one.faults]
        )
        for one in rejected
    ]
