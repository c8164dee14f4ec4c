"""What reading a source gives, and what a source that is not installed says."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from pipeline.common.operator import OperatorError
from pipeline.prices.price import Price


class SourceMissing(OperatorError):
    """The package of a source is not installed. The message has the remedy."""


@dataclass(frozen=True, slots=True)
class Read:
    """The prices of a source, and what the source has that the book cannot say."""

    prices: tuple[Price, ...]
    notes: tuple[str, ...]
    """For people: models that were left out, and why; rates that were rounded."""


def package(name: str, *modules: str) -> tuple[list[Any], str]:
    """The modules of a package of the extra ``prices``, and its version. Raises `SourceMissing`."""
    try:
        return [import_module(module) for module in modules], version(name)
    except ImportError as error:
        raise SourceMissing(
            f"the package {name} is not installed: pip install 'spendstream[prices]'"
        ) from error
