"""What an import would append: only the hours in which the source says another rate than the book.

Prices with the same key (`pipeline.prices.price.Key`) compete only in time, and the later row of the book
wins. So prices with one key make pieces of time, each with one winner. For example, 3 dollars from January on
and then 2 dollars from March on are two pieces: January to March, and from March on. An import compares the
pieces of the source with the pieces of the book. Importing the same source twice therefore appends nothing.

A source may not say when a price began. If the book does not know the key, the price holds since 1970. If the
book knows the key, the price holds from the current hour on: a new rate without a date is no reason to change
what past calls cost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pipeline.prices.price import EVER, Key, Price, hour_of

NEVER: Final = datetime.max.replace(tzinfo=UTC)

Piece = tuple[datetime, datetime, Price]
"""From when, up to when (`NEVER`: no end), and the price that wins there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of comparing a source with the book."""

    append: tuple[Price, ...]
    """The rows to append, each with both times worked out."""
    overrides: Counter[str]
    """How many of these take the place of a rate of another source, by that source."""
    vanished: tuple[Price, ...]
    """Prices that the book has from this source, still in force, that the source does not name any more."""


def plan(prices: Sequence[Price], live: Iterable[Price], *, now: datetime) -> Plan:
    """Compare a source with the live prices of the book, which are in the order of their ids."""
    known: dict[Key, list[Price]] = defaultdict(list)
    for price in live:
        known[price.key].append(price)
    named: dict[Key, list[Price]] = defaultdict(list)
    for price in prices:
        named[price.key].append(price)
    append: list[Price] = []
    overrides: Counter[str] = Counter()
    for key, given in named.items():
        book = pieces(known.get(key, ()))
        for start, end, price in pieces(given):
            if price.valid_from is None and book:
                start = max(start, hour_of(now))
            for first, last, before in _differences(start, end, price, book):
                append.append(replace(price, valid_from=first, valid_to=None if last == NEVER else last))
                overrides.update(before - {price.source})
    sources = {(price.source, price.provider) for price in prices}
    vanished = [
        price
        for key, stored in known.items()
        if key not in named
        for _, end, price in pieces(stored)
        if end > now and (price.source, price.provider) in sources
    ]
    return Plan(tuple(append), overrides, tuple(vanished))


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
    start: datetime, end: datetime, price: Price, book: Sequence[Piece]
) -> Iterator[tuple[datetime, datetime, set[str]]]:
    """The longest stretches of [start, end) in which the book has another rate, or none.

    Each comes with the sources of the rates that the book has there.
    """
    begun: datetime | None = None
    sources: set[str] = set()
    at = start
    for first, last, before in book:
        if last <= at or first >= end:
            continue
        if first > at:
            begun = begun or at
        at = max(first, at)
        if before.rate == price.rate:
            if begun is not None:
                yield begun, at, sources
                begun, sources = None, set()
        else:
            begun = begun or at
            sources = sources | {before.source}
        at = min(last, end)
    if at < end:
        begun = begun or at
    if begun is not None and begun < end:
        yield begun, end, sources
