"""The promises of every transport: competitors take turns at a partition."""

import asyncio
import subprocess
import sys
from collections.abc import Iterable

import pytest

from pipeline.transports import OffsetGone, Transport, TransportError
from pipeline.transports.routing import org_key, partition_of
from tests.support.transports import PATIENCE_S, Make, Turn, numbered, of_orgs, publish, read, receive

FOLLOWED_S = 10
"""Two seconds are promised, and a busy machine gets more. Missed heartbeats would tell after 20 s or more."""


async def active(turn: Turn) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await turn.active.wait()


async def first_active(turns: Iterable[Turn]) -> Turn:
    looking = {asyncio.create_task(active(turn)): turn for turn in turns}
    done, others = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    (only,) = done
    await only
    return looking[only]


@pytest.mark.parametrize("offset", [0, 1, 7, 13, 20])
async def test_a_competitor_reads_from_the_offset_that_its_owner_answers(
    transport: Transport, offset: int
) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 8), numbered(8, 20))
    turn = Turn(offset)
    subscription = await transport.compete(partition=0, owner=turn)
    await active(turn)
    reading = asyncio.create_task(read(subscription, from_offset=offset, up_to=21))
    await publish(transport, numbered(20, 21))
    assert await reading == numbered(offset, 21)
    assert await subscription.caught_up(21)
    assert turn.calls == ["activated"]


async def test_a_record_that_was_stored_at_another_time_shows_that_the_stream_is_another(
    transport: Transport,
) -> None:
    await publish(transport, numbered(0, 7), numbered(7, 20))
    stored_us = [await transport.stored_us(partition=0, offset=offset) for offset in (0, 6, 7, 19)]
    subscription = await transport.subscribe(partition=0, offset=0)
    chunks = [await receive(subscription)]
    while chunks[-1].next_offset < 20:
        subscription.grant()
        chunks.append(await receive(subscription))
    told = {o: chunk.timestamp_us for chunk in chunks for o in range(chunk.first_offset, chunk.next_offset)}
    assert stored_us == [told[offset] for offset in (0, 6, 7, 19)]
    with pytest.raises(TransportError, match="record 20"):
        await transport.stored_us(partition=0, offset=20)

    for offset in (3, 7, 8, 20):
        good = Turn(offset, told[offset - 1])
        reading = await transport.compete(partition=0, owner=good)
        await active(good)
        await publish(transport, numbered(20, 21))
        assert (await receive(reading)).first_offset == offset
        await reading.close()
        other = Turn(offset, told[offset - 1] + 1000)
        reading = await transport.compete(partition=0, owner=other)
        with pytest.raises(OffsetGone, match="made anew") as gone:
            await receive(reading)
        assert (gone.value.wanted_offset, gone.value.first_offset) == (offset, 0)
        await reading.close()


async def test_nothing_is_delivered_before_the_owner_has_answered(transport: Transport) -> None:
    await publish(transport, numbered(0, 5))
    turn = Turn(2)
    turn.may_go_on.clear()
    subscription = await transport.compete(partition=0, owner=turn)
    await active(turn)
    waiting = asyncio.create_task(receive(subscription))
    assert not await subscription.caught_up(2)
    assert not waiting.done()
    turn.may_go_on.set()
    assert (await waiting).first_offset == 2


async def test_a_second_competitor_waits_until_the_first_has_closed(make: Make) -> None:
    transport, other = await make(), await make()
    await publish(transport, numbered(0, 10))
    turn, next_turn = Turn(), Turn(4)
    first = await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await other.compete(partition=0, owner=next_turn)
    waiting = asyncio.create_task(read(second, from_offset=4, up_to=11))
    assert await read(first, from_offset=0, up_to=10) == numbered(0, 10)
    assert await second.caught_up(10)
    assert next_turn.calls == []
    await first.close()
    await publish(transport, numbered(10, 11))
    assert await waiting == numbered(4, 11)
    assert turn.calls == ["activated"], "who closes is not asked to step down"
    assert next_turn.calls == ["activated"]


async def test_a_partition_is_handed_round_without_loss_or_repetition(make: Make) -> None:
    transport = await make()
    await publish(transport, *(numbered(n, n + 5) for n in range(0, 100, 5)))
    taken: list[bytes] = []
    turns = [Turn() for _ in range(5)]
    waiting = {turn: await (await make()).compete(partition=0, owner=turn, credit=2) for turn in turns}
    while waiting:
        subscription = waiting.pop(await first_active(waiting))
        target = len(taken) + 20 if waiting else 100
        while len(taken) < target:
            taken += (await receive(subscription)).bodies
            subscription.grant()
        for turn in waiting:
            turn.offset = len(taken)
        await subscription.close()
    assert taken == numbered(0, 100)


async def test_an_owner_that_fails_ends_the_subscription_and_the_next_takes_over(make: Make) -> None:
    transport = await make()
    await publish(transport, numbered(0, 3))
    turn, next_turn = Turn(), Turn()
    turn.failure = RuntimeError("no database")
    first = await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await transport.compete(partition=0, owner=next_turn)
    for _ in range(2):
        with pytest.raises(TransportError, match=r"the owner of partition 0 failed.*no database") as failed:
            await receive(first)
        assert failed.value.__cause__ is turn.failure
    assert await read(second, from_offset=0, up_to=3) == numbered(0, 3)


async def test_an_offset_that_the_stream_has_lost_is_gone_for_a_competitor_too(transport: Transport) -> None:
    await publish(transport, numbered(0, 10))
    subscription = await transport.compete(partition=0, owner=Turn(11))
    with pytest.raises(OffsetGone, match="made anew") as gone:
        await receive(subscription)
    assert gone.value.end_offset == 10


async def test_closing_cancels_an_activation_and_frees_the_partition(make: Make) -> None:
    transport = await make()
    stuck, next_turn = Turn(), Turn()
    stuck.may_go_on.clear()
    first = await transport.compete(partition=0, owner=stuck)
    await active(stuck)
    waiting = asyncio.create_task(receive(first))
    await transport.compete(partition=0, owner=next_turn)
    async with asyncio.timeout(PATIENCE_S):
        await first.close()
        await first.close()
        await next_turn.active.wait()
    with pytest.raises(TransportError):
        await waiting


COMPETE = """
import asyncio, sys
from pipeline.config import StreamConfig
from pipeline.transports import ReadFrom
from pipeline.transports.factory import open_transport

class Owner:
    async def activated(self):
        print("active", flush=True)
        return ReadFrom(0)

async def main(url, stream):
    transport = open_transport(StreamConfig(url=url, stream=stream, consumer="test"))
    subscription = await transport.compete(partition=0, owner=Owner())
    while True:
        await subscription.receive()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed_is_followed_within_two_seconds(make: Make, url: str) -> None:
    transport, turn = await make(), Turn()
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMPETE, url, transport.stream, stdout=subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await running.stdout.readline() == b"active\n"
        subscription = await transport.compete(partition=0, owner=turn)
        assert await subscription.caught_up(0)
        assert turn.calls == []
    finally:
        running.kill()
        await running.wait()
    async with asyncio.timeout(FOLLOWED_S):
        await turn.active.wait()


async def test_a_competitor_that_waits_can_be_closed(make: Make) -> None:
    transport = await make()
    turn, never = Turn(), Turn()
    await transport.compete(partition=0, owner=turn)
    await active(turn)
    second = await transport.compete(partition=0, owner=never)
    waiting = asyncio.create_task(receive(second))
    assert await second.caught_up(0)
    await second.close()
    with pytest.raises(TransportError):
        await waiting
    await transport.close()
    assert never.calls == []


async def test_a_competitor_has_no_more_chunks_than_its_credit(transport: Transport) -> None:
    publisher = await transport.publisher()
    for n in range(12):
        await publisher.publish(numbered(n, n + 1))
    subscription = await transport.compete(partition=0, owner=Turn(), credit=3)
    first = [await receive(subscription) for _ in range(3)]
    more = asyncio.create_task(receive(subscription))
    assert not await subscription.caught_up(first[-1].next_offset)
    assert not more.done()
    subscription.grant()
    fourth = await more
    for _ in range(3):
        subscription.grant()
    rest = await read(subscription, from_offset=fourth.next_offset, up_to=12)
    assert [body for chunk in (*first, fourth) for body in chunk.bodies] + rest[:-1] == numbered(0, 11)


async def test_partitions_have_owners_of_their_own(make: Make) -> None:
    transport = await make(partitions=2)
    bodies = of_orgs(0, 100)
    await publish(transport, bodies)
    parts = [[body for body in bodies if partition_of(org_key(body), 2) == number] for number in range(2)]
    turns = [Turn(), Turn(3)]
    ours = [await transport.compete(partition=number, owner=turns[number]) for number in range(2)]
    for number in (1, 0):
        offset, end = turns[number].offset, len(parts[number])
        assert await read(ours[number], from_offset=offset, up_to=end) == parts[number][offset:]
        assert ours[number].partition == number


async def test_another_group_has_turns_of_its_own(make: Make) -> None:
    transport, other = await make(), await make(consumer="archive")
    await publish(transport, numbered(0, 5))
    one = await transport.compete(partition=0, owner=Turn())
    two = await other.compete(partition=0, owner=Turn(1))
    assert await read(one, from_offset=0, up_to=5) == numbered(0, 5)
    assert await read(two, from_offset=1, up_to=5) == numbered(1, 5)
