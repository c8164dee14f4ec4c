"""The wire format of protocol buffers, against the generated classes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from pipeline.collector.dialects import protobuf


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=300))
def test_numbers_and_texts_are_what_the_generated_classes_write(
    number: int, double: float, text: bytes
) -> None:
    [(tag, varint)] = protobuf.fields(AnyValue(int_value=number).SerializeToString())
    assert (tag, protobuf.signed(protobuf.number_of(varint))) == (3, number)
    [(tag, fixed)] = protobuf.fields(AnyValue(double_value=double).SerializeToString())
    assert (tag, protobuf.double(protobuf.number_of(fixed))) == (4, double)
    message = AnyValue(bytes_value=text).SerializeToString()
    assert list(protobuf.fields(message)) == [(7, text)]
    assert protobuf.field(7, text) == message
    assert protobuf.field(3, number % 2**64) == AnyValue(int_value=number).SerializeToString()


def test_all_fields_of_a_span_come_and_fixed_numbers_of_32_bits_are_passed_over() -> None:
    span = Span(
        trace_id=b"t" * 16,
        start_time_unix_nano=2**64 - 1,
        kind=Span.SPAN_KIND_CLIENT,
        flags=7,
        name="é" * 100,
    )
    found = dict(protobuf.fields(span.SerializeToString()))
    assert found == {1: b"t" * 16, 7: 2**64 - 1, 6: 3, 5: ("é" * 100).encode()}
    assert protobuf.text_of(found[5]) == "é" * 100
    assert protobuf.text_of("é".encode()[:1]) == "\ufffd"


@given(st.binary(max_size=40))
def test_bytes_are_broken_where_the_generated_class_calls_them_broken(message: bytes) -> None:
    """But for groups, wrong kinds of known fields and texts that are no UTF-8, which are not this
    module's."""
    try:
        found = list(protobuf.fields(message))
    except protobuf.Broken:
        return
    assert all(isinstance(value, int | bytes) for _, value in found)
    rebuilt = b"".join(protobuf.field(number or 1, value) for number, value in found if number < 2**29)
    assert len(list(protobuf.fields(rebuilt))) == len([1 for number, _ in found if number < 2**29])


@pytest.mark.parametrize(
    "message",
    [b"\x0a", b"\x0a\x05ab", b"\x08", b"\x08\x80", b"\x41\0\0", b"\x45\0", b"\x80" * 20],
)
def test_a_message_that_ends_in_a_field_is_broken(message: bytes) -> None:
    with pytest.raises(DecodeError):
        Span.FromString(message)
    with pytest.raises(protobuf.Broken):
        list(protobuf.fields(message))
