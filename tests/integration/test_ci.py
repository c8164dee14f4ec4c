"""CI tests the clone and nothing beside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("beside", [[], ["shared"]])
def test_ci_runs_the_tests_where_nothing_is_beside_the_clone(tmp_path: Path, beside: list[str]) -> None:
    """The real `.ci/run` in a small repository, with a Python whose pip and tox only say where they are."""
    clone = tmp_path / "some" / "clone"
    (clone / ".ci").mkdir(parents=True)
    for name in beside:
        (clone.parent / name).mkdir()
    run = clone / ".ci/run"
    run.write_bytes((ROOT / ".ci/run").read_bytes())
    run.chmod(0o755)
    python, git = tmp_path / "bin/python3", tmp_path / "bin/git"
    python.parent.mkdir()
    git.write_text('#!/bin/sh\n[ "$1" = rev-parse ] || cp -r "$3" "$4"\n')  # or `clone -q FROM TO`
    git.chmod(0o755)
    stub = '#!/bin/sh\n[ "${0##*/}" = pip ] || { echo "$CI"; ls -A ..; exit 3; }\n'
    python.write_text(
        f"#!/bin/sh\nmkdir -p .venv/bin\nfor name in pip tox; do printf '%s' '{stub}' >.venv/bin/$name\n"
        "chmod 755 .venv/bin/$name; done\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        (str(run),),
        env={"PATH": f"{python.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    ci, *found = done.stdout.split()
    assert ci == "true", done.stderr
    assert len(found) == 1, "something is beside the clone that CI tests"
    assert done.returncode == 3, "the exit code is tox's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "some"], "nothing is left behind"
