"""The ``spendstream`` command: finds a command in its file, and turns errors into lines for an operator.

The file of a command is imported when the command is asked for. A command imports its own needs when it runs,
so that help is quick.

Exit codes: 0 is done. 1 means that the environment or the input failed, and one line names the failure. 2
means wrong usage or wrong configuration, and every fault has a line.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from pipeline.common import lookalikes, settings
from pipeline.common.operator import OperatorError

_COMMANDS: Final = {
    "adjustments": "adjustments:adjustments",
    "api": "processes:api",
    "audit": "audit:audit",
    "bench": "bench:bench",
    "check": "check:check",
    "collector": "collector:collector",
    "config": "environment:config",
    "dead-letters": "dead_letters:dead_letters",
    "demo": "demo:demo",
    "doctor": "environment:doctor",
    "exporter": "processes:exporter",
    "alerts": "processes:alerts",
    "id": "ids:make_ids",
    "keys": "keys:keys",
    "migrate": "environment:migrate",
    "names": "names:names",
    "prices": "prices:prices",
    "rebuild": "archive:rebuild",
    "reconcile": "archive:reconcile",
    "replay-trace": "traffic:replay_trace",
    "simulate": "traffic:simulate",
    "stream": "streams:streams",
    "top": "top:top",
    "version": "environment:version",
    "warm-up": "environment:warm_up",
    "webhooks": "webhooks:webhooks",
    "worker": "processes:worker",
}
"""The file in `pipeline.commands`, and the name in that file, of each command."""


class _Commands(click.Group):
    """Finds a command in its file, and turns errors that an operator can act on into lines and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        file, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"pipeline.commands.{file}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except settings.ConfigError as error:
            for fault in error.faults:
                click.echo(f"configuration: {fault}", err=True)
            for lookalike in lookalikes.find(os.environ):
                click.echo(f"warning: {lookalike}", err=True)
            ctx.exit(2)
        except UnicodeEncodeError:
            raise click.UsageError("an argument holds bytes that are no text in UTF-8", ctx) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly when the reader of a pipe has gone
        except Exception as error:
            line = _explained(error)
            if line is None:
                raise
            raise click.ClickException(line) from error


def _explained(error: Exception) -> str | None:
    """The line for an error that an operator can act on; None: the error is a fault of ours.

    Only modules that the command has imported are asked for their kinds of errors. A command that never
    loaded the driver cannot have an error of the driver.
    """
    if isinstance(error, OperatorError):
        return str(error)
    for module, name, words in (
        ("psycopg.errors", "UndefinedTable", "run `spendstream migrate` first"),
        ("psycopg", "Error", "the database cannot be used"),
        ("pipeline.sink", "SinkError", "the database cannot be used"),
        ("pipeline.transports", "TransportError", "the stream cannot be used"),
        ("pipeline.archive.store", "StoreError", "the archive cannot be read"),
    ):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return f"{words}: {str(error).strip()}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return None


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def main() -> None:
    """Exact real-time spend, usage and reliability analytics for LLM inference.

    Every process is configured by environment variables: `spendstream config` shows them all.
    """


if __name__ == "__main__":
    main()
