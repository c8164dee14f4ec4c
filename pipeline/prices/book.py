"""The book in the database: reading it, and appending to it. A row is never changed and never deleted.

The version of the book is the greatest id. A lock lets one writer at a time append, so ids are committed in
their order, and a version never gains a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from pipeline.common import connect
from pipeline.common.actor import actor
from pipeline.common.operator import OperatorError
from pipeline.prices.plan import NEVER, Plan, pieces, plan
from pipeline.prices.price import CHILDREN, MANUAL, Faulty, Key, Price, faults_of
from sql import queries

NEWEST: Final = 2**63 - 1
"""A version that is as new as the book, whatever the book holds."""


class PriceRefused(OperatorError):
    """The book cannot take this change; nothing was changed. The message has the reason."""


class NoSuchPrice(PriceRefused):
    """The book has no row of this number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The rows of the book that are asked for. None: all."""

    version: int = NEWEST
    live: bool = False
    """Only prices that are not retracted, and no retractions."""
    provider: str | None = None
    model_name: str | None = None
    service_tier: str | None = None
    kind: str | None = None
    source: str | None = None
    org_id: UUID | None = None
    at: datetime | None = None
    """Only rows that are valid then."""
    after: int = 0
    """Only rows with a greater id."""
    limit: int | None = None
    seen_by: Sequence[UUID] | None = None
    """Only prices of everyone, and those of these orgs."""

    def values(self) -> dict[str, Any]:
        """The values of the query ``entries``."""
        return {name: getattr(self, name) for name in Chosen.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the book. Either it has a rate, or it retracts an earlier row."""

    id: int
    provider: str
    model_name: str
    service_tier: str
    context_from: int
    kind: str
    rate: Decimal | None
    valid_from: datetime
    valid_to: datetime | None
    org_id: UUID | None
    source: str
    basis: str
    recorded_by: str
    recorded_at: datetime
    retracts: int | None
    retracted_by: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The rates of a model for a range of sizes and of hours; see ``analytics.price_sheets``."""

    org_id: UUID | None
    provider: str
    model_name: str
    service_tier: str
    context_from: int
    context_to: int | None
    valid_from: datetime
    valid_to: datetime | None
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    reasoning: Decimal
    request: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The outcome of an import. ``version`` is the version of the book from then on."""

    plan: Plan
    version_before: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Prices that hold for times from which calls of their models were counted.

    ``prices``, ``models`` and ``orgs`` are numbers. ``start`` and ``end`` are the first and the last time of
    which that is so. Whether there are calls of the same tier and size is not looked up.
    """

    prices: int
    models: int
    orgs: int
    start: datetime
    end: datetime


def connected(database_url: str) -> connect.Connection:
    """A connection for the functions of this module. Raises `psycopg.Error`."""
    return connect.connect(
        database_url, connect.Session(application_name="spendstream-prices", lock_timeout_s=60.0)
    )


def version(connection: connect.Connection) -> int:
    """The version of the book; 0 if it is empty."""
    row = connection.execute(_PRICES["version"]).fetchone()
    assert row is not None
    return int(row[0])


def entries(connection: connect.Connection, chosen: Chosen) -> Iterator[Entry]:
    """The chosen rows of the book, in the order of their ids."""
    for row in connection.execute(_PRICES["entries"], chosen.values()):
        yield Entry(**dict(zip(Entry.__slots__, row, strict=True)))


def live(connection: connect.Connection, chosen: Chosen) -> list[Price]:
    """The prices among the chosen rows that count at the version, in the order of their ids."""
    rows = connection.execute(_PRICES["entries"], chosen.values() | {"live": True}).fetchall()
    names = Entry.__slots__[1:12]
    return [
        Price(**dict(zip(names, row[1:12], strict=True)), where=f"row {row[0]} of the book") for row in rows
    ]


def effective(connection: connect.Connection, chosen: Chosen) -> Iterator[Price]:
    """The prices of the chosen rows, without the hours in which a later row takes their place.

    Importing them appends nothing, and a new book that imports them says the same.
    """
    by_key: dict[Key, list[Price]] = {}
    for price in live(connection, chosen):
        by_key.setdefault(price.key, []).append(price)
    for key in sorted(by_key, key=lambda key: (*key[1:], str(key[0] or ""))):
        for start, end, price in pieces(by_key[key]):
            fields = {name: getattr(price, name) for name in Price.__slots__}
            ends = {"valid_to": None if end == NEVER else end}
            yield Price(**fields | {"valid_from": start} | ends)


def sheets(
    connection: connect.Connection,
    at_version: int,
    *,
    models: Sequence[tuple[str, str]] | None = None,
    org_id: UUID | None = None,
) -> list[Sheet]:
    """The sheets of the book at a version: of all models, or of the named (provider, model name) pairs.

    With ``org_id``, those of everyone and those of this org; without, those of everyone and of all orgs.
    """
    rows = connection.execute(
        _PRICES["sheets"],
        {
            "version": at_version,
            "providers": None if models is None else [provider for provider, _ in models],
            "model_names": None if models is None else [name for _, name in models],
            "org_id": org_id,
        },
    ).fetchall()
    return [Sheet(**dict(zip(Sheet.__slots__, row, strict=True))) for row in rows]


def providers_of(connection: connect.Connection, model_name: str, provider: str | None) -> list[str]:
    """The providers that the book has a model of this name from, or ``provider`` if it is one of them."""
    rows = connection.execute(_PRICES["named"], {"model_name": model_name, "provider": provider}).fetchall()
    return [name for (name,) in rows]


def add(
    connection: connect.Connection,
    prices: Sequence[Price],
    *,
    action: str,
    title: str,
    dry_run: bool = False,
    overwrite: bool = False,
    edited: bool = False,
    file_name: str = "",
    now: datetime | None = None,
    who: str | None = None,
) -> Imported:
    """Append what the prices say and the book does not, with a row in the audit log.

    The caller commits. ``action`` and ``title`` name the change in the audit log. With ``dry_run`` nothing is
    written. ``who`` makes the change; if not given, the person who runs the command. For ``overwrite`` and
    ``edited`` and ``file_name`` see `pipeline.prices.plan.plan`.

    Raises:
        Faulty: a price breaks a rule; nothing was changed.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    faults = faults_of(prices)
    if faults:
        raise Faulty(title, faults)
    if not dry_run:
        connection.execute(_PRICES["lock"])
    stored = live(connection, Chosen())
    planned = plan(
        prices,
        stored,
        now=now or datetime.now(UTC),
        overwrite=overwrite,
        edited=edited,
        file_name=file_name,
    )
    before = version(connection)
    if planned.append and not dry_run:
        append(connection, planned.append, who=who)
        orgs = {price.org_id for price in planned.append}
        detail = {
            "title": title,
            "rows": len(planned.append),
            "sources": sorted({price.source for price in planned.append}),
            "version": version(connection),
            "version_before": before,
        }
        if len(planned.append) == 1:
            [price] = planned.append
            detail["price"] = {
                name: None if value is None else str(value)
                for name in Price.__slots__
                if name != "where"
                for value in [getattr(price, name)]
            }
        _audit(connection, action, detail, org_id=orgs.pop() if len(orgs) == 1 else None, who=who)
    return Imported(plan=planned, version_before=before, version=version(connection))


def past(connection: connect.Connection, prices: Sequence[Price]) -> Past | None:
    """Which of some prices can change what past calls cost; None: none of them. Raises `psycopg.Error`."""
    columns = ("org_id", "provider", "model_name", "valid_from", "valid_to")
    values = {name: [getattr(price, name) for price in prices] for name in columns}
    row = connection.execute(_PRICES["past"], values).fetchone()
    assert row is not None
    return Past(**dict(zip(Past.__slots__, row, strict=True))) if row[0] else None


def from_everyone(connection: connect.Connection, price: Price) -> list[Price]:
    """For an org's price: those of everyone that other kinds of the same tokens keep for the org.

    A kind of cached tokens follows the org's price for input only where nobody has a price of its own for
    that kind, and reasoning that for output alike.
    """
    kinds = CHILDREN.get(price.kind, ())
    if price.org_id is None or not kinds:
        return []
    now = datetime.now(UTC)
    chosen = Chosen(provider=price.provider, model_name=price.model_name, service_tier=price.service_tier)
    found = [
        one
        for one in live(connection, chosen)
        if one.kind in kinds and (one.valid_to is None or one.valid_to > now)
    ]
    own = {one.kind for one in found if one.org_id == price.org_id}
    newest = {one.kind: one for one in found if one.org_id is None and one.context_from == 0}
    return [one for kind, one in newest.items() if kind not in own]


def append(connection: connect.Connection, prices: Sequence[Price], *, who: str | None = None) -> None:
    """Append prices that keep the rules, as they are. Every price needs its ``valid_from``."""
    who = who or actor()
    with connection.cursor() as cursor, cursor.copy(_PRICES["append"]) as copy:
        for price in prices:
            assert price.valid_from is not None
            copy.write_row(
                (
                    price.provider,
                    price.model_name,
                    price.service_tier,
                    price.context_from,
                    price.kind,
                    price.rate,
                    price.valid_from,
                    price.valid_to,
                    price.org_id,
                    price.source,
                    price.basis,
                    who,
                )
            )


def retract(connection: connect.Connection, number: int, *, reason: str, who: str | None = None) -> int:
    """Retract a price, and return the id of the row that does so. The caller commits. ``who`` as in `add`.

    Raises:
        NoSuchPrice: the book has no such row.
        PriceRefused: the row is no price, or is retracted already.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    connection.execute(_PRICES["lock"])
    to_retract(connection, number)
    values: dict[str, Any] = {"id": number, "source": MANUAL, "basis": reason, "recorded_by": who or actor()}
    row = connection.execute(_PRICES["retract"], values).fetchone()
    assert row is not None
    detail = {"id": number, "reason": reason, "version": row[0]}
    _audit(connection, "prices.retract", detail, org_id=None, who=who)
    return int(row[0])


def to_retract(connection: connect.Connection, number: int) -> Entry:
    """The price that can be retracted by this number. Raises as `retract`."""
    found = next(entries(connection, Chosen(after=number - 1, limit=1)), None)
    if found is None or found.id != number:
        raise NoSuchPrice(f"the book has no row {number}: see `spendstream prices list`")
    if found.retracts is not None:
        raise PriceRefused(
            f"row {number} is itself a retraction (of row {found.retracts}): set the price anew"
        )
    if found.retracted_by is not None:
        raise PriceRefused(f"row {number} is retracted already, by row {found.retracted_by}")
    return found


def to_retract_after(connection: connect.Connection, after: int) -> list[Entry]:
    """The prices that were recorded after a version and count. Raises `PriceRefused` if there are none."""
    found = list(entries(connection, Chosen(after=after, live=True)))
    if not found:
        raise PriceRefused(f"no price that counts was recorded after version {after}")
    return found


def retract_after(
    connection: connect.Connection, after: int, *, reason: str, up_to: int = NEWEST
) -> tuple[int, int]:
    """Retract every price that was recorded after a version; returns their number and the new version.

    The caller commits. This undoes an import. Retractions stay: nothing brings a retracted price back.
    ``up_to``: prices that were recorded after this version stay. A person saw and agreed to the others.

    Raises:
        PriceRefused: no price was recorded after the version.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    connection.execute(_PRICES["lock"])
    values: dict[str, Any] = {
        "after": after,
        "up_to": up_to,
        "source": MANUAL,
        "basis": reason,
        "recorded_by": actor(),
    }
    count = connection.execute(_PRICES["retract_after"], values).rowcount
    if not count:
        raise PriceRefused(f"no price that counts was recorded after version {after}")
    newest = version(connection)
    detail = {"after": after, "rows": count, "reason": reason, "version": newest}
    _audit(connection, "prices.retract", detail, org_id=None, who=None)
    return count, newest


def _audit(
    connection: connect.Connection,
    action: str,
    detail: dict[str, Any],
    *,
    org_id: UUID | None,
    who: str | None,
) -> None:
    values = {"actor": who or actor(), "action": action, "org_id": org_id, "detail": Jsonb(detail)}
    connection.execute(_PRICES["audit"], values)


_PRICES = queries.load("prices")
