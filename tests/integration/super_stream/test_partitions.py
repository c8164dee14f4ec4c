"""The partitions of a super stream on a broker that starts, and the commands that create and show them."""

import asyncio
import json
import uuid
from collections.abc import Sequence

import pytest

from deploy.local.servers import RabbitMQ
from pipeline.config import StreamConfig
from pipeline.transports import TransportError
from pipeline.transports.rabbitmq.connection import StreamConnection
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from pipeline.transports.routing import org_key, partition_of
from tests.support import processes
from tests.support.super_streams import Make, receive

# For some tenths of a second it shows no super stream, then one with a part of its partitions.


async def test_a_client_that_comes_while_the_broker_starts_finds_all_partitions_or_waits(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    transport = await make(partitions=3)
    streams = await transport.partitions()
    await transport.close()
    restarting = asyncio.create_task(asyncio.to_thread(rabbitmq.restart))
    answers: list[list[str]] = []
    refusals = 0
    while not restarting.done() or not answers:
        fresh = RabbitMQTransport(
            StreamConfig(url=rabbitmq.url, stream=transport.stream, consumer="test", heartbeat_s=10)
        )
        try:
            await fresh.open()
            answers.append(list(await fresh.partitions()))
        except TransportError:
            refusals += 1
        finally:
            await fresh.close()
        await asyncio.sleep(0.005)
    await restarting
    assert refusals > 0
    assert all(answer == streams for answer in answers)
    again = await make(partitions=3)
    assert not await (await again._live_control()).exists(again.stream)


def show(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> None:
    """Let the broker give these answers about a super stream before the true ones."""
    left, truly = list(answers), StreamConnection.partitions_of

    async def partitions_of(self: StreamConnection, super_stream: str) -> list[str]:
        return list(left.pop(0)) if left else await truly(self, super_stream)

    monkeypatch.setattr(StreamConnection, "partitions_of", partitions_of)


def another(transport: RabbitMQTransport, rabbitmq: RabbitMQ) -> RabbitMQTransport:
    return RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=transport.stream, consumer="test"))


async def test_a_super_stream_that_is_not_shown_yet_is_not_made_a_plain_one(
    rabbitmq: RabbitMQ, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await make(partitions=2)
    fresh = another(transport, rabbitmq)
    show(monkeypatch, [])
    with pytest.raises(TransportError, match="-0', but neither a stream nor a super stream"):
        await fresh.open()
    show(monkeypatch, [])
    with pytest.raises(TransportError, match="-0', but neither a stream nor a super stream"):
        await transport.open()
    await fresh.open()
    assert await fresh.partitions() == await transport.partitions()
    await fresh.close()


async def test_nor_is_one_with_partitions_of_other_names(
    rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test.{uuid.uuid4().hex}"
    streams = [f"{name}-eu", f"{name}-us"]
    config = StreamConfig(url=rabbitmq.url, stream=name, consumer="test")
    creator, fresh = RabbitMQTransport(config), RabbitMQTransport(config)
    await (await creator._live_control()).create_super_stream(name, streams, ["eu", "us"], {})
    show(monkeypatch, [], [], [])
    await fresh.open()
    assert await fresh.partitions() == streams
    await creator.close()
    await fresh.close()


async def test_a_part_of_the_partitions_is_not_taken_for_all(
    rabbitmq: RabbitMQ, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await make(partitions=3)
    streams = await transport.partitions()
    fresh = another(transport, rabbitmq)
    show(monkeypatch, [streams[1]])
    with pytest.raises(TransportError, match="the broker is starting"):
        await fresh.partitions()
    assert await fresh.partitions() == streams
    for part in ([streams[1]], streams[:2]):
        show(monkeypatch, part, part)
        with pytest.raises(TransportError, match=f"has the partitions .*, and before had {streams[0]}"):
            await fresh.subscribe(partition=0, offset=0)
    await fresh.close()


# --- what the broker keeps, and the commands ----------------------------------------------------------


async def test_each_partition_is_declared_with_the_retention_of_a_plain_stream(
    rabbitmq: RabbitMQ, make: Make
) -> None:
    transport = await make(partitions=2)
    for stream in await transport.partitions():
        queue = await asyncio.to_thread(rabbitmq.management, f"/api/queues/%2F/{stream}")
        assert queue["arguments"]["x-max-age"] == "604800s"
        assert queue["arguments"]["x-max-length-bytes"] == 20 * 2**30
        assert queue["arguments"]["x-stream-max-segment-size-bytes"] == 500_000_000
    exchange = f"/api/exchanges/%2F/{transport.stream}/bindings/source"
    bindings = await asyncio.to_thread(rabbitmq.management, exchange)
    assert {(one["routing_key"], one["destination"]) for one in bindings} == {
        (str(number), f"{transport.stream}-{number}") for number in range(2)
    }


async def test_what_a_failed_creation_left_is_named_with_its_remedy(rabbitmq: RabbitMQ) -> None:
    name = f"test.{uuid.uuid4().hex}"
    left = RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=f"{name}-1", consumer="test"))
    await left.open()
    transport = RabbitMQTransport(StreamConfig(url=rabbitmq.url, stream=name, consumer="test"))
    with pytest.raises(TransportError, match=f"{name}-1 exist without their super stream"):
        await transport.create_super_stream(partitions=2)
    await transport.close()
    await left.close()


async def test_a_stream_and_a_super_stream_of_one_name_are_refused(make: Make) -> None:
    transport = await make(partitions=2)
    control = await transport._live_control()
    await control.create_stream(transport.stream, {})
    for refused in (transport.ping(), transport.open(), transport.partitions()):
        with pytest.raises(TransportError, match="both a stream and a super stream"):
            await refused


async def spendstream(rabbitmq: RabbitMQ, stream: str, *arguments: str) -> tuple[int, str, str]:
    env = {"RABBITMQ_URL": rabbitmq.url, "RABBITMQ_STREAM": stream}
    done = await asyncio.to_thread(processes.command, *arguments, env=env)
    return done.returncode, done.stdout, done.stderr


async def test_the_stream_commands_create_and_show_partitions(rabbitmq: RabbitMQ) -> None:
    name = f"test.{uuid.uuid4().hex}"
    exit_code, _, errors = await spendstream(rabbitmq, name, "stream", "show")
    assert exit_code == 1
    assert f"stream '{name}' does not exist" in errors
    created = (0, f"created {name} with 3 partitions\n", "")
    assert await spendstream(rabbitmq, name, "stream", "create", "--partitions", "3") == created
    exit_code, output, _ = await spendstream(rabbitmq, name, "stream", "create", "--partitions", "3")
    assert (exit_code, output) == (0, f"already there: {name} with 3 partitions\n")
    exit_code, _, errors = await spendstream(rabbitmq, name, "stream", "create", "--partitions", "4")
    assert exit_code == 1
    assert "has 3 partitions, not 4" in errors
    assert (await spendstream(rabbitmq, name, "stream", "create", "--partitions", "0"))[0] == 2
    exit_code, output, _ = await spendstream(rabbitmq, name, "stream", "show")
    assert (exit_code, output) == (0, "".join(f"{i}  {name}-{i}  empty\n" for i in range(3)))


async def test_the_simulator_publishes_to_all_partitions_by_org(rabbitmq: RabbitMQ, make: Make) -> None:
    transport = await make(partitions=3)
    options = ("--rate", "2000", "--duration", "1s", "--orgs", "40")
    exit_code, output, _ = await spendstream(rabbitmq, transport.stream, "simulate", *options)
    assert exit_code == 0
    assert "published 2000 events" in output
    exit_code, output, _ = await spendstream(rabbitmq, transport.stream, "stream", "show", "--json")
    shown = [json.loads(line) for line in output.splitlines()]
    assert sum(row["endOffset"] for row in shown) == 2000
    for row in shown:
        assert row["endOffset"] > 0
        subscription = await transport.subscribe(partition=row["partition"], offset=0)
        next_offset = 0
        while next_offset < row["endOffset"]:
            chunk = await receive(subscription)
            subscription.grant()
            next_offset = chunk.next_offset
            assert {partition_of(org_key(body), 3) for body in chunk.bodies} == {row["partition"]}
