"""Chunk entries to payloads: every framing that senders use, and whatever else arrives."""

import gzip
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.transports.frames import (
    BrokenChunk,
    _decode_any,
    amqp_message,
    amqp_payload,
    decode_entries,
    gzip_batch,
    unpack_batch,
)
from pipeline.transports.rabbitmq_publisher import _batches

JSON = b'{"eventId": "1"}'
HEADER = b"\x00\x53\x70\xc0\x03\x01\x41\x05"  # list of one: durable, then a stray byte inside its size
EMPTY_LIST_HEADER = b"\x00\x53\x70\x45"
ANNOTATIONS = b"\x00\x53\x72\xc1\x0a\x02\xa3\x05x-key\x54\x07"
PROPERTIES = b"\x00\x53\x73\xd0\x00\x00\x00\x06\x00\x00\x00\x01\xa1\x00"
APPLICATION_PROPERTIES = b"\x00\x53\x74\xd1\x00\x00\x00\x0b\x00\x00\x00\x02\xa1\x01a\xa1\x02bc"
FOOTER = b"\x00\x53\x78\xc1\x01\x00"


def entry(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def batch(stored: bytes, *, codec: int, records: int, unpacked_bytes: int) -> bytes:
    return struct.pack(">BHII", 0x80 | codec << 4, records, unpacked_bytes, len(stored)) + stored


def gzipped(*bodies: bytes) -> bytes:
    unpacked_bytes, stored = gzip_batch(bodies)
    return batch(stored, codec=1, records=len(bodies), unpacked_bytes=unpacked_bytes)


def decode(data: bytes, *, entries: int, records: int) -> Sequence[bytes]:
    framed = b"head" + data + b"trailer"
    return decode_entries(framed, 4, 4 + len(data), entries=entries, records=records)


_entries = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=300).map(amqp_message),
    st.binary(max_size=20).map(lambda body: b"\x00\x53\x75" + body),
    st.binary(max_size=20).map(lambda body: HEADER + amqp_message(body)),
    st.just(b""),
)


@given(st.lists(_entries, max_size=8), st.integers(-2, 2), st.integers(-9, 9))
def test_the_compiled_way_through_a_chunk_agrees_with_the_plain_one(
    bodies: list[bytes], miscounted: int, cut: int
) -> None:
    data = b"".join(map(entry, bodies))
    framed = b"head" + data + b"trailer, of eight bytes or more"
    end, entries = max(4, 4 + len(data) + cut), max(0, len(bodies) + miscounted)
    try:
        expected = _decode_any(framed, 4, end, entries, entries)
    except BrokenChunk as error:
        with pytest.raises(BrokenChunk, match=re.escape(str(error))):
            decode_entries(framed, 4, end, entries=entries, records=entries)
    else:
        assert list(decode_entries(framed, 4, end, entries=entries, records=entries)) == expected


# --- AMQP 1.0 -----------------------------------------------------------------------------------


@given(st.binary(max_size=2000))
def test_an_amqp_message_holds_its_body(body: bytes) -> None:
    assert amqp_payload(amqp_message(body)) == body


@given(st.binary().filter(lambda b: b[:1] != b"\x00"))
def test_a_bare_body_is_its_own_payload(body: bytes) -> None:
    assert amqp_payload(body) == body


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\x00\x53" + tail))
@example(b"\x00" * 5000)
@example(b"\x00\x53\x75\xb0\xff\xff\xff\xff")
@example(b"\x00\x53\x75")
@example(b"\x00\x53\x75\xa0")
def test_any_bytes_have_a_payload_that_is_part_of_them(entry: bytes) -> None:
    payload = amqp_payload(entry)
    assert len(payload) <= len(entry)
    assert payload == entry or entry[:1] == b"\x00"


SECTIONS = [EMPTY_LIST_HEADER, ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES]


@given(before=st.lists(st.sampled_from(SECTIONS)), body=st.binary(max_size=400), footer=st.booleans())
def test_sections_around_the_data_are_walked_over(before: list[bytes], body: bytes, footer: bool) -> None:
    message = b"".join(before) + amqp_message(body) + (FOOTER if footer else b"")
    assert amqp_payload(message) == body


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_several_data_sections_are_one_body(parts: list[bytes]) -> None:
    assert amqp_payload(b"".join(map(amqp_message, parts))) == b"".join(parts)


@pytest.mark.parametrize(
    "descriptor",
    [b"\x00\x53\x75", b"\x00\x80" + (0x75).to_bytes(8, "big"), b"\x00\xa3\x10amqp:data:binary"],
    ids=["smallulong", "ulong", "symbol"],
)
def test_every_way_to_name_a_section_is_understood(descriptor: bytes) -> None:
    assert amqp_payload(descriptor + b"\xa0" + bytes((len(JSON),)) + JSON) == JSON


@pytest.mark.parametrize(
    "value",
    [
        b"\xa0\x10" + JSON,
        b"\xb0\x00\x00\x00\x10" + JSON,
        b"\xa1\x10" + JSON,
        b"\xb1\x00\x00\x00\x10" + JSON,
    ],
    ids=["vbin8", "vbin32", "str8", "str32"],
)
def test_a_value_section_of_binary_or_text_is_a_body(value: bytes) -> None:
    assert amqp_payload(EMPTY_LIST_HEADER + b"\x00\x53\x77" + value) == JSON


def test_a_described_value_inside_a_section_is_walked_over() -> None:
    nested = b"\x00\x53\x74\x00\xa1\x01d\x00\x53\x10\x40"  # a map that is itself described, twice
    assert amqp_payload(nested + amqp_message(JSON)) == JSON


@pytest.mark.parametrize(
    "entry",
    [
        amqp_message(JSON)[:-1],
        amqp_message(JSON) + b"x",
        b"\x00\x53\x75\x40",  # data that is null
        b"\x00\x53\x76\x45",  # a sequence
        b"\x00\x53\x77\x54\x01",  # a number
        b"\x00\x53\x79\xa0\x00",  # no such section
        b"\x00\x53\x70\x15",  # no such type
        EMPTY_LIST_HEADER,  # no body at all
        HEADER,
        b"\x00\xa3\x03foo\xa0\x00",
    ],
)
def test_what_cannot_be_walked_is_kept_whole(entry: bytes) -> None:
    assert amqp_payload(entry) == entry


# --- chunks ---------------------------------------------------------------------------------------

bodies_of_senders = st.lists(st.binary(min_size=1, max_size=50).map(lambda b: b"{" + b), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["raw", "amqp", "none", "gzip"]), bodies_of_senders), max_size=8))
def test_a_chunk_of_mixed_framings_gives_every_body_once(sent: list[tuple[str, list[bytes]]]) -> None:
    data, entries, expected = b"", 0, []
    for framing, bodies in sent:
        expected += bodies
        if framing in ("raw", "amqp"):
            data += b"".join(entry(amqp_message(b) if framing == "amqp" else b) for b in bodies)
            entries += len(bodies)
        elif framing == "gzip":
            data += gzipped(*bodies)
            entries += 1
        else:
            plain = b"".join(map(entry, bodies))
            data += batch(plain, codec=0, records=len(bodies), unpacked_bytes=len(plain))
            entries += 1
    assert decode(data, entries=entries, records=len(expected)) == expected


def test_empty_entries_count() -> None:
    assert decode(entry(b"") + entry(JSON) + entry(b""), entries=3, records=3) == [b"", JSON, b""]


def test_messages_inside_a_batch_may_be_framed() -> None:
    assert decode(gzipped(amqp_message(JSON), JSON), entries=1, records=2) == [JSON, JSON]


@pytest.mark.parametrize(
    ("stored", "records", "unpacked_bytes"),
    [
        (b"not gzip", 3, 60),
        (gzip.compress(entry(JSON) * 3)[:-9], 3, 60),
        (gzip.compress(entry(JSON) * 3), 3, 61),
        (gzip.compress(entry(JSON) * 3), 3, 59),
        (gzip.compress(entry(JSON) * 3), 2, 60),
        (gzip.compress(entry(JSON) * 3), 4, 60),
        (gzip.compress(b"\xff" * 60), 3, 60),
    ],
    ids=["garbage", "cut", "short", "long", "more-records", "fewer-records", "bad-lengths"],
)
def test_a_batch_that_lies_is_kept_and_the_chunk_goes_on(
    stored: bytes, records: int, unpacked_bytes: int
) -> None:
    data = entry(JSON) + batch(stored, codec=1, records=records, unpacked_bytes=unpacked_bytes) + entry(JSON)
    expected = [JSON, stored, *[b""] * (records - 1), JSON]
    assert decode(data, entries=3, records=records + 2) == expected


def test_a_gzip_bomb_is_not_unpacked_beyond_what_it_states() -> None:
    bomb = gzip.compress(b"\x00" * 2**26)
    assert unpack_batch(bomb, 1, 3, 60, 2**20) is None
    assert unpack_batch(bomb, 1, 3, 2**26, 2**20) is None


def test_batches_of_one_chunk_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transports.frames.UNCOMPRESSED_BYTES_MAX", 30)
    one = gzipped(JSON)
    _, stored = gzip_batch([JSON])
    assert decode(one + one, entries=2, records=2) == [JSON, stored]


@pytest.mark.parametrize(("codec", "name"), [(2, "snappy"), (3, "lz4"), (4, "zstd"), (7, "codec 7")])
def test_a_codec_that_cannot_be_read_stops_the_chunk(codec: int, name: str) -> None:
    data = entry(JSON) + batch(b"?", codec=codec, records=2, unpacked_bytes=10)
    with pytest.raises(BrokenChunk, match=name):
        decode(data, entries=2, records=3)


@pytest.mark.parametrize("entries", [1, 3])
@pytest.mark.parametrize("records", [1, 3])
def test_counts_that_do_not_hold_stop_the_chunk(entries: int, records: int) -> None:
    with pytest.raises(BrokenChunk):
        decode(entry(JSON) * 2, entries=entries, records=records)


def test_a_chunk_that_claims_absurdly_many_records_is_refused_before_it_fills_the_memory() -> None:
    claim = batch(b"", codec=1, records=65535, unpacked_bytes=0)
    with pytest.raises(BrokenChunk, match="claims"):
        decode(claim * 300, entries=300, records=300 * 65535)


@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 20))
def test_any_chunk_is_split_exactly_or_refused(data: bytes, entries: int, records: int) -> None:
    with suppress(BrokenChunk):
        assert len(decode_entries(data, 0, len(data), entries=entries, records=records)) == records


@given(st.lists(st.binary(max_size=40)), st.integers(1, 100))
def test_batches_are_cut_without_loss(bodies: list[bytes], batch_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.transports.rabbitmq_publisher._BATCH_BYTES", batch_bytes)
        batches = list(_batches(bodies))
    assert [body for cut in batches for body in cut] == bodies
    assert all(batches)


def test_gzip_batches_are_reproducible() -> None:
    assert gzip_batch([JSON]) == gzip_batch([JSON])
    assert zlib.decompress(gzip_batch([JSON])[1], wbits=31) == entry(JSON)
