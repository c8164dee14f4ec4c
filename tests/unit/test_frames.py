"""Chunk entries to payloads: every framing that senders use, and whatever else arrives."""

import gzip
import hashlib
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.bodies import KEPT_BYTES_MAX, Unreadable, offsets_of
from pipeline.transports import TransportError
from pipeline.transports.rabbitmq import frames
from pipeline.transports.rabbitmq.amqp import amqp_message, amqp_payload
from pipeline.transports.rabbitmq.batches import gzip_batch
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.frames import BrokenChunk, Part, decode_parts
from pipeline.transports.rabbitmq.publisher import Framing, RabbitMQPublisher, _batches
from tests.support.codec_writers import STREAMED

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


def parts_of(data: bytes, *, entries: int, records: int) -> list[Part]:
    framed = b"head" + data + b"trailer, of eight bytes or more"
    return list(decode_parts(framed, 4, 4 + len(data), entries=entries, records=records, first_offset=0))


def decode(data: bytes, *, entries: int, records: int) -> Sequence[bytes]:
    """The bodies of a chunk in which every batch can be undone."""
    parts = parts_of(data, entries=entries, records=records)
    assert not any(part.unreadable for part in parts)
    return [bytes(body) for part in parts for body in part.bodies]


def naive(data: bytes, entries: int) -> list[bytes]:
    """The payloads of entries that are one record each, and fill ``data``. Raises ValueError."""
    bodies = []
    for _ in range(entries):
        if len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            raise ValueError
        length = int.from_bytes(data[:4], "big")
        bodies.append(amqp_payload(data[4 : 4 + length]))
        data = data[4 + length :]
    if data:
        raise ValueError
    return bodies


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
    counts = {"entries": entries, "records": entries, "first_offset": 0}
    try:
        expected = naive(framed[4:end], entries)
    except ValueError:
        with pytest.raises(BrokenChunk):
            decode_parts(framed, 4, end, **counts)
    else:
        parts = decode_parts(framed, 4, end, **counts)
        assert [bytes(body) for part in parts for body in part.bodies] == expected


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


# --- batches that lie ----------------------------------------------------------------------------


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
def test_a_batch_that_lies_is_one_run_of_unreadable_records_and_the_chunk_goes_on(
    stored: bytes, records: int, unpacked_bytes: int
) -> None:
    data = entry(JSON) + batch(stored, codec=1, records=records, unpacked_bytes=unpacked_bytes) + entry(JSON)
    (part,) = parts_of(data, entries=3, records=records + 2)
    assert part.bodies == [JSON, JSON]
    (run,) = part.unreadable
    assert (run.first_offset, run.records, run.stored.body) == (1, records, stored)
    assert f"a batch of {records} records cannot be undone" in run.fault
    assert offsets_of(0, 2, part.unreadable).tolist() == [0, records + 1]
    assert part.next_offset == records + 2


def test_a_claim_that_the_bytes_cannot_hold_is_known_false_before_anything_is_allocated() -> None:
    claim = batch(b"", codec=1, records=65535, unpacked_bytes=0)
    data, count = claim * 100, 100
    parts_of(data, entries=count, records=count * 65535)
    tracemalloc.start()
    parts = parts_of(data, entries=count, records=count * 65535)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    runs = [run for part in parts for run in part.unreadable]
    assert [(run.first_offset, run.records) for run in runs] == [(n * 65535, 65535) for n in range(count)]
    assert "65535 records in 0 bytes" in runs[0].fault
    assert sum(len(part.bodies) for part in parts) == 0
    assert peak < 500_000


def test_however_many_records_a_chunk_claims_none_stops_it() -> None:
    claim = batch(b"", codec=1, records=65535, unpacked_bytes=0)
    parts = parts_of(claim * 300 + entry(JSON), entries=301, records=300 * 65535 + 1)
    assert [body for part in parts for body in part.bodies] == [JSON]
    assert parts[-1].next_offset == 300 * 65535 + 1


def test_a_bomb_is_not_unpacked_at_all_and_of_its_bytes_no_more_is_kept_than_of_an_event() -> None:
    bomb = gzip.compress(b"\x00" * 2**26 + b"x", mtime=0)
    (part,) = parts_of(batch(bomb, codec=1, records=3, unpacked_bytes=2**26 + 1), entries=1, records=3)
    (run,) = part.unreadable
    assert re.search(r"claims to unpack from \d+ to 67108865 bytes; at most \d+ are", run.fault)
    stored = run.stored
    assert stored.body == bomb[:KEPT_BYTES_MAX]
    assert (stored.whole_bytes, stored.sha256) in (
        (None, None),
        (len(bomb), hashlib.sha256(bomb).digest()),
    )
    assert (stored.whole_bytes is None) == (len(bomb) <= KEPT_BYTES_MAX)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_is_not_unpacked_beyond_what_it_states(codec: int) -> None:
    bomb = STREAMED[codec](entry(b"\x00" * 2**22), 2**20)
    data = batch(bomb, codec=codec, records=3, unpacked_bytes=60)
    tracemalloc.start()
    (part,) = parts_of(data, entries=1, records=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [run.records for run in part.unreadable] == [3]
    assert peak < 2_000_000


def test_the_batches_of_a_chunk_share_the_room_that_its_bytes_give() -> None:
    plain = entry(b"{" + b" " * 3_000_000)
    one = batch(gzip.compress(plain, mtime=0), codec=1, records=1, unpacked_bytes=len(plain))
    room = 4 * 2**20 + 256 * len(one) * 8
    parts = parts_of(one * 8, entries=8, records=8)
    read = sum(len(part.bodies) for part in parts)
    assert read == room // len(plain)
    assert read + sum(run.records for part in parts for run in part.unreadable) == 8


def test_a_chunk_that_unpacks_to_much_is_handed_on_in_parts() -> None:
    bodies = [b'{"n": %d, "text": "%s"}' % (n, b"x" * 500) for n in range(60_000)]
    data, entries = b"", 0
    for first in range(0, len(bodies), 5000):
        data += gzipped(*bodies[first : first + 5000])
        entries += 1
    parts = parts_of(data, entries=entries, records=len(bodies))
    assert len(parts) > 2
    assert all(len(part.bodies) < frames.PART_RECORDS + 5000 for part in parts)
    assert [body for part in parts for body in part.bodies] == bodies
    assert [part.first_offset for part in parts[1:]] == [part.next_offset for part in parts[:-1]]


@given(st.lists(st.sampled_from(["bare", "batch", "claim"]), max_size=6), st.integers(0, 40))
def test_a_part_since_an_offset_has_the_rest_of_its_records(kinds: list[str], offset: int) -> None:
    data, records, claimed = b"", 0, list[int]()
    expected: list[tuple[int, bytes]] = []
    for kind in kinds:
        if kind == "bare":
            data += entry(b"{%d" % records)
            expected.append((records, b"{%d" % records))
            records += 1
        elif kind == "batch":
            data += gzipped(*(b"{%d" % (records + i) for i in range(3)))
            expected += [(records + i, b"{%d" % (records + i)) for i in range(3)]
            records += 3
        else:
            data += batch(b"?", codec=1, records=5, unpacked_bytes=0)
            claimed += range(records, records + 5)
            records += 5
    if not records:
        return
    (part,) = parts_of(data, entries=len(kinds), records=records)
    offset = min(offset, records)
    rest = part.since(offset)
    offsets = offsets_of(rest.first_offset, len(rest.bodies), rest.unreadable).tolist()
    assert list(zip(offsets, rest.bodies, strict=True)) == [one for one in expected if one[0] >= offset]
    assert [
        at for run in rest.unreadable for at in range(run.first_offset, run.first_offset + run.records)
    ] == [at for at in claimed if at >= offset]
    assert rest.next_offset == records


@pytest.mark.parametrize("codec", [1, 2, 3, 4], ids=["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("block", [700, 2**20], ids=["several-blocks", "one-block"])
def test_batches_of_every_codec_are_read_as_streaming_writers_write_them(codec: int, block: int) -> None:
    bodies = [b'{"eventId": "%s"}' % hashlib.sha256(b"%d" % n).hexdigest().encode() for n in range(300)]
    plain = b"".join(map(entry, bodies))
    stored = STREAMED[codec](plain, block)
    data = entry(JSON) + batch(stored, codec=codec, records=300, unpacked_bytes=len(plain)) + entry(JSON)
    assert decode(data, entries=3, records=302) == [JSON, *bodies, JSON]


@pytest.mark.parametrize("codec", [1, 2, 3, 4], ids=["gzip", "snappy", "lz4", "zstd"])
@given(st.data())
def test_a_batch_damaged_anywhere_is_read_whole_or_unreadable_whole(codec: int, data: st.DataObject) -> None:
    plain = b"".join(entry(b"{%d}" % n) for n in range(200))
    stored = bytearray(STREAMED[codec](plain, 300))
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(stored[: data.draw(st.integers(0, len(stored)))])
    (part,) = parts_of(
        batch(whole, codec=codec, records=200, unpacked_bytes=len(plain)), entries=1, records=200
    )
    assert len(part.bodies) + sum(run.records for run in part.unreadable) == 200


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_that_nobody_knows_is_one_unreadable_run(codec: int) -> None:
    data = entry(JSON) + batch(b"?", codec=codec, records=2, unpacked_bytes=10)
    (part,) = parts_of(data, entries=2, records=3)
    assert part.bodies == [JSON]
    (run,) = part.unreadable
    assert (run.first_offset, run.records) == (1, 2)
    assert f"codec {codec}" in run.fault


@pytest.mark.parametrize("entries", [1, 3])
@pytest.mark.parametrize("records", [1, 3])
def test_counts_that_do_not_hold_stop_the_chunk(entries: int, records: int) -> None:
    with pytest.raises(BrokenChunk):
        decode(entry(JSON) * 2, entries=entries, records=records)


@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 20))
def test_any_chunk_is_split_exactly_or_refused(data: bytes, entries: int, records: int) -> None:
    with suppress(BrokenChunk):
        parts = list(decode_parts(data, 0, len(data), entries=entries, records=records, first_offset=7))
        held = sum(len(part.bodies) + _claimed(part.unreadable) for part in parts)
        assert held == records
        assert not parts or (parts[0].first_offset, parts[-1].next_offset) == (7, 7 + records)


def _claimed(unreadable: Sequence[Unreadable]) -> int:
    return sum(run.records for run in unreadable)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 100))
def test_batches_are_cut_without_loss(bodies: list[bytes], batch_bytes: int) -> None:
    batches = list(_batches(bodies, batch_bytes))
    assert [body for cut in batches for body in cut] == bodies
    assert all(batches)
    assert all(len(cut) == 1 or sum(4 + len(body) for body in cut) <= batch_bytes for cut in batches)


class OneWay:
    """A connection to a broker with small frames: it keeps what is written, and confirms nothing."""

    frame_max = 8192

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    async def write(self, frame: bytes) -> None:
        self.frames.append(frame)

    def raise_if_dead(self) -> None:
        if self.frames:
            raise TransportError("nothing is confirmed")


@pytest.mark.parametrize("framing", ["raw", "amqp", "gzip"])
async def test_no_frame_is_larger_than_the_broker_takes(framing: Framing) -> None:
    """The bodies are random bytes, which gzip cannot shrink."""
    connection = OneWay()
    publisher = RabbitMQPublisher(cast(StreamConnection, connection), framing=framing)
    sizes = (1, 700, publisher.body_bytes_max)
    bodies = [random.Random(number).randbytes(size) for number in range(20) for size in sizes]
    with pytest.raises(TransportError, match="nothing is confirmed"):
        await publisher.publish(bodies)
    assert len(connection.frames) > 20
    assert max(4 + len(frame) for frame in connection.frames) <= OneWay.frame_max
    with pytest.raises(ValueError, match="the stream takes at most 6144"):
        await publisher.publish([bytes(publisher.body_bytes_max + 1)])


def test_gzip_batches_are_reproducible() -> None:
    assert gzip_batch([JSON]) == gzip_batch([JSON])
    assert zlib.decompress(gzip_batch([JSON])[1], wbits=31) == entry(JSON)
