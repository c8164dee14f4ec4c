"""`spendstream bench` on servers of its own: a fresh stack, gone when it ends.

tox -e bench -- --events 1000000 --only core --only duckdb
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from deploy.local import Stack
from pipeline import cli


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="spendstream-bench-stack-") as folder,
        Stack(Path(folder), temporary=True) as stack,
    ):
        stack.start(("rabbitmq", "postgres"))
        os.environ.update(stack.env)
        cli.main(["bench", *sys.argv[1:]])


if __name__ == "__main__":
    main()
