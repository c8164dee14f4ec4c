"""The promises of every transport: the partitions of a super stream."""

import uuid

import pytest

from pipeline.transports import OffsetGone, Transport, TransportError
from pipeline.transports.routing import org_key, partition_of
from tests.support.transports import Make, Turn, numbered, of_orgs, publish, read, receive, truncate


async def test_a_plain_stream_is_one_partition(transport: Transport) -> None:
    assert await transport.partitions() == [transport.stream]


async def test_the_partitions_of_a_super_stream_are_named_and_numbered_in_order(make: Make) -> None:
    transport = await make(partitions=12)
    assert await transport.partitions() == [f"{transport.stream}-{number}" for number in range(12)]


async def test_each_record_lies_in_the_partition_of_its_key(make: Make) -> None:
    transport, bodies = await make(partitions=3), of_orgs(0, 300)
    publisher = await transport.publisher()
    await publisher.publish(bodies[:100])
    await publisher.publish(bodies[100:], [str(uuid.UUID(int=n % 17)) for n in range(100, 300)])
    for partition in range(3):
        expected = [body for body in bodies if partition_of(org_key(body), 3) == partition]
        assert len(expected) > 30
        subscription = await transport.subscribe(partition=partition, offset=0)
        assert await read(subscription, from_offset=0, up_to=len(expected)) == expected
        assert await subscription.caught_up(len(expected))


async def test_a_partition_that_does_not_exist_is_named(make: Make) -> None:
    transport = await make(partitions=2)
    with pytest.raises(TransportError, match="2 partitions, not 2"):
        await transport.subscribe(partition=2, offset=0)
    with pytest.raises(TransportError, match="2 partitions, not -1"):
        await transport.compete(partition=-1, owner=Turn())


async def test_creating_again_with_as_many_partitions_changes_nothing(make: Make) -> None:
    transport = await make(opened=False)
    assert await transport.create_super_stream(partitions=2)
    await publish(transport, of_orgs(0, 50))
    assert not await transport.create_super_stream(partitions=2)
    await transport.open()
    assert sum(extent.end_offset for extent in await transport.extents()) == 50


async def test_the_number_of_partitions_cannot_be_changed(make: Make) -> None:
    transport = await make(partitions=2)
    with pytest.raises(TransportError, match="has 2 partitions, not 3"):
        await transport.create_super_stream(partitions=3)
    assert len(await transport.partitions()) == 2


async def test_a_plain_stream_cannot_get_partitions(transport: Transport) -> None:
    await publish(transport, numbered(0, 1))
    with pytest.raises(TransportError, match="is a plain stream"):
        await transport.create_super_stream(partitions=2)
    assert await transport.partitions() == [transport.stream]


async def test_extents_tell_where_each_partition_begins_and_ends(make: Make) -> None:
    transport = await make(partitions=2)
    assert [(one.first_offset, one.end_offset) for one in await transport.extents()] == [(0, 0), (0, 0)]
    bodies = of_orgs(0, 100)
    await publish(transport, bodies[:60], bodies[60:])
    in_first = sum(partition_of(org_key(body), 2) == 0 for body in bodies)
    extents = await transport.extents()
    assert [extent.stream for extent in extents] == await transport.partitions()
    assert [(one.first_offset, one.end_offset) for one in extents] == [(0, in_first), (0, 100 - in_first)]


async def test_extents_tell_what_retention_has_taken(make: Make) -> None:
    transport = await make(max_bytes=512 * 1024)
    first_offset = await truncate(transport)
    (extent,) = await transport.extents()
    assert extent.first_offset >= first_offset
    assert extent.end_offset % 100 == 0


async def test_retention_of_one_partition_takes_no_offset_of_another(make: Make) -> None:
    transport = await make(max_bytes=512 * 1024, partitions=2)
    full, spared = "hello3", "hello1"
    assert [partition_of(key, 2) for key in (full, spared)] == [1, 0]
    publisher = await transport.publisher()
    await publisher.publish(numbered(0, 10), [spared] * 10)
    while (await transport.extents())[1].first_offset < 2:
        await publisher.publish([b"x" * 1000] * 100, [full] * 100)
    taken = await transport.compete(partition=1, owner=Turn(1))
    with pytest.raises(OffsetGone, match="are gone from the stream"):
        await receive(taken)
    kept = await transport.compete(partition=0, owner=Turn(1))
    assert await read(kept, from_offset=1, up_to=10) == numbered(1, 10)
