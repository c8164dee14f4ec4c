"""What a change of prices would do to the figures, and where book and usage do not fit. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from functools import reduce
from typing import Final
from uuid import UUID

from pipeline.common.connect import Connection
from pipeline.common.texts import counted
from pipeline.prices import book
from pipeline.prices.plan import plan
from pipeline.prices.price import CHECK_MODEL, PUBLIC, Faulty, Price, faults_of
from sql import queries

SHARE: Final = Decimal("0.01")
"""Two sources disagree if their rates differ by more than this share of the lesser one."""
RECENT_S: Final = 31 * 86_400
_EXACT: Final = Context(prec=1000)
"""Decimal's own context would round sums of more than 28 digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The cost of one model for one org under two books, in US dollars, exact.

    The cost is that of the book, else the producer's estimate. It is None if neither knows it for any call.
    """

    org_id: UUID
    model_id: UUID
    provider: str
    model_name: str
    invocations: int
    before: Decimal | None
    after: Decimal | None
    unpriced_before: int
    unpriced_after: int

    @property
    def by(self) -> Decimal:
        """How much more the calls cost after than before."""
        return _EXACT.subtract(self.after or Decimal(0), self.before or Decimal(0))


def total(differences: Iterable[Difference]) -> Decimal:
    """How much more all the calls cost after than before."""
    return reduce(_EXACT.add, (one.by for one in differences), Decimal(0))


def between_versions(
    connection: Connection,
    before: int,
    after: int,
    *,
    start: datetime,
    end: datetime,
    orgs: Sequence[UUID] | None = None,
) -> list[Difference]:
    """The models whose calls in [start, end) cost another amount at the one version than at the other.

    ``start`` and ``end`` are whole hours. ``orgs``: only these; None: all. Raises `psycopg.Error`.
    """
    values = {
        "before": before,
        "after": after,
        "start": start,
        "end": end,
        "orgs": None if orgs is None else list(orgs),
    }
    with connection.transaction():
        connection.execute(_PRICES["no_loops"])
        rows = connection.execute(_PRICES["diff"], values).fetchall()
    return [Difference(**dict(zip(Difference.__slots__, row, strict=True))) for row in rows]


def with_prices(
    connection: Connection,
    prices: Sequence[Price],
    *,
    title: str,
    start: datetime,
    end: datetime,
    orgs: Sequence[UUID] | None = None,
) -> list[Difference]:
    """`between_versions` of the book, and of the book after an import of these prices of a file.

    The prices are appended in a transaction that is rolled back, so that one rule finds the prices of both
    books. Other writers of the book wait meanwhile. The ids that the rows had are not used again.

    Raises:
        Faulty: a price breaks a rule.
        psycopg.Error: the database cannot be used.
    """
    faults = faults_of(prices)
    if faults:
        raise Faulty(title, faults)
    with connection.transaction(force_rollback=True):
        connection.execute(_PRICES["lock"])
        before = book.version(connection)
        stored = book.live(connection, book.Chosen())
        planned = plan(prices, stored, now=datetime.now(UTC), edited=True)
        book.append(connection, planned.append)
        return between_versions(connection, before, book.NEWEST, start=start, end=end, orgs=orgs)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at. ``wrong``: amounts are missing or wrong because of it."""

    kind: str
    text: str
    wrong: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """Calls that the book does not price. ``cost`` is the estimate of those that have one."""

    provider: str
    model_name: str
    service_tier: str
    orgs: int
    first_day: datetime
    invocations: int
    unpriced: int
    cost: Decimal

    def __str__(self) -> str:
        """How these calls count instead."""
        estimated = self.invocations - self.unpriced
        parts = []
        if estimated:
            counts = "counts" if estimated == 1 else "count"
            parts.append(
                f"{counted(estimated, 'call')} {counts} at the producers' estimate, {self.cost:f} USD"
            )
        if self.unpriced:
            counts = "counts" if self.unpriced == 1 else "count"
            parts.append(f"{counted(self.unpriced, 'call')} {counts} nothing, as nobody knows the cost")
        return f"since {self.first_day:%Y-%m-%d}, {' and '.join(parts)}"


def check(connection: Connection, *, now: datetime, everything: bool = False) -> list[Finding]:
    """Where the book and the usage do not fit together. Raises `psycopg.Error`.

    The model of ``spendstream check`` needs no price, as long as every call of it says that it costs nothing.
    ``everything``: also where sources differ about models that no event has named.
    """
    findings = [
        Finding(
            "unlabelled",
            f"model {model_id} of {counted(orgs, 'org')} sends no provider and modelName, so it has no price"
            f" (last event {at:%Y-%m-%d %H:%M}); its events must name both",
        )
        for model_id, orgs, at in connection.execute(_PRICES["unlabelled"])
    ]
    since = (now - timedelta(seconds=RECENT_S)).replace(hour=0, minute=0, second=0, microsecond=0)
    calls: dict[tuple[str, str], list[_Calls]] = defaultdict(list)
    for row in connection.execute(_PRICES["unpriced_calls"], {"since": since}):
        one = _Calls(**dict(zip(_Calls.__slots__, row, strict=True)))
        calls[one.provider, one.model_name].append(one)
    for provider, name, orgs, at, others in connection.execute(_PRICES["unpriced"]):
        of_model = calls.pop((provider, name), [])
        if (provider, name) == CHECK_MODEL and not any(one.cost or one.unpriced for one in of_model):
            continue
        of_tiers = [f"at the tier {one.service_tier}, {one}" for one in of_model]
        remedy = (
            f"the book has a model of this name from {', '.join(others)}: see import --as"
            if others
            else "import or set prices of it for input and output"
        )
        findings.append(
            Finding(
                "unpriced",
                f"{provider} {name} of {counted(orgs, 'org')} has no price"
                f" (last event {at:%Y-%m-%d %H:%M}); {'; '.join([*of_tiers, remedy])}",
            )
        )
    findings += [
        Finding(
            "unpriced calls",
            f"{provider} {name} of {counted(one.orgs, 'org')} has calls at the tier {one.service_tier} that"
            f" the book does not price: {one}; set prices for input and output with --tier {one.service_tier}"
            f" --from {one.first_day:%Y-%m-%d}",
        )
        for (provider, name), of_model in calls.items()
        for one in of_model
    ]
    findings += [
        Finding(
            "boundary",
            f"{provider} {name} {tier} has another price from {context} tokens on, inside rate class {number}"
            f" ({first} {'tokens and more' if last is None else f'to {last} tokens'}), which has rows: all"
            f" of them are priced by its lower end; add {context} to CONTEXT_TIERS for the calls to come",
        )
        for provider, name, tier, context, number, first, last in connection.execute(_PRICES["boundaries"])
    ]
    findings += [
        Finding(
            "unseen",
            f"{provider} {name} has {counted(count, 'price')} from {', '.join(sources)}, but no event has"
            " named this model: names must be those of the events, to the letter",
            wrong=False,
        )
        for provider, name, count, sources in connection.execute(_PRICES["unseen"], {"public": list(PUBLIC)})
    ]
    findings += [
        Finding(
            "sources",
            f"{provider} {name} {tier}{f' from {context} tokens' if context else ''} {kind}: "
            + ", ".join(f"{rate:f} by {source}" for source, rate in zip(sources, rates, strict=True))
            + "; the last one counts",
            wrong=False,
        )
        for provider, name, tier, context, kind, sources, rates in connection.execute(
            _PRICES["disagreements"], {"at": now, "share": SHARE, "everything": everything}
        )
    ]
    return findings


_PRICES = queries.load("prices")
