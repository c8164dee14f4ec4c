"""The handlers of the price book.

Reads use the pool. Changes and comparisons are rare and use the code of the commands, which blocks: each runs
in a thread with a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from aiohttp import web
from psycopg.rows import class_row

from api.access.guard import ANALYTICS_ADMIN, CALLER
from api.answering import answers
from api.answering.money import dollars_of
from api.asking import bodies, params
from api.asking.cursors import Cursors
from api.asking.questions import Parser, PricesQuestion
from api.config import DatabaseConfig, RangeConfig
from api.prices import orders
from api.reading import names
from api.reading import prices as reading
from api.reading.database import Database, no_right, rows, translated
from pipeline.common import problems
from pipeline.common.access.caller import Caller
from pipeline.common.connect import AsyncConnection, Connection, Session, connect
from pipeline.common.errors import Unavailable
from pipeline.common.problems import Fault
from pipeline.prices import book, compare
from pipeline.prices.book import Chosen, Entry
from sql import queries, roles

T = TypeVar("T")
_OrgNames = Mapping[UUID, str]
_SQL: Final = queries.load("prices")
_NO_RIGHT: Final = no_right("change the price book", roles.PRICER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The handlers of the price book, and what they work with."""

    database: Database
    config: DatabaseConfig
    ranges: RangeConfig
    parser: Parser
    cursors: Cursors

    async def page(self, request: web.Request) -> web.Response:
        caller = request[CALLER]
        question = self.parser.prices(request.query, sees=caller.sees)
        if question.org_id is not None and question.sees is not None and question.org_id not in question.sees:
            raise problems.forbidden("This org is not yours to read.")

        async def read(connection: AsyncConnection) -> tuple[int, list[Entry], _OrgNames]:
            at = await reading.version(connection, question.version, params.VERSION.name)
            values = _chosen(question, at).values()
            found = await rows(connection, _SQL["entries"], values, class_row(Entry))
            return at, found, await names.of_orgs(connection, _orgs(found))

        version, found, named = await self.database.read(read)
        shown, cursor = self.cursors.paged(question, found, lambda entry: entry.id)
        is_admin = caller.reaches_all or caller.has(ANALYTICS_ADMIN)
        items = [_shown(entry, named, recorded_by=is_admin) for entry in shown]
        return answers.response(answers.Prices(items=items, price_version=version, next_cursor=cursor))

    async def append(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        wanted = orders.prices(await request.read())
        caller = request[CALLER]
        _check_orgs(caller, [price.org_id for price in wanted])
        seen_by, who = caller.sees, caller.subject

        def add(connection: Connection) -> answers.BookChange:
            before = book.version(connection)
            done = book.add(connection, wanted, action="prices.set", title="POST /prices", who=who)
            added = (
                book.entries(connection, Chosen(after=before, seen_by=seen_by)) if done.plan.append else ()
            )
            return _change(connection, done.version, added)

        return answers.response(await self._in_book(add))

    async def retract(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        number = _number(request)
        caller = request[CALLER]
        reason, who = bodies.reason(await request.read()), caller.subject

        def retract(connection: Connection) -> answers.BookChange:
            if not caller.reaches_all:
                found = list(book.entries(connection, Chosen(after=number - 1, limit=1)))
                _check_orgs(caller, [entry.org_id for entry in found if entry.id == number])
            version = book.retract(connection, number, reason=reason, who=who)
            added = book.entries(connection, Chosen(after=version - 1, seen_by=caller.sees))
            return _change(connection, version, added)

        return answers.response(await self._in_book(retract))

    async def diff(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        asked = orders.comparison(await request.read(), months_max=self.ranges.months_max)
        caller = request[CALLER]
        _check_orgs(caller, [None] if asked.orgs is None else asked.orgs)
        _check_orgs(caller, [price.org_id for price in asked.prices or () if price.org_id is not None])

        def differences(connection: Connection) -> tuple[list[compare.Difference], _OrgNames]:
            newest = book.version(connection)
            for name, version in (("before", asked.before), ("after", asked.after)):
                reading.check_version(version, newest, name)
            chosen: dict[str, Any] = {"start": asked.start, "end": asked.end, "orgs": asked.orgs}
            if asked.prices is not None:
                found = compare.with_prices(connection, asked.prices, title="POST /prices/diff", **chosen)
            else:
                assert asked.after is not None
                before = newest if asked.before is None else asked.before
                found = compare.between_versions(connection, before, asked.after, **chosen)
            return found, _names(connection, found)

        found, named = await self._in_book(differences)
        return answers.response(
            answers.PriceDifferences(
                items=[_difference(one, named) for one in found], by=dollars_of(compare.total(found))
            )
        )

    async def _in_book(self, work: Callable[[Connection], T]) -> T:
        """The result of blocking work on the book, in one transaction.

        Raises:
            Problem: 404 or 409, the book cannot take the change.
            Unavailable: the database is away, or its role may not append prices.
        """
        await self.database.read(lambda c: reading.version(c, None, ""))  # if it is away, we know at once
        return await asyncio.to_thread(self._work, work)

    def _work(self, work: Callable[[Connection], T]) -> T:
        session = Session(
            application_name=f"{self.config.service_name}-prices",
            statement_timeout_s=self.config.statement_timeout_s,
            lock_timeout_s=self.config.statement_timeout_s,
        )
        try:
            with connect(self.config.url, session) as connection:
                return work(connection)
        except book.NoSuchPrice as error:
            raise problems.not_found(_sentence(error)) from None
        except book.PriceRefused as error:
            raise problems.conflict(_sentence(error)) from None
        except psycopg.errors.InsufficientPrivilege:
            raise Unavailable(_NO_RIGHT) from None
        except psycopg.Error as error:
            raise translated(error, lost=False) from error


def _check_orgs(caller: Caller, orgs: Iterable[UUID | None]) -> None:
    """May the caller work on prices of these orgs? None: on those of everyone, or of all orgs.

    Raises:
        Problem: 403, no.
    """
    wanted = set(orgs)
    if None in wanted and not caller.reaches_all:
        raise problems.forbidden(
            "Prices of everyone, and all orgs at once, need the role admin; name your orgs."
        )
    if not all(caller.reaches(org_id) for org_id in wanted if org_id is not None):
        raise problems.forbidden("This org is not yours.")


def _chosen(question: PricesQuestion, version: int) -> Chosen:
    """The rows of a page, and one row more."""
    return Chosen(
        version=version,
        live=not question.retracted,
        provider=question.provider,
        model_name=question.model_name,
        service_tier=question.service_tier,
        kind=question.kind,
        org_id=question.org_id,
        at=question.at,
        after=question.after,
        limit=question.limit + 1,
        seen_by=question.sees,
    )


def _orgs(found: Iterable[Entry | compare.Difference]) -> set[UUID]:
    return {one.org_id for one in found if one.org_id is not None}


def _names(connection: Connection, found: Iterable[Entry | compare.Difference]) -> _OrgNames:
    return dict(connection.execute(names.OF_ORGS, {"org_ids": list(_orgs(found))}).fetchall())


def _change(connection: Connection, version: int, rows_added: Iterable[Entry]) -> answers.BookChange:
    added = list(rows_added)
    named = _names(connection, added)
    appended = [_shown(entry, named, recorded_by=True) for entry in added]
    return answers.BookChange(price_version=version, appended=appended)


def _shown(entry: Entry, named: _OrgNames, *, recorded_by: bool) -> answers.Price:
    fields: dict[str, Any] = {name: getattr(entry, name) for name in Entry.__slots__}
    fields["rate"] = None if entry.rate is None else f"{entry.rate:f}"
    if not recorded_by:
        fields["recorded_by"] = None
    return answers.Price(**fields, org_name=None if entry.org_id is None else named.get(entry.org_id))


def _difference(one: compare.Difference, named: _OrgNames) -> answers.PriceDifference:
    return answers.PriceDifference(
        org_id=one.org_id,
        org_name=named.get(one.org_id),
        model_id=one.model_id,
        provider=one.provider or None,
        model_name=one.model_name or None,
        invocations=one.invocations,
        before=None if one.before is None else dollars_of(one.before),
        after=None if one.after is None else dollars_of(one.after),
        by=dollars_of(one.by),
        unpriced_before=one.unpriced_before,
        unpriced_after=one.unpriced_after,
    )


def _number(request: web.Request) -> int:
    try:
        return params.version(request.match_info["priceId"])
    except ValueError:
        raise problems.invalid_parameters([Fault("priceId", "expected the id of a price")]) from None


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
