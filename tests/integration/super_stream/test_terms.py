"""Turns at a partition on a real broker: what a deactivation does to chunks, credit and the peer."""

import asyncio

import pytest

from pipeline.transports import Subscription, TransportError
from pipeline.transports.rabbitmq.subscription import SUBSCRIPTION
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from pipeline.transports.routing import partition_of
from tests.support.super_streams import KEY, MOVING, OFF, ON, PATIENCE_S, Make, Turn, receive
from tests.support.tcp_proxy import TcpProxy


async def publish(transport: RabbitMQTransport, first: int, after: int) -> None:
    """One chunk a record, all of them into the partition that moves."""
    assert partition_of(KEY, 4) == MOVING
    publisher = await transport.publisher()
    for n in range(first, after):
        await publisher.publish([b"%d" % n], [KEY])
    await publisher.close()


async def read(subscription: Subscription, first: int, after: int) -> None:
    for n in range(first, after):
        chunk = await receive(subscription)
        assert (chunk.first_offset, chunk.bodies) == (n, [b"%d" % n])
        subscription.grant()


async def test_a_partition_that_comes_back_is_read_from_the_new_answer(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 30)
    turn, peer = Turn(3), Turn(10)
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await read(ours, 3, 10)
    theirs = await transport.compete(partition=MOVING, owner=peer)
    await read(theirs, 10, 20)
    await turn.until(*ON, *OFF)
    turn.offset = 20
    await theirs.close()
    await read(ours, 20, 30)
    assert turn.calls == [*ON, *OFF, *ON]
    assert peer.calls == [*ON]
    assert await ours.caught_up(30)


async def test_nothing_is_delivered_between_a_deactivation_and_the_next_activation(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 30)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await read(ours, 0, 1)
    assert not await ours.caught_up(1)  # whose answer comes after the chunks that were sent before
    theirs = await transport.compete(partition=MOVING, owner=peer, credit=30)
    await turn.until(*ON, *OFF)
    waiting = asyncio.create_task(receive(ours))
    await read(theirs, 0, 30)
    assert not waiting.done()
    turn.offset = 7
    await theirs.close()
    assert (await waiting).first_offset == 7
    ours.grant()
    await read(ours, 8, 30)


async def test_credit_outlives_a_term_and_every_chunk_received_is_owed_its_grant(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 20)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=2)
    assert [(await receive(ours)).first_offset for _ in range(2)] == [0, 1]
    theirs = await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, *OFF)
    ours.grant()  # late: nobody may read now
    turn.offset = 10
    await theirs.close()
    assert (await receive(ours)).first_offset == 10
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(11)
    assert not more.done(), "chunks 1 and 10 are outstanding, and the credit is 2"
    ours.grant()  # of a chunk of the first term
    assert (await more).first_offset == 11
    ours.grant()
    ours.grant()
    await read(ours, 12, 20)
    with pytest.raises(AssertionError):
        ours.grant()


async def test_credit_survives_many_terms(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 40)
    turn = Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    for term in range(12):
        turn.offset = term
        await turn.until(*(ON + OFF) * term, *ON)
        if term % 3 == 0:
            await read(ours, term, term + 2)
        elif term % 3 == 1:
            assert (await receive(ours)).first_offset == term
        peer = Turn()
        theirs = await transport.compete(partition=MOVING, owner=peer)
        if term % 3 == 1:
            ours.grant()  # may meet the deactivation on its way
        await turn.until(*(ON + OFF) * (term + 1))
        turn.offset = term + 1
        await theirs.close()
    first = [await receive(ours) for _ in range(3)]
    assert [chunk.first_offset for chunk in first] == [12, 13, 14]
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(15)
    assert not more.done()
    for _ in first:
        ours.grant()
    assert (await more).first_offset == 15
    ours.grant()
    await read(ours, 16, 40)


async def test_credit_that_meets_a_deactivation_on_its_way_is_refused_and_not_lost(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 10)
    turn = Turn()
    ours = await transport.compete(partition=MOVING, owner=turn, credit=3)
    await turn.until(*ON)
    theirs = await transport.compete(partition=MOVING, owner=Turn())
    await turn.until(*ON, *OFF)
    ours._kept_credit -= 2  # sent before the reader knew
    ours._connection.credit_chunks(SUBSCRIPTION, 2)
    assert not await ours.caught_up(0)  # the refusal came before this answer
    await theirs.close()
    assert [(await receive(ours)).first_offset for _ in range(3)] == [0, 1, 2]
    more = asyncio.create_task(receive(ours))
    assert not await ours.caught_up(3)
    assert not more.done()
    ours.grant()
    assert (await more).first_offset == 3


async def test_the_peer_waits_until_the_owner_has_let_go(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    await transport.ping()
    assert peer.calls == []
    turn.may_go_on.set()
    await peer.until(*ON)


async def test_an_owner_that_never_lets_go_does_not_keep_its_close_or_the_peer(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await transport.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    async with asyncio.timeout(PATIENCE_S):
        await ours.close()
        await peer.until(*ON)
    assert turn.calls == [*ON, "deactivated", "cancelled"]


async def test_an_owner_that_fails_to_let_go_loses_the_partition_and_is_told(make: Make) -> None:
    transport = await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.failure = RuntimeError("no flush")
    await transport.compete(partition=MOVING, owner=peer)
    with pytest.raises(TransportError, match=r"the owner of partition 1 failed.*no flush"):
        await receive(ours)
    await peer.until(*ON)


async def test_a_partition_taken_back_during_activation_is_let_go_in_order(make: Make) -> None:
    transport = await make(partitions=4)
    await publish(transport, 0, 5)
    turn, peer = Turn(), Turn()
    turn.may_go_on.clear()
    ours = await transport.compete(partition=MOVING, owner=turn)
    await turn.until("activated")
    waiting = asyncio.create_task(receive(ours))
    theirs = await transport.compete(partition=MOVING, owner=peer)
    while not ours._updates:  # until the broker has asked
        await ours.caught_up(0)
    assert turn.calls == ["activated"], "one after the other"
    assert peer.calls == []
    turn.may_go_on.set()
    await read(theirs, 0, 5)
    assert turn.calls == [*ON, *OFF]
    assert not waiting.done()
    await theirs.close()
    assert (await waiting).first_offset == 0
    ours.grant()
    await read(ours, 1, 5)


async def test_heartbeats_go_on_while_an_owner_recovers(make: Make) -> None:
    transport = await make(partitions=4, heartbeat_s=3)
    await publish(transport, 0, 1)
    turn = Turn()
    turn.may_go_on.clear()
    ours = await transport.compete(partition=MOVING, owner=turn)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await ours.receive()
    turn.may_go_on.set()
    await read(ours, 0, 1)


async def test_an_activation_is_cancelled_when_the_connection_is_cut(make: Make, proxy: TcpProxy) -> None:
    through = await make(partitions=4, port=proxy.port)
    turn, peer = Turn(), Turn()
    turn.may_go_on.clear()
    ours = await through.compete(partition=MOVING, owner=turn)
    await turn.until("activated")
    proxy.cut()
    with pytest.raises(TransportError, match="was cut"):
        await receive(ours)
    await turn.until("activated", "cancelled")
    await (await make(partitions=4)).compete(partition=MOVING, owner=peer)
    await peer.until(*ON)


async def test_letting_go_may_end_although_the_connection_is_cut(make: Make, proxy: TcpProxy) -> None:
    through, direct = await make(partitions=4, port=proxy.port), await make(partitions=4)
    turn, peer = Turn(), Turn()
    ours = await through.compete(partition=MOVING, owner=turn)
    await turn.until(*ON)
    turn.may_go_on.clear()
    await direct.compete(partition=MOVING, owner=peer)
    await turn.until(*ON, "deactivated")
    proxy.cut()
    await peer.until(*ON)
    with pytest.raises(TransportError, match="was cut"):
        await receive(ours)
    turn.may_go_on.set()
    await turn.until(*ON, *OFF)
