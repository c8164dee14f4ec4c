"""What reading a source gives, and what a source that cannot be read says."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pipeline.common.operator import OperatorError
from pipeline.prices.price import Fault, Faulty, Price

FILE_BYTES_MAX: Final = 32 * 2**20
"""The largest file that is read, as a file of prices takes some fifteen times its size in memory."""


class SourceMissing(OperatorError):
    """The package of a source is not installed. The message has the remedy."""


@dataclass(frozen=True, slots=True)
class Read:
    """The prices of a source, and what the source has that the book cannot say."""

    prices: tuple[Price, ...]
    notes: tuple[str, ...]
    """For people: models that were left out, and why; rates that were rounded."""

    def under(self, provider: str) -> Read:
        """The same prices under another name of their provider."""
        return Read(tuple(replace(price, provider=provider) for price in self.prices), self.notes)


def package(name: str, *modules: str) -> tuple[list[Any], str]:
    """The modules of a package of the extra ``prices``, and its version. Raises `SourceMissing`."""
    try:
        return [import_module(module) for module in modules], version(name)
    except ImportError as error:
        raise SourceMissing(
            f"the package {name} is not installed: pip install 'spendstream[prices]'"
        ) from error


def content(path: Path) -> bytes:
    """The bytes of a file of prices.

    Raises:
        Faulty: the file is larger than `FILE_BYTES_MAX`.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        found = file.read(FILE_BYTES_MAX + 1)
    if len(found) > FILE_BYTES_MAX:
        fault = Fault("file", f"is larger than {FILE_BYTES_MAX // 2**20} MiB: import it in parts")
        raise Faulty(str(path), [fault])
    return found


def without_place(model: str, names: Collection[str]) -> list[str]:
    """The note on the rates of a model that the book has no kind for, such as those for audio and images."""
    return [f"{model}: {_NO_PLACE} {', '.join(names)}"] if names else []


def in_order(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes with those of `without_place` at the end, because there are hundreds of them."""
    return tuple(sorted(notes, key=lambda note: _NO_PLACE in note))


_NO_PLACE: Final = "the book has no place for"
