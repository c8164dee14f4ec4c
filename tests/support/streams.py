"""Publishes to a stream, reads its records back, and waits until a worker has committed all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pika
import psycopg

from pipeline.config import StreamConfig
from pipeline.transports import Chunk
from pipeline.transports.embedded.transport import EmbeddedTransport
from pipeline.transports.rabbitmq.publisher import Framing
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from tests.support.processes import Process, wait_for

Sending = Framing | Literal["pika"]
SENDINGS: tuple[Sending, ...] = ("raw", "amqp", "gzip", "pika")


@dataclass(frozen=True, slots=True)
class Record:
    offset: int
    broker_us: int
    body: bytes
    unreadable: int = 0
    """0 for a single record. Else ``body`` is a batch of this many records that nobody can unpack."""


def config(url: str, stream: str) -> StreamConfig:
    return StreamConfig(url=url, stream=stream, consumer="tests")


async def publish(url: str, stream: str, bodies: list[bytes], framing: Sending, *, amqp_url: str) -> None:
    """Publish by the stream protocol (raw, amqp, gzip) or by AMQP 0.9.1 (pika), and wait for confirmation."""
    if framing == "pika":
        await asyncio.to_thread(_publish_by_amqp091, amqp_url, stream, bodies)
        return
    transport = RabbitMQTransport(config(url, stream))
    try:
        await transport.open()
        publisher = await transport.publisher(framing)
        await publisher.publish(bodies)
    finally:
        await transport.close()


def _publish_by_amqp091(amqp_url: str, stream: str, bodies: list[bytes]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(content_type="application/json", headers={"origin": "tests"})
    for body in bodies:
        channel.basic_publish("", stream, body, properties, mandatory=True)
    connection.close()


async def read_all(url: str, stream: str, *, upto: int) -> list[Record]:
    """Read every record below the offset ``upto``, by a plain subscription."""
    transport = RabbitMQTransport(config(url, stream))
    records: list[Record] = []
    try:
        await transport.open()
        subscription = await transport.subscribe(partition=0, offset=0)
        next_offset = 0
        while next_offset < upto:
            chunk: Chunk = await asyncio.wait_for(subscription.receive(), 120)
            subscription.grant()
            found = [
                Record(offset, chunk.timestamp_us, bytes(body))
                for offset, body in zip(chunk.offsets().tolist(), chunk.bodies, strict=True)
            ]
            found += [
                Record(run.first_offset, chunk.timestamp_us, run.stored.body, run.records)
                for run in chunk.unreadable
            ]
            records += sorted(found, key=lambda record: record.offset)
            next_offset = chunk.next_offset
    finally:
        await transport.close()
    return records


def committed_offset(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT max(committed_offset) FROM analytics.partitions").fetchone()
    return (row and row[0]) or 0


def wait_committed(database_url: str, offset: int, worker: Process, *, timeout_s: float = 400) -> None:
    wait_for(lambda: committed_offset(database_url) >= offset, timeout_s, worker.log)


def offered(database_url: str) -> int:
    """How many offered events are committed, in all partitions together."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT sum(offered)::bigint FROM analytics.partitions").fetchone()
    return (row and row[0]) or 0


def embedded_env(database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a worker that reads an embedded log in a folder, and flushes often."""
    return {
        "DATABASE_URL": database_url,
        "RABBITMQ_URL": f"embedded://{folder}/stream",
        "FLUSH_INTERVAL": "100ms",
    }


async def publish_embedded(env: dict[str, str], bodies: list[bytes]) -> None:
    """Publish to the embedded log of a worker that has these settings."""
    transport = EmbeddedTransport(
        StreamConfig(url=env["RABBITMQ_URL"], stream="analytics.usage.v1", consumer="tests")
    )
    await transport.open()
    publisher = await transport.publisher()
    await publisher.publish(bodies)
    await transport.close()
