"""Which books are kept for the next answer, and when a kept book is still good."""

from __future__ import annotations

from uuid import UUID

from api.asking.params import CostBasis
from api.asking.questions import Pricing
from api.reading.prices import Book, Books

ORG, OTHER = UUID(int=1), UUID(int=2)
NEWEST, OLD = Pricing(), Pricing(version=3)
NAMES = frozenset({("p", "m")})


def book(version: int, org: UUID = ORG, sheets: str = "[]") -> Book:
    return Book(version=version, basis=CostBasis.AUTO, org_ids=[org], sheets=sheets, moments=())


def test_a_kept_book_is_good_while_version_and_names_are_the_same() -> None:
    books = Books()
    assert books.last(ORG, NEWEST) is None
    assert not books.is_good(ORG, NEWEST, newest=5, names=NAMES)
    books.keep(ORG, NEWEST, NAMES, book(5))
    assert books.last(ORG, NEWEST) == book(5)
    assert books.is_good(ORG, NEWEST, newest=5, names=NAMES)
    assert not books.is_good(ORG, NEWEST, newest=6, names=NAMES), "the book has changed"
    assert not books.is_good(ORG, NEWEST, newest=5, names=NAMES | {("p", "n")}), "a model has a new name"
    assert books.last(OTHER, NEWEST) is None
    assert books.last(ORG, OLD) is None


def test_a_past_version_stays_good_when_the_book_grows() -> None:
    books = Books()
    books.keep(ORG, OLD, NAMES, book(3))
    assert books.is_good(ORG, OLD, newest=3, names=NAMES)
    assert books.is_good(ORG, OLD, newest=99, names=NAMES)
    assert not books.is_good(ORG, OLD, newest=2, names=NAMES), "the database is that of an old backup"


def test_what_is_kept_is_bounded_by_its_size() -> None:
    books = Books(most_characters=22_000)
    for number in range(100):
        books.keep(UUID(int=number), NEWEST, NAMES, book(1, sheets="x" * 1000))
        books.keep(UUID(int=number), NEWEST, NAMES, book(2, sheets="x" * 1000))
    kept = [number for number in range(100) if books.last(UUID(int=number), NEWEST)]
    assert kept == [97, 98, 99]
    books.keep(ORG, NEWEST, NAMES, book(1, sheets="x" * 10_000))
    assert books.last(ORG, NEWEST) is None, "too large to keep"
    assert not books.is_good(ORG, NEWEST, newest=1, names=NAMES)
