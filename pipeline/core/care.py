"""Looking for the record at which a worker crashes: take in few records at a time, and note which before.

A worker that follows two that ended without letting go of the partition takes in small parts of the stream,
each in a flush of its own. The part at which the worker crashes again is known then, and the next worker
divides that part by `PARTS`.

Example: the worker crashes somewhere after offset 80,000. The parts [80,000, 84,096) and [84,096, 88,192) go
well, and in [88,192, 92,288) the worker crashes. The next one takes in 256 records at a time and crashes in
[91,264, 91,520), the next one 16 at a time, and the last one takes in the record 91,401 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CRASHES_MIN: Final = 2
"""One crash may have any cause."""
FIRST_PART: Final = 4096
SUSPECTS: Final = 8 * FIRST_PART
"""How many offsets are taken in with care where nothing is known yet."""
PARTS: Final = 16


@dataclass(frozen=True, slots=True)
class Care:
    """Take in ``part`` records at a time up to the offset ``until``."""

    part: int
    until: int
    narrowed: bool = False
    """The last worker crashed in these offsets. Whoever comes past them shows that none of them kills."""

    @classmethod
    def after(cls, crashes: int, *, offset: int, tried: tuple[int, int] | None) -> Care | None:
        """What to do at ``offset`` after so many crashes in a row; None: nothing is suspected.

        ``tried``: the offsets [from, to) that the last worker was taking in.
        """
        if crashes < CRASHES_MIN:
            return None
        if tried is not None and Care.within(tried, offset):
            return cls(max(1, (tried[1] - offset) // PARTS), tried[1], narrowed=True)
        return cls(FIRST_PART, offset + SUSPECTS)

    @staticmethod
    def within(tried: tuple[int, int] | None, offset: int) -> bool:
        """Did the last worker crash while it took in, with care, the records from ``offset`` on?"""
        return tried is not None and tried[0] <= offset < tried[1]

    @staticmethod
    def found(crashes: int, *, offset: int, tried: tuple[int, int] | None) -> int | None:
        """The offset of the record at which workers crash; None while it is not known."""
        alone = tried is not None and tried[0] == offset and tried[1] - tried[0] == 1
        return offset if crashes >= CRASHES_MIN and alone else None


def remedy(stream: str, offset: int) -> str:
    """What an operator types to pass a record at which workers crash."""
    return f"spendstream stream skip --stream {stream} --offset {offset} --reason 'crashes the worker'"
