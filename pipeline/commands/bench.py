"""``spendstream bench``: how fast it is here, beside its rivals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import DURATION, fail
from pipeline.common import settings

if TYPE_CHECKING:
    from pipeline.bench.race import Options


@click.command()
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
    "--facts",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of events with provider, model name, service tier and kinds of tokens.",
)
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
    facts: float,
    copies: int,
    partitions: tuple[int, ...],
    processes: tuple[int, ...],
    rates: tuple[float, ...],
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure Spendstream and its rivals on this machine; a wrong answer is a failure (exit code 1).

    With RABBITMQ_URL and DATABASE_URL the whole path is measured too, in a stream and in databases that the
    command creates and deletes. Each stream holds --events x --copies events of about 430 bytes. DuckDB and
    bytewax take part if they are installed.
    """
    from pipeline.bench import race, report
    from pipeline.bench.workload import Shape

    for name in only:
        if name not in race.BY_NAME:
            raise click.UsageError(f"no contender {name!r}; there are {', '.join(race.BY_NAME)}")
    if min(processes) > max(partitions):
        raise click.UsageError("more --processes than --partitions would only stand by")
    values = settings.read(os.environ)
    options = race.Options(
        shape=Shape(events=events, orgs=orgs, models=models, clients=clients, facts=facts),
        repeat=repeat,
        copies=copies,
        partitions=partitions,
        processes=processes,
        only=only or tuple(race.BY_NAME),
        rabbitmq_url=values["RABBITMQ_URL"],
        database_url=values["DATABASE_URL"],
    )
    if rates:
        _measure_latency(options, rates, seconds=seconds, json_file=json_file)
        return
    found_on = report.machine()
    results = race.race(options, echo=lambda line: click.echo(line, err=True))
    text = report.table(options, results, found_on)
    click.echo(text)
    if markdown_file is not None:
        markdown_file.write_text(text)
    if json_file is not None:
        json_file.write_text(json.dumps(report.record(options, results, found_on), indent=1) + "\n")
    if wrong := [result.label for result in results if result.faults]:
        fail(f"failed: {', '.join(wrong)}")


def _measure_latency(
    options: Options, rates: Sequence[float], *, seconds: float, json_file: Path | None
) -> None:
    from pipeline.bench import latency, report

    if not options.rabbitmq_url or not options.database_url:
        raise click.UsageError("--latency needs RABBITMQ_URL and DATABASE_URL")
    found_on = report.machine()
    found = [latency.measure(options, rate=rate, seconds=seconds) for rate in rates]
    click.echo(report.latency_table(found, found_on))
    if json_file is not None:
        json_file.write_text(json.dumps(report.latency_record(found, found_on), indent=1) + "\n")
    if any(one.lost for one in found):
        fail("events were lost")
