"""The doctor's check of webhooks: does WEBHOOK_KEY have every key that one of them was encrypted with?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pipeline.admin.doctor.finding import Finding, Level
from pipeline.common import settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

_HEADS: Final = "SELECT substring(sealed FROM 1 FOR :bytes), count(*) FROM analytics.webhooks GROUP BY 1"
_ROTATE: Final = "docs/runbook/RotateKeys.md says how a key is changed"


def check(connection: Connection, values: settings.Values) -> Iterator[Finding]:
    """One finding, if there is any webhook. The texts are not opened: each names its key."""
    from sqlalchemy import text

    from pipeline.common.webhook_keys import HEAD_BYTES, head_of

    counts = {
        bytes(head): int(number) for head, number in connection.execute(text(_HEADS), {"bytes": HEAD_BYTES})
    }
    number = sum(counts.values())
    if not number:
        return
    keys = values["WEBHOOK_KEY"]
    if keys is None:
        yield Finding(
            Level.FAIL,
            "webhooks",
            f"{number} are in the database, and WEBHOOK_KEY is not set: nothing can be sent to them",
            f"set WEBHOOK_KEY to the key that they were encrypted with; {_ROTATE}",
        )
        return
    lost = number - sum(counts.get(head_of(key), 0) for key in set(keys))
    if lost:
        yield Finding(
            Level.FAIL,
            "webhooks",
            f"{lost} of {number} were encrypted with a key that WEBHOOK_KEY does not have: nothing can be"
            " sent to them",
            f"add that key to WEBHOOK_KEY, behind the first one and a comma; {_ROTATE}",
        )
        return
    older = number - counts.get(head_of(keys[0]), 0)
    said = (
        f", {older} of them with a key behind the first one (`spendstream webhooks reseal`)" if older else ""
    )
    yield Finding(Level.OK, "webhooks", f"{number}, and WEBHOOK_KEY opens all{said}")
