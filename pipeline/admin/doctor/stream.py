"""The doctor's checks of the stream: it exists, can be used, has no gap, and one consumer group reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.admin.doctor.finding import TIMEOUT_S, Finding, Level, first_line
from pipeline.admin.doctor.scope import Scope
from pipeline.common import settings, urls
from pipeline.config import StreamConfig, stream_config

if TYPE_CHECKING:
    from pipeline.transports import OffsetGone, Transport


def check(values: settings.Values, asked: Scope) -> Iterator[Finding]:
    """A worker reads the stream, and a collector publishes to it: each is tried as the process does it."""
    from pipeline.transports import StreamAbsent, TransportError

    config = stream_config(values)
    standing = _standing(values, config.stream) if asked.has("worker") else ()
    trials: dict[str, Callable[[], Coroutine[Any, Any, list[Finding]]]] = {}
    if asked.has("worker"):
        trials["read"] = partial(_read, config, standing)
    if asked.has("collector"):
        trials["write"] = partial(_publish, config)
    for right, trial in trials.items():
        try:
            yield from asyncio.run(trial())
        except StreamAbsent:
            process = "worker" if asked.has("worker") else "collector"
            yield _absent(config.stream, sum(row.offered for row in standing), process)
            return
        except (TransportError, TimeoutError, ValueError) as error:
            yield _unusable(config, error, right)
            if not _is_refused(error):
                return


async def _read(config: StreamConfig, standing: Sequence[Any]) -> list[Finding]:
    """Read what a worker reads first: where the stream begins and ends."""
    from pipeline.transports.factory import open_transport

    transport = open_transport(config)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await transport.ping()
            gaps = await _gaps(transport, standing)
    finally:
        await transport.close()
    return [
        Finding(Level.OK, "stream", f"{config.stream} can be read"),
        *_groups(config.consumer, standing),
        *(Finding(Level.FAIL, "stream", str(gap), gap.remedy) for gap in gaps),
    ]


async def _publish(config: StreamConfig) -> list[Finding]:
    """Declare a publisher, as a collector does, and publish nothing."""
    from pipeline.transports.factory import open_transport

    transport = open_transport(config)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await transport.ping()
            if urls.split(config.url).scheme != "embedded":  # a publisher to a folder would make files
                await transport.publisher()
    finally:
        await transport.close()
    return [Finding(Level.OK, "stream", f"{config.stream} can be published to")]


def _unusable(config: StreamConfig, error: Exception, right: str) -> Finding:
    """The finding on a stream that could not be used, where this right on the stream was needed."""
    detail = f"no answer in {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else first_line(error)
    used = {"read": "read", "write": "published to"}[right]
    if urls.split(config.url).scheme == "embedded":
        remedy = "check the folder's permissions"
    elif _is_refused(error):
        needing, other = ("worker", "collector") if right == "read" else ("collector", "worker")
        remedy = (
            f"`rabbitmqctl set_permissions` gives the user of RABBITMQ_URL the right to {right} this stream,"
            f" which a {needing} needs; `spendstream doctor --for {other}` leaves a {needing} out"
        )
    else:
        remedy = "is the broker running, and do host, port, user, password and vhost in RABBITMQ_URL fit?"
    return Finding(Level.FAIL, "stream", f"{config.stream} cannot be {used}: {detail}", remedy)


def _is_refused(error: Exception) -> bool:
    """Does the broker know the user, and not let the user do what was tried?"""
    return "access refused" in str(error)


def _groups(consumer: str, standing: Sequence[Any]) -> Iterator[Finding]:
    """The partitions to which another consumer group commits now: our group would not get them."""
    from pipeline.sink import GROUP_QUIET_S

    now = time.time()
    for row in standing:
        quiet_s = now - row.updated_at.timestamp()
        if row.consumer not in (None, consumer) and row.retired_at is None and quiet_s < GROUP_QUIET_S:
            yield Finding(
                Level.FAIL,
                "stream",
                f"{row.stream} is read into this database by the consumer group {row.consumer!r}, and"
                f" RABBITMQ_CONSUMER is {consumer!r} here",
                "give all workers of a database the same RABBITMQ_CONSUMER, or each group a database of its"
                f" own; a renamed group gets the partition {GROUP_QUIET_S} s after the old one ended",
            )


async def _gaps(transport: Transport, standing: Sequence[Any]) -> list[OffsetGone]:
    """The gaps at which a worker would stop, because the stream has lost the records that it reads next."""
    from pipeline.transports import ReadFrom
    from pipeline.transports.gap import look

    by_stream = {row.stream: row for row in standing}
    found = []
    for number, held in enumerate(await transport.extents()):
        row = by_stream.get(held.stream)
        if row is not None and row.retired_at is None:
            place = ReadFrom(row.committed_offset, row.broker_us)
            found.append(await look(transport, number, held, place))
    return [gone for gone in found if gone is not None]


def _absent(stream: str, counted: int, process: str) -> Finding:
    """The finding on a stream that does not exist.

    A new deployment has no stream yet. A stream whose records were counted before was deleted.
    """
    if not counted:
        remedy = (
            f"`spendstream {process}` declares it when it starts;"
            " several partitions: `spendstream stream create`"
        )
        return Finding(Level.WARN, "stream", f"{stream} does not exist yet", remedy)
    return Finding(
        Level.FAIL,
        "stream",
        f"{stream} does not exist, but {counted} records of it are in the database: it was deleted",
        "does RABBITMQ_URL name the right broker and vhost? After `spendstream stream create` a worker stops"
        " at the gap, and `spendstream stream accept-gap` goes on past what is lost",
    )


def _standing(values: settings.Values, stream: str) -> Sequence[Any]:
    """The rows of the stream's partitions in the database; empty if the database cannot be asked."""
    from sqlalchemy import BigInteger, cast, func, or_, select
    from sqlalchemy.exc import DBAPIError

    from pipeline.common.connect import Session, engine
    from sql.schema import partitions as p

    session = Session(
        application_name="spendstream-doctor",
        statement_timeout_s=TIMEOUT_S,
        connect_timeout_s=round(TIMEOUT_S),
    )
    ours = or_(p.c.stream == stream, p.c.stream.startswith(f"{stream}-", autoescape=True))
    broker_us = cast(func.extract("epoch", p.c.broker_time) * 1_000_000, BigInteger).label("broker_us")
    columns = (
        p.c.stream,
        p.c.offered,
        p.c.committed_offset,
        p.c.retired_at,
        p.c.consumer,
        p.c.updated_at,
        broker_us,
    )
    try:
        with engine(values["DATABASE_URL"], session).connect() as connection:
            return connection.execute(select(*columns).where(ours)).all()
    except DBAPIError:  # the check of the database has reported the error
        return ()
