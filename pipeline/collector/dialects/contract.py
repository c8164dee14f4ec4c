"""The wire contract over HTTP: our JSON in camelCase and snake_case, NDJSON, and CloudEvents 1.0.

The contract's fields are copied byte for byte and no others, so a number keeps its digits and a prompt in
an unknown field ends here. This module finds the variant of an event as `pipeline.core.wire` does, and
judges nothing else: an event that breaks a rule comes out with its broken fields as the sender wrote them,
and `wire.read` names the faults. So an event comes out in the sender's variant; `canonical` turns an event
that `wire.read` has taken into camelCase.

CloudEvents may be structured, a batch, or binary (``ce-`` headers, the event as the body).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote
from uuid import UUID

import msgspec
from msgspec import Raw

from pipeline.collector.dialects import Offered, Unreadable, framing, usage_record
from pipeline.core import wire
from pipeline.core.wire import Fault

CLOUD_EVENT: Final = "application/cloudevents+json"
CLOUD_EVENTS: Final = "application/cloudevents-batch+json"
_JOINED: Final = re.compile(rb"\}[ \t\r\n]*+\{")
"""Two objects without a comma between them: JSON has that in a text alone."""
_LINE_ENDS_GONE: Final = (
    "; if several events stand in one line, curl's -d may have taken the line ends away: use --data-binary"
)
_SEVERAL: Final = "; several events are an array, or lines as application/x-ndjson"
CONTENT_TYPES: Final = (framing.JSON, *framing.LINES, CLOUD_EVENT, CLOUD_EVENTS)
_SPECVERSION: Final = "1.0"

_NONE: Final = Raw(b"")
"""The text of an absent member."""


def _struct(name: str, fields: Iterable[str]) -> type[msgspec.Struct]:
    """An object whose members are kept as JSON texts. Of two members with one name, the last counts."""
    members = [(field, Raw, msgspec.field(default=_NONE)) for field in fields]
    return msgspec.defstruct(name, members, omit_defaults=True, gc=False)


_AROUND: Final = ("specversion", "type", "data", "data_base64")
_CamelCase: Final = _struct("_CamelCase", wire.CAMEL_NAMES)
_SnakeCase: Final = _struct(
    "_SnakeCase",
    (*wire.SNAKE_NAMES.values(), wire.SHORT_COST_NAMES["costEstimateCents"], *_AROUND, usage_record.ID),
)
_CAMEL_CASE: Final = msgspec.json.Decoder(_CamelCase)
_SNAKE_CASE: Final = msgspec.json.Decoder(_SnakeCase)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_ENCODER: Final = msgspec.json.Encoder()


def read(
    body: bytes,
    *,
    default_org: UUID | None = None,
    content_type: str = framing.JSON,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Offered]:
    """What a body offers, in its order.

    A line of NDJSON that is no event is one faulty item, and the lines beside it are read. A record of
    `usage_record` may stand wherever an event of ours may.

    Args:
        default_org: The org of an event that names none.
        content_type: One of `CONTENT_TYPES`, perhaps with parameters. All others are read as JSON.
        headers: The headers of the request, for CloudEvents in binary mode. Their case is ignored.

    Raises:
        Unreadable: the body is no JSON, or not what its content type says. It may come after some items.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in framing.LINES:
        for line in framing.lines(body):
            yield _line(line, default_org)
        return
    framing.check_text(body)
    first = framing.first_of(body)
    attributes = {} if kind in (CLOUD_EVENT, CLOUD_EVENTS) else _binary(headers or {})
    if first == b"[" and kind != CLOUD_EVENT and not attributes:
        for element in framing.elements(body):
            yield _offered(element, default_org)
        return
    if kind == CLOUD_EVENTS:
        raise Unreadable("expected an array of CloudEvents")
    if first == b"[":
        raise Unreadable(f"expected one event; send several as {CLOUD_EVENTS}")
    item = body.strip(framing.SPACE)
    if fault := framing.fault_of(item):
        raise Unreadable(f"{fault}{_SEVERAL}" if _JOINED.search(item) else fault)
    faults = tuple(_attribute_faults(attributes))
    if faults:
        yield Offered(event=None, faults=faults)
    else:
        yield _offered(item, default_org)


def canonical(event: bytes) -> bytes:
    """An event in camelCase, without an envelope: ``event`` is what `read` gave and `wire.read` has taken."""
    if event.startswith(b'{"eventId":'):
        return event
    fields = _decoded(event, _SNAKE_CASE)
    if fields.event_id is not _NONE:
        return _ENCODER.encode(_CamelCase(*(getattr(fields, name) for name in _names(fields).values())))
    return canonical(bytes(fields.data))


def spelled(event: bytes, name: str) -> str:
    """How an event that `read` gave and `wire.read` knows spells a field of the contract."""
    if event.startswith(b'{"event_id":'):
        return wire.SNAKE_NAMES[name]
    if event.startswith(b'{"specversion":'):
        return f"data.{spelled(bytes(_decoded(event, _SNAKE_CASE).data), name)}"
    return name


def _line(line: bytes, default_org: UUID | None) -> Offered:
    try:
        framing.check_text(line)
    except Unreadable as error:
        return _faulty(str(error))
    offered = _offered(line, default_org)
    if offered.faults and not offered.faults[0].field and _JOINED.search(line):
        first = offered.faults[0]
        return _faulty(f"{first.message}{_LINE_ENDS_GONE}")
    return offered


def _faulty(message: str, field: str = "") -> Offered:
    return Offered(event=None, faults=(Fault(field, message),))


def _offered(item: bytes, default_org: UUID | None) -> Offered:
    if len(item) > wire.BODY_BYTES_MAX:
        return _faulty(f"larger than {wire.BODY_BYTES_MAX} bytes")
    if framing.is_too_deep(item):
        return _faulty(framing.TOO_DEEP)
    try:
        camel_case: Any = _CAMEL_CASE.decode(item)
    except msgspec.DecodeError:
        verdict = wire.read(item)
        if isinstance(verdict, wire.Invalid) and verdict.reason == "malformed":
            return Offered(event=None, faults=verdict.faults)
        camel_case = _decoded(item, _CAMEL_CASE)
    if camel_case.eventId is not _NONE:
        return Offered(event=_in_camel_case(camel_case, default_org))
    fields = _decoded(item, _SNAKE_CASE)
    if fields.event_id is not _NONE:
        return Offered(event=_in_snake_case(fields, default_org))
    if fields.specversion is not _NONE:
        return _of_envelope(fields, default_org)
    if fields.record_id is not _NONE:
        return usage_record.offered(_members(item), default_org=default_org)
    return Offered(event=_in_camel_case(camel_case, default_org))


# --- the variants of the contract, told apart as `wire` tells them apart ------------------------------------


def _in_camel_case(fields: Any, default_org: UUID | None) -> bytes:
    if default_org is not None and _names_no_org(fields.orgId):
        fields.orgId = _quoted(default_org)
    return _ENCODER.encode(fields)


def _in_snake_case(fields: Any, default_org: UUID | None) -> bytes:
    """The event in the sender's spelling. `wire` looks at one of the two names of the cost only."""
    if default_org is not None and _names_no_org(fields.org_id):
        fields.org_id = _quoted(default_org)
    if _names(fields) is wire.SNAKE_NAMES:
        fields.cost_estimate = _NONE
    fields.specversion = fields.type = fields.data = fields.data_base64 = fields.record_id = _NONE
    return _ENCODER.encode(fields)


def _names_no_org(given: Raw) -> bool:
    return bytes(given) in (b"", b"null")


def _names(fields: Any) -> Mapping[str, str]:
    """The contract's fields, and how an event in snake_case spells them."""
    short = fields.cost_estimate_cents is _NONE and fields.cost_estimate is not _NONE
    return wire.SHORT_COST_NAMES if short else wire.SNAKE_NAMES


def _of_envelope(envelope: Any, default_org: UUID | None) -> Offered:
    """A CloudEvent in structured mode. What the envelope has wrong is null in the result, so that no text
    of the envelope gets out, and `wire.read` names it."""
    if envelope.data is _NONE and envelope.data_base64 is not _NONE:
        data = _from_base64(envelope.data_base64)
        if data is None:
            return _faulty("expected an event in JSON, as base64", "data_base64")
    else:
        data = bytes(envelope.data)
    specversion = b'"1.0"' if _text(envelope.specversion) == _SPECVERSION else b"null"
    kind = b'"%b"' % wire.EVENT_TYPE.encode() if _text(envelope.type) == wire.EVENT_TYPE else b"null"
    return Offered(
        event=b'{"specversion":%b,"type":%b,"data":%b}' % (specversion, kind, _of_data(data, default_org))
    )


def _of_data(data: bytes, default_org: UUID | None) -> bytes:
    """The event in an envelope. What is no event stays none, without its content."""
    if framing.first_of(data) != b"{":
        return b"null"
    camel_case = _decoded(data, _CAMEL_CASE)
    if camel_case.eventId is not _NONE:
        return _in_camel_case(camel_case, default_org)
    fields = _decoded(data, _SNAKE_CASE)
    if fields.event_id is not _NONE:
        return _in_snake_case(fields, default_org)
    return (
        b'{"specversion":null}'
        if fields.specversion is not _NONE
        else _in_camel_case(camel_case, default_org)
    )


def _from_base64(text: bytes | Raw) -> bytes | None:
    """An event that an envelope has as base64. None: it is no JSON in base64, or breaks a bound."""
    try:
        data = base64.b64decode(_text(text) or "", validate=True)
        framing.check_text(data)
    except (binascii.Error, ValueError):
        return None
    return None if framing.is_too_deep(data) or framing.fault_of(data) else data


def _binary(headers: Mapping[str, str]) -> dict[str, str]:
    """The attributes of a CloudEvent in binary mode. Empty: the request is none."""
    found = {name.lower(): value for name, value in headers.items() if name.lower() in _ATTRIBUTES}
    return dict.fromkeys(_ATTRIBUTES, "") | found if found else {}


_ATTRIBUTES: Final = {
    "ce-specversion": (_SPECVERSION, "expected CloudEvents 1.0"),
    "ce-type": (wire.EVENT_TYPE, f"expected {wire.EVENT_TYPE}"),
}


def _attribute_faults(attributes: Mapping[str, str]) -> Iterator[Fault]:
    for name, value in attributes.items():
        expected, message = _ATTRIBUTES[name]
        if _of_header(value) != expected:
            yield Fault(name, message)


def _of_header(value: str) -> str:
    """An attribute that a header has. Senders may quote it, and write any character as its UTF-8 bytes in
    hex, such as ``%2E`` for a point: section 3.1.3.2 of CloudEvents' HTTP binding."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return unquote(value)


# --- JSON texts ---------------------------------------------------------------------------------------------


def _quoted(org_id: UUID) -> Raw:
    return Raw(b'"%b"' % str(org_id).encode())


def _text(json_text: bytes | Raw) -> str | None:
    """A string of JSON. None: it is something else."""
    try:
        return msgspec.json.decode(json_text, type=str)
    except msgspec.DecodeError:
        return None


def _decoded(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """A struct of an object that is JSON, perhaps with halves of surrogate pairs."""
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        members = _members_by_hand(text)
        kind = decoder.type
        return kind(**{name: Raw(members[name]) for name in kind.__struct_fields__ if name in members})


def _members(text: bytes) -> Mapping[str, bytes | Raw]:
    """All members of such an object."""
    try:
        return _MEMBERS.decode(text)
    except msgspec.DecodeError:
        return _members_by_hand(text)


_PYTHON: Final = json.JSONDecoder(parse_float=str, parse_int=str)
_SPACES: Final = re.compile(r"[ \t\n\r]*+")


def _members_by_hand(text: bytes) -> dict[str, bytes]:
    """The members of an object that msgspec refuses because of halves of surrogate pairs, which are kept."""
    given = text.decode("utf-8")
    members: dict[str, bytes] = {}
    at = _after_spaces(given, given.index("{") + 1)
    while given[at] != "}":
        name, at = _PYTHON.raw_decode(given, at)
        start = _after_spaces(given, given.index(":", at) + 1)
        _, at = _PYTHON.raw_decode(given, start)
        members[name] = given[start:at].encode()
        at = _after_spaces(given, at)
        if given[at] == ",":
            at = _after_spaces(given, at + 1)
    return members


def _after_spaces(text: str, at: int) -> int:
    match = _SPACES.match(text, at)
    return match.end() if match else at
