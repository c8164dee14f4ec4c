"""``spendstream top``: live spend in a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys

import click

from pipeline.commands.options import DURATION
from pipeline.common import settings

_SORTS = ("minute", "hour", "today", "requests", "errors", "p95", "name")
_INTERVAL_S_MIN = 0.5
_PIPE_WIDTH = 160


@click.command()
@click.option("--url", help="The API to ask. Default: SPENDSTREAM_API_URL.")
@click.option(
    "--org",
    help="Only this org: a UUID, its name, or a name that makes a UUID. Not needed by a caller of one org.",
)
@click.option("--by", help="What rows are: org, or of one org model, client or a dimension.")
@click.option(
    "--interval", type=DURATION, default="2s", show_default=True, help="How often to ask, at least 500ms."
)
@click.option(
    "--sort", type=click.Choice(_SORTS), default="today", show_default=True, help="What rows are sorted by."
)
@click.option(
    "--once", is_flag=True, help="Print one snapshot, and end. Without a terminal that is so anyway."
)
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as a JSON object.")
def top(
    *,
    url: str | None,
    org: str | None,
    by: str | None,
    interval: float,
    sort: str,
    once: bool,
    as_json: bool,
) -> None:
    """Show spend, calls, tokens, errors and freshness, live: all orgs, or one org by model.

    The API is asked with SPENDSTREAM_API_KEY or SPENDSTREAM_TOKEN (or a file: SPENDSTREAM_API_KEY_FILE), and
    never with a key of the command line, which everybody on the host can read. `?` shows the keys.

    Exit codes: 0 after q, 1 if the API refuses the caller, or does not answer a snapshot.
    """
    from pipeline.top import run
    from pipeline.top.client import ApiConfig

    if interval < _INTERVAL_S_MIN:
        raise click.UsageError("--interval must be at least 500ms")
    if by is not None and not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", by):
        raise click.UsageError("--by is org, model, client or the name of a dimension")
    if by == "org" and org is not None:
        raise click.UsageError("--by org shows all orgs: leave out --org")
    said = {} if url is None else {"SPENDSTREAM_API_URL": url}
    config = settings.read({**os.environ, **said}).make(ApiConfig)
    options = run.TopOptions(org=org, by=by, interval_s=interval, sort=sort)
    try:
        if once or as_json or not _has_screen():
            columns = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns
            width = columns if sys.stdout.isatty() else _PIPE_WIDTH
            run.once(config, options, width=width, as_json=as_json, echo=click.echo)
        else:
            run.run(config, options)
    except run.NeedsOrg as error:
        raise click.UsageError(str(error)) from None


def _has_screen() -> bool:
    """Can keys be read, and a screen be drawn? Textual draws on stderr, so that must be the terminal, too."""
    return os.environ.get("TERM") != "dumb" and all(
        stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )
