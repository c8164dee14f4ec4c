"""The price book as answers need it: what it says about the models of some orgs, and SQL that prices rows.

An answer reads the book first, and then the rows of usage, in the same snapshot. The book names the moments
at which a price changes. No row that is read spans such a moment (see `api.asking.buckets.cover`), so each
row has one price: that of its org, model, rate class and hour. Where the book has no price, the row costs
what its producers estimated.

Costs are whole numbers of 10^-20 dollars (`api.answering.money`), so sums of them are exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from psycopg.rows import scalar_row, tuple_row

from api.answering.money import UNITS_PER_MICROCENT
from api.asking.buckets import Span, to_datetime
from api.asking.params import PRICE_VERSION, CostBasis
from api.asking.questions import Pricing
from api.reading.database import rows
from api.reading.rates import Sheets, sheets_of
from pipeline.common.connect import AsyncConnection
from pipeline.common.problems import Fault, invalid_parameters
from sql import queries

SQL: Final = queries.load("book")
_RATES: Final = {
    "rates": SQL["rates"].replace(
        "{of}", "(s.org_id = l.org_id OR s.org_id IS NULL AND l.org_id <> ALL(s.excepted))"
    ),
    "list_rates": SQL["rates"].replace("{of}", "s.org_id IS NULL"),
}
PRICED: Final = ("amount", "booked", "unpriced")
"""Measures that the book adds to a row of usage: what its calls cost, how many of them the book prices, and
how many have no known cost."""


@dataclass(frozen=True, slots=True)
class Sku:
    """What is priced by itself: SQL of its quantity in a row, and of the price of one, in units.

    ``{of}`` stands for the rates, in which the kinds that are parts of input or output have what is added.
    """

    quantity: str
    price: str


SKUS: Final = {
    "input": Sku(
        "input_tokens - cache_read_tokens - cache_write_tokens - cache_write_1h_tokens", "{of}.input"
    ),
    "cache_read": Sku("cache_read_tokens", "{of}.input + {of}.cache_read"),
    "cache_write": Sku("cache_write_tokens", "{of}.input + {of}.cache_write"),
    "cache_write_1h": Sku("cache_write_1h_tokens", "{of}.input + {of}.cache_write_1h"),
    "output": Sku("output_tokens - reasoning_tokens", "{of}.output"),
    "reasoning": Sku("reasoning_tokens", "{of}.output + {of}.reasoning"),
    "request": Sku("invocations", "{of}.request"),
}
"""By kind, as the book calls it. No token is in two of them."""

_IN_BOOK: Final = "rates.request IS NOT NULL"
_SPENT: Final = (
    "invocations * rates.request + input_tokens * rates.input + output_tokens * rates.output"
    " + cache_read_tokens * rates.cache_read + cache_write_tokens * rates.cache_write"
    " + cache_write_1h_tokens * rates.cache_write_1h + reasoning_tokens * rates.reasoning"
)
_ESTIMATED: Final = {
    "amount": f"cost_microcents * {UNITS_PER_MICROCENT}::numeric",
    "booked": "0",
    "unpriced": "unestimated",
}
_NOT_ESTIMATED: Final = {"amount": "0", "booked": "0", "unpriced": "invocations"}
_BOOKED: Final = {"amount": _SPENT, "booked": "invocations", "unpriced": "0"}


@dataclass(frozen=True, kw_only=True)
class Book:
    """What a version of the book says about the models of some orgs in a range.

    ``sheets`` is JSON, or None if there are no prices to look at. ``moments`` are the minutes at which a
    price changes.
    """

    version: int
    basis: CostBasis
    org_ids: Sequence[UUID]
    sheets: str | None
    moments: Sequence[int]

    @cached_property
    def by_model(self) -> Sheets:
        """The sheets that hold for the only org of the book."""
        (org_id,) = self.org_ids
        return sheets_of(self.sheets, org_id)

    @property
    def values(self) -> dict[str, Any]:
        """The values of the SQL that this class makes."""
        return {"org_ids": self.org_ids, "sheets": self.sheets}

    def join(self, rates: str = "rates") -> str:
        """Joins the rows ``figures`` of usage, which have the columns of their key, with their rates.

        With ``list_rates`` they are those of everyone, whatever the org pays.
        """
        if self.sheets is None:
            return ""
        return (
            f" LEFT JOIN ({_RATES[rates]}) AS {rates} ON {rates}.org_id = figures.org_id"
            f" AND {rates}.model_id = figures.model_id AND {rates}.rate_class = figures.rate_class"
            f" AND {rates}.valid_from <= figures.bucket_start AND figures.bucket_start < {rates}.valid_to"
        )

    def unit_prices(self, rates: str) -> str:
        """The SQL of the prices of `SKUS` of a joined row, as an array; null where the book has none."""
        if self.sheets is None:
            return "NULL::numeric[]"
        prices = ", ".join(sku.price.format(of=rates) for sku in SKUS.values())
        return f"(CASE WHEN {rates}.request IS NOT NULL THEN ARRAY[{prices}] END)"

    def of_row(self, measure: str) -> str:
        """The SQL of a measure of a row ``figures`` that `join` has joined with its rates."""
        without = _NOT_ESTIMATED if self.basis is CostBasis.BOOK else _ESTIMATED
        if measure not in PRICED:
            return f"figures.{measure}"
        if self.sheets is None:
            return f"({without[measure]})"
        return f"(CASE WHEN {_IN_BOOK} THEN {_BOOKED[measure]} ELSE {without[measure]} END)"


Names = frozenset[tuple[str, str]]
"""Provider and name of each model of an org."""


class Books:
    """The books of orgs that were asked about, so that most answers need not read them again.

    What a version of the book says about some models of an org never changes. So a kept book is good for as
    long as the version and the names of the org's models are the same. An answer reads both in its snapshot.
    """

    def __init__(self, most_characters: int = 32 << 20) -> None:
        self._most_characters = most_characters
        self._characters = 0
        self._kept: OrderedDict[tuple[UUID, Pricing], tuple[Names, Book]] = OrderedDict()

    def last(self, org_id: UUID, pricing: Pricing) -> Book | None:
        """The book that was kept last for such a question. Nobody knows yet whether it is good."""
        kept = self._kept.get((org_id, pricing))
        return None if kept is None else kept[1]

    def is_good(self, org_id: UUID, pricing: Pricing, *, newest: int, names: Names) -> bool:
        """Does the kept book say what the book says now, with these names?"""
        kept = self._kept.get((org_id, pricing))
        version = newest if pricing.version is None else pricing.version
        return kept is not None and kept[0] == names and kept[1].version == version <= newest

    def keep(self, org_id: UUID, pricing: Pricing, names: Names, book: Book) -> None:
        """Keep a book for all times of the org, and forget those that were kept longest ago."""
        if (org_id, pricing) in self._kept:
            self._characters -= _size(self._kept.pop((org_id, pricing))[1])
        self._kept[org_id, pricing] = names, book
        self._characters += _size(book)
        while self._characters > self._most_characters:
            self._characters -= _size(self._kept.popitem(last=False)[1][1])


def _size(book: Book) -> int:
    """About the memory of a kept book and of its sheets by model, in characters."""
    return 1000 + 6 * len(book.sheets or "")


async def read(connection: AsyncConnection, pricing: Pricing, org_ids: Sequence[UUID], span: Span) -> Book:
    """The book for rows of the span. Raises `Problem` as `book_of`."""
    (row,) = await rows(connection, SQL["book"], values_of(pricing, org_ids, span), tuple_row)
    return book_of(row, pricing, org_ids)


async def version(connection: AsyncConnection, asked: int | None, name: str = PRICE_VERSION.name) -> int:
    """The version of the book that is asked for. Raises `Problem` as `check_version`."""
    (newest,) = await rows(connection, SQL["version"], {}, scalar_row)
    return check_version(asked, newest, name)


def values_of(pricing: Pricing, org_ids: Iterable[UUID], span: Span | None = None) -> dict[str, Any]:
    """The values of the query ``book``, for rows of the span, or of any time."""
    return {
        "org_ids": list(org_ids),
        "price_version": pricing.version,
        "priced_from": to_datetime(span.start) if span else "-infinity",
        "priced_to": to_datetime(span.end) if span else "infinity",
    }


def book_of(row: Sequence[Any], pricing: Pricing, org_ids: Iterable[UUID]) -> Book:
    """The book from the row of the query ``book``.

    Raises:
        Problem: 400, the book has no such version yet.
    """
    newest, sheets, moments = row
    of_book = check_version(pricing.version, newest)
    if pricing.basis is CostBasis.ESTIMATE or sheets is None:
        sheets, moments = None, ()
    return Book(
        version=of_book, basis=pricing.basis, org_ids=list(org_ids), sheets=sheets, moments=tuple(moments)
    )


def check_version(asked: int | None, newest: int, name: str = PRICE_VERSION.name) -> int:
    """The version that the parameter ``name`` asks for. Raises `Problem` 400 if there is none such yet."""
    if asked is not None and asked > newest:
        message = f"the price book has no version {asked} yet; its newest is {newest}"
        raise invalid_parameters([Fault(name, message)])
    return newest if asked is None else asked
