"""How this program starts its own processes: the interpreter it runs in, and the code it was loaded from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pipeline


def command_line(module: str, *arguments: str) -> list[str]:
    """Run ``module`` like ``python -m``, but never one of the same name in the current folder (``-P``)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base``, with this very copy of the code first on the path: a checkout need not be installed."""
    assert pipeline.__file__ is not None
    root = str(Path(pipeline.__file__).resolve().parent.parent)
    rest = [part for part in base.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
    return {**base, "PYTHONPATH": os.pathsep.join([root, *rest])}
