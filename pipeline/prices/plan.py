"""What an import would append: only the hours in which the source says another rate than the book.

Prices with the same key (`pipeline.prices.price.Key`) compete only in time, and the later row of the book
wins. So prices with one key make pieces of time, each with one winner. For example, 3 dollars from January on
and then 2 dollars from March on are two pieces: January to March, and from March on. An import compares the
pieces of the source with the pieces of the book. Importing the same source twice therefore appends nothing.
Within a source the order of the prices says nothing: of two, the one that begins later wins.

A public source (`pipeline.prices.price.PUBLIC`) never takes the place of a price that somebody here decided
on, by hand or in a file, unless ``overwrite`` is said.

A source may not say when a price began. If the book has no price of such calls yet, the price holds since
1970. Otherwise it holds from the current hour on: a new rate without a date is no reason to change what past
calls cost. "Such calls" are those of the same provider, model and service tier, for everyone or for the same
org. For example, a rate for cached tokens that appears in a source later says nothing about last month.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from pipeline.prices.price import EVER, FILE, MANUAL, PUBLIC, TEXT_CHARS_MAX, Key, Price, hour_of

NEVER: Final = datetime.max.replace(tzinfo=UTC)

Piece = tuple[datetime, datetime, Price]
"""From when, up to when (`NEVER`: no end), and the price that wins there."""

Calls = set[tuple[UUID | None, str, str, str]]
"""(org_id, provider, model_name, service_tier) of the calls that the book has a price of."""


@dataclass(frozen=True, slots=True)
class Change:
    """A row to append, and the prices of the book in whose place it comes, in the order of time."""

    price: Price
    before: tuple[Price, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of comparing a source with the book."""

    changes: tuple[Change, ...]
    """The rows to append, each with both times worked out."""
    overrides: Counter[str]
    """How many of these take the place of a rate of another source, by that source."""
    kept: tuple[Price, ...]
    """Prices of the book that people decided on, and that stay although a public source has other rates."""
    vanished: tuple[Price, ...]
    """Prices that the book has from this source for times to come, and that the source no longer has."""

    @property
    def append(self) -> tuple[Price, ...]:
        """The rows to append."""
        return tuple(change.price for change in self.changes)


def plan(
    prices: Sequence[Price],
    live: Iterable[Price],
    *,
    now: datetime,
    overwrite: bool = False,
    edited: bool = False,
    file_name: str = "",
) -> Plan:
    """Compare a source with the live prices of the book, which are in the order of their ids.

    With ``overwrite``, public sources take the place of what people decided on, too. With ``edited``, the
    source is a file of a person's, perhaps an export of the book: a rate in it that is not the book's is the
    person's, whatever source the file names. Then ``file_name`` is the name of the file: prices of the book
    from a file of this name have vanished if they are no longer in it.
    """
    known: dict[Key, list[Price]] = defaultdict(list)
    for price in live:
        known[price.key].append(price)
    named: dict[Key, list[Price]] = defaultdict(list)
    for price in prices:
        named[price.key].append(price)
    calls = {key[:4] for key in known if key[-1] != "discount"}
    changes: list[Change] = []
    overrides: Counter[str] = Counter()
    kept: list[Price] = []
    for key, given in named.items():
        book = pieces(known.get(key, ()))
        wanted = [(_start(start, price, calls, now), end, price) for start, end, price in _in_order(given)]
        for start, end, price in wanted:
            for first, last, before in _differences(start, end, price, book, overwrite=overwrite):
                row = replace(price, valid_from=first, valid_to=None if last == NEVER else last)
                sources = {one.source for one in before}
                if edited and price.source in sources.intersection(PUBLIC):
                    row = _by_hand(row)
                changes.append(Change(row, tuple(before)))
                overrides.update(sources - {row.source})
        if not overwrite:
            kept += _kept(wanted, book)
    origins = {_origin(one) for one in prices if not edited or _is_of_file(one, file_name)}
    vanished = [
        replace(price, valid_from=start if first == at else first, valid_to=None if last == NEVER else last)
        for key, stored in known.items()
        for start, end, price in pieces(stored)
        if end > now and _origin(price) in origins
        for at in [max(start, hour_of(now))]
        for first, last in _uncovered(at, end, named.get(key, ()))
    ]
    return Plan(tuple(changes), overrides, tuple(kept), tuple(vanished))


def _origin(price: Price) -> tuple[str, str, str]:
    """What a price is from. Files of one's own are told apart by the basis, which is a file's name."""
    return price.source, price.provider, price.basis if price.source == FILE else ""


def _is_of_file(price: Price, file_name: str) -> bool:
    """Is a price in a file the file's own? Others are from an export of some rows, which lacks the others."""
    if price.source == FILE:
        return price.basis == file_name
    return price.source not in (*PUBLIC, MANUAL)


def _by_hand(price: Price) -> Price:
    basis = f"edited; it was {price.source}, {price.basis}"
    return replace(price, source=FILE, basis=basis[:TEXT_CHARS_MAX])


def _in_order(given: Iterable[Price]) -> list[Piece]:
    return pieces(sorted(given, key=lambda price: price.valid_from or EVER))


def _start(start: datetime, price: Price, calls: Calls, now: datetime) -> datetime:
    if price.valid_from is None and _are_priced(price, calls):
        return max(start, hour_of(now))
    return start


def _are_priced(price: Price, calls: Calls) -> bool:
    """Whether the book has a price of the calls that a price is for."""
    if price.kind == "discount":
        return any(
            price.provider in ("", provider) and price.model_name in ("", name)
            for _, provider, name, _ in calls
        )
    return any((org, *price.key[1:4]) in calls for org in (None, price.org_id))


def _kept(wanted: Sequence[Piece], book: Sequence[Piece]) -> Iterator[Price]:
    """The prices of the book that stay where they are, although the source has another rate there."""
    for first, last, stored in book:
        if any(
            start < last and first < end and _gives_way(price, stored) and price.rate != stored.rate
            for start, end, price in wanted
        ):
            yield stored


def _gives_way(price: Price, stored: Price) -> bool:
    return price.source in PUBLIC and stored.source not in PUBLIC


def pieces(prices: Iterable[Price]) -> list[Piece]:
    """The pieces of time of prices with one key, in order of time. A later price wins over an earlier one."""
    painted: list[Piece] = []
    for price in prices:
        start, end = price.valid_from or EVER, price.valid_to or NEVER
        kept: list[Piece] = []
        for first, last, before in painted:
            if first < start:
                kept.append((first, min(last, start), before))
            if last > end:
                kept.append((max(first, end), last, before))
        painted = sorted([*kept, (start, end, price)], key=lambda piece: piece[0])
    return painted


def _differences(
    start: datetime, end: datetime, price: Price, book: Sequence[Piece], *, overwrite: bool
) -> Iterator[tuple[datetime, datetime, list[Price]]]:
    """The longest stretches of [start, end) in which the book has another rate, or none.

    Each comes with the prices that the book has there. A rate that stays is no difference.
    """
    begun: datetime | None = None
    replaced: list[Price] = []
    at = start
    for first, last, before in book:
        if last <= at or first >= end:
            continue
        if first > at:
            begun = begun or at
        at = max(first, at)
        if before.rate == price.rate or (not overwrite and _gives_way(price, before)):
            if begun is not None:
                yield begun, at, replaced
                begun, replaced = None, []
        else:
            begun = begun or at
            replaced = [*replaced, before]
        at = min(last, end)
    if at < end:
        begun = begun or at
    if begun is not None and begun < end:
        yield begun, end, replaced


def _uncovered(start: datetime, end: datetime, given: Iterable[Price]) -> Iterator[tuple[datetime, datetime]]:
    """The stretches of [start, end) that none of the given prices covers."""
    at = start
    for first, last, _ in pieces(given):
        if at < min(first, end):
            yield at, min(first, end)
        at = max(at, last)
    if at < end:
        yield at, end
