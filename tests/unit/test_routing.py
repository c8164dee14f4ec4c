"""Routing to partitions: the vectors of other stream clients, and what key an event has."""

import json
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.traffic.generator import Shares, Traffic, World
from pipeline.transports import TransportError
from pipeline.transports.routing import SEED, RoutingPublisher, org_key, partition_of

# --- vectors ---------------------------------------------------------------------------------------

# rabbitmq-stream-java-client, HashUtilsTest.murmur3WithDefaultSeed: the unsigned hashes.
HASHES = {"hello": 1321743225, "brave": 3825276426, "new": 2970740106, "world": 2453398188}

# rabbitmq-stream-go-client, super_stream_producer_test.go, "Partitioning using Murmur3" ("the table is the
# same for .NET, Python, Java stream clients"); the first ten also in rabbitmq-stream-java-client,
# HashRoutingStrategyTest. Partitions are counted from 0 here, from invoices-01 there.
OF_THREE = {
    "hello1": 1,
    "hello2": 0,
    "hello3": 1,
    "hello4": 2,
    "hello5": 0,
    "hello6": 2,
    "hello7": 0,
    "hello8": 1,
    "hello9": 0,
    "hello10": 2,
    "hello88": 1,
}


@pytest.mark.parametrize(("key", "unsigned_hash"), HASHES.items())
def test_the_hash_is_that_of_the_java_client(key: str, unsigned_hash: int) -> None:
    for partitions in (2**32, 1, 2, 3, 4, 7, 1000):
        assert partition_of(key, partitions) == unsigned_hash % partitions


@pytest.mark.parametrize(("key", "partition"), OF_THREE.items())
def test_keys_go_where_other_clients_send_them(key: str, partition: int) -> None:
    assert partition_of(key, 3) == partition


def test_twenty_keys_spread_over_three_partitions_as_the_go_client_counts_them() -> None:
    """Its test "should Send messages and confirmed to all the streams": hello0 to hello19, 9, 7 and 4."""
    targets = [partition_of(f"hello{i}", 3) for i in range(20)]
    assert [targets.count(partition) for partition in range(3)] == [9, 7, 4]


def test_a_hash_above_the_signed_range_is_not_taken_for_negative() -> None:
    """2970740106 is -1324227190 when signed; before issue 199 the Java client cut the sign off."""
    assert HASHES["new"] > 2**31
    assert partition_of("new", 7) == 2970740106 % 7
    assert partition_of("new", 7) != (2970740106 & 0x7FFFFFFF) % 7
    assert partition_of("new", 7) != -1324227190 % 7


def test_the_pinned_orgs_stay_where_they_are() -> None:
    """Our own, so that a change of the rule shows: it would separate the copies of events in flight."""
    orgs = [str(uuid.UUID(int=n)) for n in range(8)]
    assert [partition_of(org, 4) for org in orgs] == [2, 3, 2, 3, 0, 2, 3, 2]


def murmur3_32(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 as its author describes it, written without looking at mmh3."""
    mask, h = 0xFFFFFFFF, seed

    def scrambled(k: int) -> int:
        k = k * 0xCC9E2D51 & mask
        k = (k << 15 | k >> 17) & mask
        return k * 0x1B873593 & mask

    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        h ^= scrambled(int.from_bytes(data[at : at + 4], "little"))
        h = (h << 13 | h >> 19) & mask
        h = (h * 5 + 0xE6546B64) & mask
    h ^= scrambled(int.from_bytes(data[whole:], "little"))
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


@given(st.text(max_size=60), st.integers(1, 64))
def test_any_key_is_hashed_by_its_utf_8_bytes(key: str, partitions: int) -> None:
    assert partition_of(key, partitions) == murmur3_32(key.encode(), SEED) % partitions
    assert partition_of(key.encode(), partitions) == partition_of(key, partitions)


# --- the key of an event -----------------------------------------------------------------------------

ORG = "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e"


@pytest.mark.parametrize(
    "event",
    [
        {"eventId": "1", "orgId": ORG},
        {"org_id": ORG, "event_id": "1"},
        {"orgId": ORG.upper()},
        {"specversion": "1.0", "type": "analytics.usage.v1", "data": {"eventId": "1", "orgId": ORG}},
        {"specversion": "1.0", "data": {"org_id": ORG}},
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n ", " :\t")])
def test_the_key_is_the_org_in_lower_case_in_every_variant(
    event: dict[str, object], separators: tuple[str, str]
) -> None:
    assert org_key(json.dumps(event, separators=separators).encode()) == ORG.encode()


@pytest.mark.parametrize("body", [b"", b"no json", b'{"orgId": 7}', b'{"orgId": "acme"}', b"\xff" * 100])
def test_a_body_without_an_org_goes_by_the_empty_key(body: bytes) -> None:
    assert org_key(body) == b""


def test_every_event_of_the_simulator_is_routed_by_its_org() -> None:
    import numpy as np

    world = World(orgs=30)
    orgs = {org.encode() for org in world.org_ids}
    shares = Shares(snake_case=0.3, cloudevents=0.3)
    times_us = np.arange(1_700_000_000_000_000, 1_700_000_000_000_000 + 5000)
    keys = {org_key(body) for body in Traffic(world, seed=1, shares=shares).take(times_us)}
    assert keys == orgs


# --- the publisher -----------------------------------------------------------------------------------


class Partition:
    def __init__(self, failure: TransportError | None = None) -> None:
        self.stored: list[bytes] = []
        self.failure = failure
        self.body_bytes_max = 20
        self.closed = False

    async def publish(self, bodies: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        self.stored.extend(bodies)
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        self.closed = True


async def test_records_keep_their_order_within_their_partition() -> None:
    partitions = [Partition() for _ in range(3)]
    publisher = RoutingPublisher(partitions)
    keys = [f"hello{1 + i % 10}" for i in range(100)]
    bodies = [b"%d" % i for i in range(100)]
    await publisher.publish(bodies[:50], keys[:50])
    await publisher.publish(bodies[50:], keys[50:])
    for number, partition in enumerate(partitions):
        assert partition.stored == [
            body for body, key in zip(bodies, keys, strict=True) if OF_THREE[key] == number
        ]


async def test_a_body_that_is_too_large_is_refused_before_any_partition_has_one() -> None:
    partitions = [Partition() for _ in range(3)]
    partitions[2].body_bytes_max = 10  # the leader of this one has smaller frames
    assert RoutingPublisher(partitions).body_bytes_max == 10
    with pytest.raises(ValueError, match="a body has 11 bytes, and the stream takes at most 10"):
        await RoutingPublisher(partitions).publish([b"1", b"2", b"x" * 11], ["hello1", "hello2", "hello4"])
    with pytest.raises(ValueError, match="zip"):
        await RoutingPublisher(partitions).publish([b"1", b"2"], ["hello1"])
    assert not any(partition.stored for partition in partitions)


async def test_a_partition_that_fails_fails_the_publish_after_the_others_are_done() -> None:
    partitions = [Partition(), Partition(TransportError("cut")), Partition()]
    with pytest.raises(TransportError, match="cut"):
        await RoutingPublisher(partitions).publish([b"1", b"2", b"4"], ["hello1", "hello2", "hello4"])
    assert [partition.stored for partition in partitions] == [[b"2"], [b"1"], [b"4"]]


async def test_closing_closes_every_partition() -> None:
    partitions = [Partition(), Partition()]
    publisher = RoutingPublisher(partitions)
    assert not publisher.closed
    await publisher.close()
    assert publisher.closed
    assert all(partition.closed for partition in partitions)
