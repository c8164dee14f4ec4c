"""``spendstream simulate`` and ``replay-trace``: traffic without a producer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from pipeline.commands.options import DURATION, fail, stream_config, warn
from pipeline.common import settings

if TYPE_CHECKING:
    from pipeline.traffic.trace import Trace

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
SHARE: Final = click.FloatRange(0, 1)


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


@click.command()
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
@click.option(
    "--facts",
    type=SHARE,
    default=0.9,
    show_default=True,
    help="Share of events with provider, model name, service tier, kinds of tokens, team and feature.",
)
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
    facts: float,
    duplicates: float,
    late: float,
    bad: float,
    shape: str,
) -> None:
    """Publish realistic usage events to the stream (RABBITMQ_URL) at a steady rate.

    The command waits for a stream that is away, and then publishes the same events again. Workers count each
    event once.
    """
    import asyncio

    from pipeline.traffic import simulate as simulating
    from pipeline.traffic.generator import Shares, Traffic, World, daily_shape
    from pipeline.transports.factory import open_transport

    stream = stream_config()
    try:
        shares = Shares(
            duplicates=duplicates,
            late=late,
            bad=bad,
            snake_case=snake_case,
            cloudevents=cloudevents,
            facts=facts,
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
        async with simulating.publishing(transport, warn=warn) as publisher:
            report(await simulating.simulate(publisher.publish, traffic, pace, stop=stop, report=report))

    asyncio.run(simulating.until_signal(work))
    per_s = last.published / last.elapsed_s if last.elapsed_s else 0.0
    click.echo(f"done: published {last.published} events in {last.elapsed_s:.1f} s ({per_s:.0f} events/s)")


@click.command("replay-trace")
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

    Times are shifted so that the last row ends now, or with --speed at the time of its publication. Times are
    cut to microseconds. A cost follows from the tokens and the list price of the model that the seed chose.

    The same file, --seed, --orgs, --models and --clients give each row the same event id. So a second run
    within DEDUPE_WINDOW changes no figure: only the first run counts. The events of the second run are
    rejected as `conflict`, because their shifted times differ. With --original-times they are duplicates.
    """
    import asyncio

    from pipeline.traffic import simulate as simulating
    from pipeline.traffic import trace as tracing
    from pipeline.traffic.generator import Shares, World
    from pipeline.transports.factory import open_transport

    stream = stream_config()
    try:
        shares = Shares(snake_case=snake_case, cloudevents=cloudevents)
        transport = open_transport(stream)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    trace = tracing.read(file, limit=limit)
    shift_us = _shift_us(trace, speed=speed, original_times=original_times)
    world = World(orgs=orgs, models=models, clients_per_org=clients)
    blocks = tracing.events(trace, world, seed=seed, shift_us=shift_us, shares=shares)
    published = 0

    async def work(stop: asyncio.Event) -> None:
        async with simulating.publishing(transport, warn=warn) as publisher:
            with click.progressbar(length=len(trace), label="publishing", file=sys.stderr) as bar:

                def report(rows: int) -> None:
                    nonlocal published
                    published += rows
                    bar.update(rows)

                await tracing.replay(publisher.publish, blocks, speed=speed, stop=stop, report=report)

    asyncio.run(simulating.until_signal(work))
    click.echo(f"published {published} of {len(trace)} rows of {file.name}")
    if published < len(trace):
        fail("stopped before the end; the same command publishes the rest, and what is there counts once")


def _shift_us(trace: Trace, *, speed: float, original_times: bool) -> int:
    """By how much the trace's times are shifted. Warns if they stay, and are too old for the worker."""
    from pipeline.traffic import trace as tracing

    now_us = time.time_ns() // 1000
    if not original_times:
        return tracing.shift_us(trace, end_us=tracing.end_us(trace, now_us=now_us, speed=speed))
    needed_s = tracing.window_needed_s(trace, now_us=now_us)
    if needed_s > settings.read(os.environ)["DEDUPE_WINDOW"]:
        warn(
            f"the first row is {needed_s // 3600} h back: unless the worker runs with"
            f" DEDUPE_WINDOW={needed_s // 3600}h or more, older rows are rejected as too_late"
        )
    return 0
