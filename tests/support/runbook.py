"""The runbook's commands, run as an operator would: by a shell, with the servers' own tools on the PATH."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from deploy.local import Stack
from deploy.local.server import Server
from deploy.local.ways.binaries import Processes
from tests.support import processes, watch

_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def task_pages() -> set[str]:
    """The pages of the runbook that belong to no alert."""
    pages = {page.stem for page in watch.RUNBOOK.glob("*.md")}
    return {stem for stem in pages if not stem.startswith("Spendstream")} - {"README"}


class Page:
    """The shell blocks of a page, by heading, and which of them have been run."""

    def __init__(self, path: Path, tools: Path, env: Mapping[str, str], folder: Path) -> None:
        """``tools`` is the folder that `put_tools` has filled. The commands run in ``folder``."""
        self._text = path.read_text()
        self._env = {**os.environ, **env, "PATH": f"{tools}:{os.environ['PATH']}"}
        self._folder = folder
        self._left = {
            (heading, number)
            for heading in re.findall(r"^## (.*)$", self._text, re.MULTILINE)
            for number in range(len(self._blocks(heading)))
        }

    def _blocks(self, heading: str) -> list[str]:
        _, found, rest = self._text.partition(f"\n## {heading}\n")
        assert found, f"no heading {heading!r}"
        section = rest.partition("\n## ")[0]
        return [textwrap.dedent(text) for text in _BLOCK.findall(section)]

    def run(
        self,
        heading: str,
        *,
        number: int | None = None,
        instead: Mapping[str, str] | None = None,
        until: Callable[[], object] = lambda: None,
    ) -> str:
        """Run the blocks below a heading, or one of them; the output. Fails if a command does.

        ``instead`` has, for names and numbers of the page, those of this place. A line with ``…`` is for
        the reader to fill in, and its variables are in the environment here. What the commands leave in the
        background is ended after ``until`` has returned.
        """
        blocks = list(enumerate(self._blocks(heading)))
        if number is not None:
            blocks = [blocks[number]]
        script = "\n".join(text for _, text in blocks)
        self._left -= {(heading, place) for place, _ in blocks}
        for line in script.splitlines():
            assert "…" not in line or line.startswith("export "), line
        script = "\n".join(line for line in script.splitlines() if "…" not in line)
        for name, value in (instead or {}).items():
            assert name in script, f"{heading}: {name!r} is not in the commands"
            script = script.replace(name, value)
        out = self._folder / "said"
        with out.open("wb") as said:
            shell = subprocess.Popen(
                ("bash", "-eu", "-o", "pipefail", "-c", script),
                cwd=self._folder,
                env=self._env,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            code = shell.wait(300)
            assert code == 0, f"{heading}: exit code {code}\n{script}\n{out.read_text()}"
            until()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        return out.read_text()

    def nothing_left(self) -> None:
        assert not self._left, f"blocks that were not run: {sorted(self._left)}"


def put_tools(folder: Path, stack: Stack) -> Path:
    """Put the tools that the pages name into ``folder``: ours, and those of the servers of the stack."""
    way = stack.way
    assert isinstance(way, Processes)
    folder.mkdir()
    _put(folder, "spendstream", processes.command_line("pipeline.cli", env=os.environ))
    for name in ("psql", "pg_dump", "pg_dumpall", "pg_restore"):
        _put(folder, name, _inside(way, stack.postgres, [str(way.binaries.pg_bin / name)]))
    _put(
        folder,
        "redis-cli",
        _inside(way, stack.redis, [str(way.binaries.redis_server.with_name("redis-cli"))]),
    )
    _, settings = stack.rabbitmq.command(way)
    ctl = ["/usr/bin/env", *(f"{name}={value}" for name, value in settings.items())]
    _put(
        folder,
        "rabbitmqctl",
        _inside(way, stack.rabbitmq, [*ctl, str(way.binaries.rabbitmq_server.with_name("rabbitmqctl"))]),
    )
    return folder


def _inside(way: Processes, server: Server, argv: Sequence[str]) -> list[str]:
    """A command line in the root folder of the server. It sees no other folder, so files go through pipes."""
    return way._enter(server, argv)


def _put(folder: Path, name: str, argv: Sequence[str]) -> None:
    file = folder / name
    file.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
    file.chmod(0o755)
