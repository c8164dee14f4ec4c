"""OTLP traces over HTTP, as protobuf and as JSON: the spans that are calls of a model become events.

This module knows the two encodings, the answer that OTLP wants, and which spans describe the same call.
What a span says is `gen_ai`'s.

A call often has more than one span: an agent around it, or two instrumentations that are both switched on.
Spans that are known to be around calls are passed over by their kind. Of the others in one body, a span is
passed over if a call is inside it, or if a shorter span has the same answer of the provider and the same
tokens. Exporters send such spans together, as they end together, and they send a body again only as it was.
So a retry passes over the same spans."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Raw

from pipeline.collector.dialects import Offered, TooMuch, Unreadable, framing, gen_ai, protobuf
from pipeline.collector.dialects.drafts import OTHER, Number, Value, number_of, value_of
from pipeline.collector.dialects.gen_ai import Span
from pipeline.core.wire import Fault

PROTOBUF: Final = "application/x-protobuf"
CONTENT_TYPES: Final = (PROTOBUF, framing.JSON)
PARTS_MAX: Final = 4_000_000
"""So many fields of protobuf may a body have, as they are counted here: a span is `_SPAN_PARTS` of them, and
an attribute 2, or up to 6 if it is looked at. Example: 8,192 spans, as OpenTelemetry's own collector sends
them, with 128 attributes each, which is an SDK's bound, 20 of them looked at, count 3.3 million."""
JSON_VALUES_MAX: Final = 1_000_000
"""So many values may a body of JSON have, counted by its commas outside of strings."""
_SPAN_PARTS: Final = 64
"""A span takes the time and the memory of so many fields."""
_SMALLER: Final = "make the batches smaller (send_batch_max_size, or OTEL_BSP_MAX_EXPORT_BATCH_SIZE)"
_TEXT_BYTES_MAX: Final = 64 * 1024
"""A longer text of an attribute is not looked at: its JSON, its name or its label would be no use."""
_ERROR: Final = 2
_MESSAGE_MAX: Final = 256
_ALIKE_MAX: Final = 8
"""Provider ids that more spans have are no ids."""

_NONE: Final = Raw(b"")
_CIRCULAR: Final = Offered(
    event=None, faults=(Fault("parentSpanId", "names a span that is inside of this one"),)
)
_PASSED_OVER: Final = Offered(event=None, passed_over=True)


def read(body: bytes, *, default_org: UUID | None = None, content_type: str = PROTOBUF) -> Iterator[Offered]:
    """What the spans of a body offer, one for each span, in its order.

    Args:
        default_org: The org of a span that names none.
        content_type: `framing.JSON`, or else protobuf.

    Raises:
        Unreadable: the body is no ``ExportTraceServiceRequest``.
        TooMuch: the body has more than `PARTS_MAX` parts.
    """
    count = _Count()
    items = list(_from_json(body, count) if _is_json(content_type) else _from_protobuf(body, count))
    parents = _parents(items)
    circular = _circular(parents)
    passed_over = _around(items, parents) | _twice(items)
    for at, (link, found) in enumerate(items):
        if isinstance(found, Span) and link[:2] in circular:
            yield _CIRCULAR
        elif found is None or at in passed_over:
            yield _PASSED_OVER
        elif isinstance(found, Offered):
            yield found
        else:
            yield gen_ai.offered(found, default_org)


def answer(*, content_type: str = PROTOBUF, rejected: int = 0, message: str = "") -> bytes:
    """The body of a 200, an ``ExportTraceServiceResponse``. With ``rejected`` spans or a message it is a
    partial success, and the message says why.

    Args:
        content_type: That of the request: the answer has the same.
    """
    partial = bool(rejected or message)
    if _is_json(content_type):
        said = {"rejectedSpans": str(rejected), "errorMessage": message}
        return msgspec.json.encode({"partialSuccess": said} if partial else {})
    text = message.encode("utf-8", "replace")
    return protobuf.field(1, protobuf.field(1, rejected) + protobuf.field(2, text)) if partial else b""


def failure(message: str, *, code: int, content_type: str = PROTOBUF) -> bytes:
    """The body of a 4xx or 5xx: a ``google.rpc.Status``. The code is one of ``google.rpc.Code``."""
    if _is_json(content_type):
        return msgspec.json.encode({"code": code, "message": message})
    return protobuf.field(1, code) + protobuf.field(2, message.encode("utf-8", "replace"))


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == framing.JSON


# --- which spans count --------------------------------------------------------------------------------------

Link = tuple[bytes, bytes, bytes]
"""Trace, span and parent."""
_NO_LINK: Final = (b"", b"", b"")
Item = tuple[Link, Span | Offered | None]
"""A span with its links. None: it is no call. Offered: it cannot be read."""


class _Count:
    """Counts what is looked at in a body, so that no body costs more time than its bytes are worth."""

    def __init__(self) -> None:
        self._left = PARTS_MAX

    def add(self, parts: int = 1) -> None:
        """Raises TooMuch: there are too many."""
        self._left -= parts
        if self._left < 0:
            raise TooMuch(f"more than {PARTS_MAX} fields: {_SMALLER}")

    def fields(self, message: bytes) -> Iterator[tuple[int, int | bytes]]:
        for one in protobuf.fields(message):
            if self._left <= 0:
                self.add()
            self._left -= 1
            yield one

    def all(self, message: bytes, number: int) -> Iterator[bytes]:
        """The messages that a field has. Other fields are passed over."""
        for name, value in self.fields(message):
            if name == number:
                yield protobuf.message_of(value)


def _item(link: Link, span: Span) -> Item:
    return link, span if gen_ai.is_call(span) else None


Place = tuple[bytes, bytes]
"""A trace, and a span in it."""


def _parents(items: list[Item]) -> dict[Place, Place]:
    """The parents of all spans that have ids. A span without an id is inside of no span, and none is inside
    of it: otherwise all spans without a parent would be."""
    return {
        (trace, span): (trace, parent if parent != span else b"")
        for (trace, span, parent), _ in items
        if gen_ai.is_id(trace, gen_ai.TRACE_BYTES) and gen_ai.is_id(span, gen_ai.SPAN_BYTES)
    }


def _circular(parents: dict[Place, Place]) -> set[Place]:
    """The spans that are inside of themselves. Which of them is the call cannot be told."""
    circular: set[Place] = set()
    seen: set[Place] = set()
    for start in parents:
        way: dict[Place, None] = {}
        place = start
        while place in parents and place not in seen:
            seen.add(place)
            way[place] = None
            place = parents[place]
        if place in way:
            circular.update(dropwhile(place.__ne__, way))
    return circular


def _around(items: list[Item], parents: dict[Place, Place]) -> set[int]:
    """The places of spans with a call inside."""
    around: set[Place] = set()
    for (trace, span, parent), found in items:
        outer = (trace, parent if parent != span else b"")
        while isinstance(found, Span) and outer in parents and outer not in around:
            around.add(outer)
            outer = parents[outer]
    return {at for at, ((trace, span, _), _) in enumerate(items) if (trace, span) in around}


def _twice(items: list[Item]) -> set[int]:
    """The places of spans for which another one describes the same call: of two, the longer."""
    alike: dict[str, list[tuple[int, Span]]] = defaultdict(list)
    for at, (_, found) in enumerate(items):
        if isinstance(found, Span) and (answer_id := gen_ai.response_id(found)):
            alike[answer_id].append((at, found))
    twice = set()
    for spans in alike.values():
        if 1 < len(spans) <= _ALIKE_MAX:
            spans.sort(key=lambda one: (one[1].end_ns - one[1].start_ns, one[0]))
            for place, (at, outer) in enumerate(spans):
                if any(
                    outer.start_ns <= inner.start_ns
                    and inner.end_ns <= outer.end_ns
                    and gen_ai.same_call(inner, outer)
                    for _, inner in spans[:place]
                ):
                    twice.add(at)
    return twice


# --- protobuf -----------------------------------------------------------------------------------------------


def _from_protobuf(body: bytes, count: _Count) -> Iterator[Item]:
    try:
        for of_resource in count.all(body, 1):
            resource: dict[str, Value] = {}
            for part in count.all(of_resource, 1):
                resource |= _attributes(count.all(part, 1), count)
            for of_scope in count.all(of_resource, 2):
                scope = "".join(
                    protobuf.text_of(name) for part in count.all(of_scope, 1) for name in count.all(part, 1)
                )
                for span in count.all(of_scope, 2):
                    count.add(_SPAN_PARTS)
                    try:
                        yield _span(span, scope, resource, count)
                    except protobuf.Broken as error:
                        yield _NO_LINK, Offered(event=None, faults=(Fault("span", str(error)),))
    except protobuf.Broken as error:
        raise Unreadable(f"no ExportTraceServiceRequest in protobuf: {error}") from error


def _span(message: bytes, scope: str, resource: dict[str, Value], count: _Count) -> Item:
    ids = {1: b"", 2: b"", 4: b""}
    times = {7: 0, 8: 0}
    attributes: dict[str, Value] = {}
    status: dict[int, int | bytes] = {2: b"", 3: 0}
    for number, value in count.fields(message):
        if number == 9:
            if value != b"":  # a call for each empty attribute would take most of the time of a body of them
                attributes |= _attributes((protobuf.message_of(value),), count)
        elif number in ids:
            ids[number] = protobuf.message_of(value)
        elif number in times:
            times[number] = protobuf.number_of(value)
        elif number == 11:
            event = protobuf.message_of(value)
            if event and b"exception" in count.all(event, 2):
                attributes |= _attributes(count.all(event, 3), count)
        elif number == 15:
            for part, given in count.fields(protobuf.message_of(value)):
                if part in status:
                    status[part] = given
    return _item(
        (ids[1], ids[2], ids[4]),
        Span(
            trace_id=ids[1],
            span_id=ids[2],
            parent_id=ids[4],
            scope=scope,
            start_ns=times[7],
            end_ns=times[8],
            is_error=protobuf.number_of(status[3]) == _ERROR,
            status_message=protobuf.text_of(protobuf.message_of(status[2])[:_MESSAGE_MAX]),
            attributes=attributes,
            resource=resource,
        ),
    )


def _attributes(messages: Iterable[bytes], count: _Count) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for message in messages:
        if not message:
            continue
        count.add()
        name = _first_text(message)
        if name is not None and gen_ai.wanted(name.decode("utf-8", "replace")) is None:
            continue
        parts: dict[int, int | bytes] = {1: b"", 2: b""}
        for number, value in count.fields(message):
            if number in parts:
                parts[number] = value
        key = gen_ai.wanted(protobuf.text_of(parts[1]))
        if key is not None:
            found[key] = _value(protobuf.message_of(parts[2]), count)
    return found


def _first_text(message: bytes) -> bytes | None:
    """The text of field 1, if the message is that text and then field 2 of some length, and nothing else.

    So an attribute that is not looked at is passed over without reading its value. None: read all fields.
    """
    size = len(message)
    if size < 4 or message[0] != 0x0A or message[1] > 0x7F:
        return None
    end = 2 + message[1]
    if size < end + 2 or message[end] != 0x12:
        return None
    length, start = message[end + 1], end + 2
    if length > 0x7F:
        if size < end + 3 or message[end + 2] > 0x7F:
            return None
        length, start = length & 0x7F | message[end + 2] << 7, end + 3
    return message[2:end] if start + length == size else None


def _value(message: bytes, count: _Count) -> Value:
    if len(message) > _TEXT_BYTES_MAX:
        return OTHER
    found: Value = None
    for number, value in count.fields(message):
        if number == 1:
            found = protobuf.text_of(value)
        elif number == 3:
            found = Number(protobuf.signed(protobuf.number_of(value)))
        elif number == 4:
            found = _number(protobuf.double(protobuf.number_of(value)))
        else:
            found = OTHER
    return found


def _number(value: float) -> Value:
    return Number(repr(value)) if math.isfinite(value) else OTHER


# --- JSON: ids in hex, 64-bit integers as texts or numbers, enums as numbers or names -----------------------


class _Value(msgspec.Struct, gc=False):
    stringValue: str | None = None
    intValue: Raw = _NONE
    doubleValue: Raw = _NONE
    boolValue: Raw = _NONE
    arrayValue: Raw = _NONE
    kvlistValue: Raw = _NONE
    bytesValue: Raw = _NONE


class _Attribute(msgspec.Struct, gc=False):
    key: str | None = None
    value: _Value | None = None


class _Event(msgspec.Struct):
    name: str | None = None
    attributes: list[_Attribute] | None = None


class _Status(msgspec.Struct):
    code: Raw = _NONE
    message: str | None = None


class _Span(msgspec.Struct):
    traceId: str | None = None
    spanId: str | None = None
    parentSpanId: str | None = None
    startTimeUnixNano: Raw = _NONE
    endTimeUnixNano: Raw = _NONE
    attributes: list[_Attribute] | None = None
    events: list[_Event] | None = None
    status: _Status | None = None


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] | None = None


class _Scope(msgspec.Struct):
    name: str | None = None


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[Raw] | None = None


class _ResourceSpans(msgspec.Struct):
    resource: _Resource | None = None
    scopeSpans: list[_ScopeSpans | None] | None = None


class _Request(msgspec.Struct):
    resourceSpans: list[_ResourceSpans | None] | None = None


_REQUEST: Final = msgspec.json.Decoder(_Request)
_SPAN: Final = msgspec.json.Decoder(_Span)
_NAME: Final = re.compile(r"\.(\w+)")


class _Wrong(ValueError):
    """A value has not the form that OTLP gives it."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.field = field


def _from_json(body: bytes, count: _Count) -> Iterator[Item]:
    framing.check_text(body)
    if framing.commas(body) > JSON_VALUES_MAX:
        raise TooMuch(f"more than {JSON_VALUES_MAX} values of JSON: {_SMALLER}, or send protobuf")
    try:
        request: _Request = framing.decoded(body, _REQUEST)
    except RecursionError:
        raise Unreadable(framing.TOO_DEEP) from None
    except msgspec.ValidationError as error:
        raise Unreadable(f"{_place(error) or 'body'}: {_WRONG}") from error
    except msgspec.DecodeError as error:
        raise Unreadable(framing.said(error)) from error
    for of_resource in request.resourceSpans or ():
        if of_resource is not None:
            resource = _json_attributes(of_resource.resource.attributes if of_resource.resource else None)
            for of_scope in of_resource.scopeSpans or ():
                scope = of_scope.scope.name if of_scope and of_scope.scope else None
                for span in (of_scope.spans if of_scope else None) or ():
                    count.add(_SPAN_PARTS)
                    yield _json_item(bytes(span), scope or "", resource)


_WRONG: Final = "another type of value than OTLP gives it"


def _place(error: msgspec.ValidationError) -> str:
    """The field that a value of a wrong type has: the last name in a path such as ``$.attributes[0].key``."""
    names = _NAME.findall(str(error).partition("`$")[2])
    return str(names[-1]) if names else ""


def _json_item(text: bytes, scope: str, resource: dict[str, Value]) -> Item:
    try:
        span: _Span = framing.decoded(text, _SPAN)
        trace_id, span_id, parent_id = (
            _hex(getattr(span, name), name) for name in ("traceId", "spanId", "parentSpanId")
        )
        attributes = _json_attributes(span.attributes)
        for event in span.events or ():
            if event.name == "exception":
                attributes |= _json_attributes(event.attributes)
        status = span.status or _Status()
        return _item(
            (trace_id, span_id, parent_id),
            Span(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=parent_id,
                scope=scope,
                start_ns=_unsigned(span.startTimeUnixNano, "startTimeUnixNano"),
                end_ns=_unsigned(span.endTimeUnixNano, "endTimeUnixNano"),
                is_error=value_of(status.code) in (str(_ERROR), "STATUS_CODE_ERROR"),
                status_message=(status.message or "")[:_MESSAGE_MAX],
                attributes=attributes,
                resource=resource,
            ),
        )
    except msgspec.ValidationError as error:
        return _NO_LINK, Offered(event=None, faults=(Fault(_place(error) or "span", _WRONG),))
    except _Wrong as error:
        return _NO_LINK, Offered(event=None, faults=(Fault(error.field, str(error)),))


def _json_attributes(attributes: list[_Attribute] | None) -> dict[str, Value]:
    found = ((gen_ai.wanted(one.key or ""), one.value) for one in attributes or ())
    return {key: None if value is None else _json_value(value) for key, value in found if key is not None}


def _json_value(value: _Value) -> Value:
    if value.stringValue is not None:
        return value.stringValue if len(value.stringValue) <= _TEXT_BYTES_MAX else OTHER
    for given in (value.intValue, value.doubleValue):
        number = value_of(given)
        if isinstance(number, str) and not isinstance(number, Number):
            number = number_of(number)
        if number is not None:
            return number if isinstance(number, Number) else OTHER
    others = (value.boolValue, value.arrayValue, value.kvlistValue, value.bytesValue)
    return None if all(bytes(other) in (b"", b"null") for other in others) else OTHER


def _hex(text: str | None, field: str) -> bytes:
    try:
        return bytes.fromhex(text) if text and text.isalnum() else b""
    except ValueError:
        raise _Wrong(field, "hexadecimal digits") from None


def _unsigned(text: Raw, field: str) -> int:
    value = value_of(text)
    if value is None:
        return 0
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit():
        return int(value)
    raise _Wrong(field, "nanoseconds since 1970, as an integer")
