"""The search for the record at which workers crash: take in fewer and fewer records at a time.

When two workers in a row have ended without letting go of the partition, the next worker takes care. It takes
in the stream in small parts, each in a flush of its own, and notes each part before it takes the part in. If
the worker crashes again, the note names the part. The next worker divides that part by `PARTS`.

For example, workers crash somewhere after offset 80,000. The next worker takes in the parts [80,000, 84,096)
and [84,096, 88,192) without trouble, and crashes in [88,192, 92,288). The second worker takes in 256 records
at a time and crashes in [91,264, 91,520). The third worker takes in 16 records at a time. The fourth worker
takes in single records and crashes at record 91,401.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CRASHES_MIN: Final = 2
"""This many crashes in a row make a record suspect. A single crash may have any cause."""
FIRST_PART: Final = 4096
SUSPECTS: Final = 8 * FIRST_PART
"""This many offsets are taken in with care when nothing is known of the record yet."""
PARTS: Final = 16


@dataclass(frozen=True, slots=True)
class Care:
    """Take in ``part`` records at a time up to the offset ``until``."""

    part: int
    until: int
    narrowed: bool = False
    """The last worker crashed in these offsets. A worker that comes past them has shown them harmless."""

    @classmethod
    def after(cls, crashes: int, *, offset: int, tried: tuple[int, int] | None) -> Care | None:
        """Decide how carefully to go on at ``offset`` after a number of crashes in a row.

        ``tried`` has the offsets [from, to) that the last worker was taking in. Returns None when no record
        is suspect.
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
    """The command with which an operator skips a record at which workers crash."""
    return f"spendstream stream skip --stream {stream} --offset {offset} --reason 'crashes the worker'"
