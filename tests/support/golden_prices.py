"""The golden prices: events with the cost that was worked out by hand, and the book that prices them.

``load`` brings all of it into an empty database, through the ledger and the sink of a worker. A test of any
surface then asks for the figures of an org, a model and an hour, and compares them with `hours`, or for those
of a day, and compares them with `days`. For example, an hour in which three calls cost 1, 2 and nobody knows
what has the cost 3, and ``unpriced`` is 1. See tests/data/golden_prices/README.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from pipeline.core.rules import Rules
from pipeline.core.wire import SNAKE_NAMES
from pipeline.prices import book, csv_file
from pipeline.sink.timescale import TimescaleSink
from tests.support import books, migrated
from tests.support.oracle import EPOCH

FOLDER: Final = Path(__file__).parent.parent / "data" / "golden_prices"
BOOK: Final = FOLDER / "book.csv"

Cell = tuple[str, datetime, str]
"""The org, the start of the hour or the day (UTC), and the model id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a surface must say of some calls."""

    cost: Decimal | None
    """US dollars, exact. None: nobody knows."""
    basis: str
    """``book``, ``estimate``, ``none``, or for calls of several bases ``mixed``."""
    invocations: int
    unpriced: int
    """The calls whose cost neither the book nor their producer knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One event, and what it costs."""

    name: str
    """What the payload is about: the name of its case."""
    event: dict[str, Any]
    """The event as its producer sends it, in one of the three spellings."""
    at: datetime
    org_id: str
    model_id: str
    provider: str
    model_name: str
    tokens: int
    """Input and output tokens together."""
    working: str
    """How the cost was worked out."""
    cost: Decimal | None
    basis: str

    @property
    def body(self) -> bytes:
        return json.dumps(self.event).encode()

    @property
    def expected(self) -> Expected:
        unpriced = int(self.basis == "none")
        return Expected(cost=self.cost, basis=self.basis, invocations=1, unpriced=unpriced)

    @property
    def hour(self) -> datetime:
        return self.at.replace(minute=0, second=0, microsecond=0)


def now() -> datetime:
    """A time after all payloads, with which all of them lie within 13 months."""
    return datetime.fromisoformat(_content()["now"])


def payloads() -> list[Payload]:
    """All payloads, in the order of the file."""
    return [_payload(row) for row in _content()["payloads"]]


def hours() -> dict[Cell, Expected]:
    """What each hour with payloads costs, by org and model: the sums of the costs in the file."""
    return totals(((one.org_id, one.hour, one.model_id), one.expected) for one in payloads())


def days() -> dict[Cell, Expected]:
    """What each day of UTC with payloads costs, by org and model: the sums of the costs in the file."""
    return totals(((one.org_id, one.hour.replace(hour=0), one.model_id), one.expected) for one in payloads())


def said_days() -> dict[Cell, tuple[str, Expected]]:
    """The days whose sum stands in the file itself, each with its working."""
    found: dict[Cell, tuple[str, Expected]] = {}
    for row in _content()["days"]:
        start = datetime.combine(date.fromisoformat(row["day"]), time(tzinfo=UTC))
        found[row["org"], start, row["model"]] = (
            row["working"],
            Expected(
                cost=Decimal(row["cost"]),
                basis=row["basis"],
                invocations=row["invocations"],
                unpriced=row["unpriced"],
            ),
        )
    return found


def totals(parts: Iterable[tuple[Cell, Expected]]) -> dict[Cell, Expected]:
    """What the parts of each cell cost in all. The parts are payloads, or rows of an answer."""
    grouped: dict[Cell, list[Expected]] = defaultdict(list)
    for cell, part in parts:
        grouped[cell].append(part)
    return {cell: _total(group) for cell, group in grouped.items()}


def _total(parts: Sequence[Expected]) -> Expected:
    costs = [part.cost for part in parts if part.cost is not None]
    bases = {part.basis for part in parts} - {"none"}
    return Expected(
        cost=sum(costs, Decimal(0)) if costs else None,
        basis="mixed" if len(bases) > 1 else next(iter(bases), "none"),
        invocations=sum(part.invocations for part in parts),
        unpriced=sum(part.unpriced for part in parts),
    )


async def load(database_url: str) -> int:
    """Migrate a database, import the book, and count all payloads. Returns the version of the book."""
    migrated.upgrade(database_url)
    with book.connected(database_url) as connection:
        title = f"csv {BOOK.name}"
        done = book.add(connection, csv_file.read(BOOK), action="prices.import", title=title)
    sink = TimescaleSink(database_url)
    claim, ledger = await books.recover(sink, Rules())
    day: date | None = None
    for offset, payload in enumerate(sorted(payloads(), key=lambda one: one.at)):
        if day not in (None, payload.at.date()):
            await books.flush(sink, claim, ledger)
        day = payload.at.date()
        ledger.ingest(
            first_offset=offset,
            next_offset=offset + 1,
            timestamp_us=(payload.at - EPOCH) // timedelta(microseconds=1),
            bodies=[payload.body],
        )
    await books.flush(sink, claim, ledger)
    await sink.close()
    return done.version


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "payloads.json").read_text())
    return content


def _payload(row: dict[str, Any]) -> Payload:
    event = row["event"]
    fields = event.get("data", event)

    def field(name: str, default: Any = None) -> Any:
        return fields.get(name, fields.get(SNAKE_NAMES[name], default))

    return Payload(
        name=row["name"],
        event=event,
        at=datetime.fromisoformat(field("occurredAt")).astimezone(UTC),
        org_id=field("orgId"),
        model_id=field("modelId"),
        provider=field("provider", ""),
        model_name=field("modelName", ""),
        tokens=field("inputTokens") + field("outputTokens"),
        working=row["working"],
        cost=None if row["cost"] is None else Decimal(row["cost"]),
        basis=row["basis"],
    )
