"""``spendstream stream``: partitions, and the remedies for a stream that is broken or no longer used."""

from __future__ import annotations

import json
import os

import click

from pipeline.commands.options import stream_config
from pipeline.common import settings


@click.group()
def streams() -> None:
    """Create, list and repair the stream of RABBITMQ_URL and RABBITMQ_STREAM."""


@streams.command("create")
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    required=True,
    help="Number of partitions: at most so many workers share the load. It cannot be changed later.",
)
def create_stream(partitions: int) -> None:
    """Create a super stream, to which producers route by the hash of orgId.

    Each partition is bounded by STREAM_MAX_AGE and STREAM_MAX_BYTES. Safe to repeat. A stream that exists
    with another number of partitions is left as it is, and the exit code is 1.
    """
    import asyncio

    from pipeline.admin import streams as stream_admin

    stream = stream_config()
    try:
        created = asyncio.run(stream_admin.create(stream, partitions=partitions))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    done = "created" if created else "already there:"
    click.echo(f"{done} {stream.stream} with {partitions} partition{'' if partitions == 1 else 's'}")


@streams.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show_stream(as_json: bool) -> None:
    """List the partitions with their offsets, and with their bytes on disk if the broker tells."""
    import asyncio

    from pipeline.admin import streams as stream_admin

    try:
        extents = asyncio.run(stream_admin.extents(stream_config()))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for partition, extent in enumerate(extents):
        if as_json:
            row = {
                "partition": partition,
                "stream": extent.stream,
                "firstOffset": extent.first_offset,
                "endOffset": extent.end_offset,
                "storedBytes": extent.stored_bytes,
            }
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        size = "" if extent.stored_bytes is None else f", {extent.stored_bytes} bytes"
        span = f"offsets {extent.first_offset} to {extent.end_offset - 1}"
        held = span if extent.end_offset > extent.first_offset else "empty"
        click.echo(f"{partition}  {extent.stream}  {held}{size}")


@streams.command("accept-gap")
@click.option("--stream", required=True, help="The partition's stream, as the log names it.")
@click.option("--from", "from_offset", type=click.IntRange(0), required=True, help="Where it is committed.")
@click.option("--to", "to_offset", type=click.IntRange(0), required=True, help="Where the stream begins now.")
def accept_gap(*, stream: str, from_offset: int, to_offset: int) -> None:
    """Give up the events between two offsets, which the stream has lost (log: offset_gone), and go on.

    Moves the committed offset from exactly --from to --to, and records this in analytics.audit_log. A worker
    that waits at the gap goes on by itself. The command refuses to skip an event that the stream still holds.
    """
    import asyncio

    from pipeline.admin import gaps

    config = stream_config()
    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    try:
        gap = asyncio.run(
            gaps.accept(config, database_url, stream=stream, from_offset=from_offset, to_offset=to_offset)
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    lost = (
        f"{to_offset - from_offset} offsets are given up"
        if to_offset > from_offset
        else "the stream is another one than before, and is read from its beginning"
    )
    click.echo(
        f"accepted: {gap.stream} (partition {gap.partition}) goes on at offset {gap.to_offset} instead of"
        f" {gap.from_offset}; {lost}; recorded in analytics.audit_log as {gap.actor}"
    )


@streams.command("skip")
@click.option("--partition", type=click.IntRange(0), help="The partition's number, as the log says it.")
@click.option("--stream", help="Or the partition's stream.")
@click.option(
    "--offset",
    type=click.IntRange(0),
    required=True,
    help="The offset of the record at which the worker crashes.",
)
@click.option(
    "--reason",
    required=True,
    help="Why the record is skipped. The dead letter and the audit log keep the reason.",
)
def skip_record(*, partition: int | None, stream: str | None, offset: int, reason: str) -> None:
    """Make a record at which the worker crashes a dead letter, without reading it.

    The log (worker_crashes_here) and `spendstream doctor` name the offset. The bytes are kept, with the
    reason `skipped`. A running worker goes on by itself. The command is recorded in analytics.audit_log.
    """
    import asyncio

    from pipeline.admin import skip

    if not reason.strip():
        raise click.UsageError("--reason must say something")
    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        done = asyncio.run(
            skip.skip(
                stream_config(),
                values["DATABASE_URL"],
                stream=stream,
                partition=partition,
                offset=offset,
                note=reason.strip(),
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(
        f"skipped: the record at offset {done.offset} of {done.stream} (partition {done.partition}) becomes a"
        f" dead letter; recorded in analytics.audit_log as {done.actor}"
    )


@streams.command("retire")
@click.argument("stream")
@click.option(
    "--gone",
    "is_gone",
    is_flag=True,
    help="The stream was deleted. Its events that were not counted are lost.",
)
def retire_stream(*, stream: str, is_gone: bool) -> None:
    """Say that nothing more comes from STREAM, so that no org waits for it any longer.

    STREAM may be a partition of a super stream. From then on freshness, finality and scheduled exports leave
    the stream out. Its figures stay. The command refuses while records of the stream are not counted, or a
    worker still reads them. It is recorded in analytics.audit_log. A worker that reads the stream again ends
    the retirement.
    """
    import asyncio

    from pipeline.admin import retire

    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        done = asyncio.run(
            retire.retire(
                stream_config(),
                values["DATABASE_URL"],
                stream=stream,
                is_gone=is_gone,
                redis_url=values["REDIS_URL"],
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(
        f"retired: {done.stream} (partition {done.partition}), counted up to offset {done.committed_offset};"
        f" recorded in analytics.audit_log as {done.actor}"
    )
    if done.cache_error:
        click.echo(
            f"Redis could not be told ({done.cache_error}): delete the field {done.partition} of"
            " spendstream:watermarks, or the API shows the old lag",
            err=True,
        )
