"""One function a route: parse the question, read one snapshot, shape the answer.

Nothing here decides who may ask: `api.access.guard` has let the request through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from msgspec import UNSET, structs
from psycopg.rows import tuple_row

from api.access.guard import CALLER, ORG_ID
from api.adjustments.routes import Adjustments
from api.answering import answers
from api.asking import params, questions
from api.asking.buckets import Span, to_datetime
from api.asking.cursors import Cursors
from api.asking.params import CLIENT, Percentile
from api.asking.questions import Counted, FiguresQuestion, ListingQuestion, Parser, Position, sealed
from api.budgets.routes import Budgets
from api.config import FreshnessConfig
from api.exports.routes import Exports
from api.live.streams import Live
from api.metrics import Facts, Metrics
from api.names.routes import NameChanges
from api.notices.routes import NoticeRoutes
from api.prices.routes import Prices
from api.reading import names, prices, rollups, seen, usage_json
from api.reading.database import Database, rows
from api.reading.figures import (
    Finality,
    Page,
    adjusted_fields,
    error_rate,
    read_page,
    read_usage_page,
    reliability,
    sketch_count,
    spend_fields,
    usage_fields,
)
from api.reading.freshness import (
    FreshnessCache,
    ModelStanding,
    Standing,
    StandingsPage,
    freshness,
    standings_page,
)
from api.reading.names import NO_NAMES, Names
from api.reading.prices import Book, Books
from api.reading.recent import Recent
from api.reading.seen import Label, Seen
from api.webhooks.routes import Webhooks
from pipeline.common import ids, problems
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable
from pipeline.common.problems import Fault
from pipeline.common.served import CONTENT_TYPE
from pipeline.core import rules, wire

log = logging.getLogger(__name__)

_SKETCHES_INLINE_MAX: Final = 50
_NAMES_TIMEOUT_S: Final = 0.25
_FAILURES: Final[Mapping[int, Any]] = {1: "error", 2: "timeout", 3: "throttled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """The routes' functions, and what they work with.

    ``clock`` gives the time in UTC, ``document`` the OpenAPI document as JSON.
    """

    database: Database
    cache: FreshnessCache | None
    parser: Parser
    cursors: Cursors
    freshness: FreshnessConfig
    dedupe_window_s: float
    auth_mode: str
    metrics: Metrics
    ready: Recent[answers.Readiness]
    facts: Recent[Facts]
    clock: Callable[[], datetime]
    document: Callable[[], bytes]
    live: Live
    exports: Exports
    prices: Prices
    adjustments: Adjustments
    budgets: Budgets
    webhooks: Webhooks
    notices: NoticeRoutes
    name_changes: NameChanges
    books: Books

    async def usage(self, request: web.Request) -> web.Response:
        question = self.parser.figures("usage", request[ORG_ID], request.query)
        question, dimension = await self._counted(question)
        question = await self._with_quarters(question)
        page = await read_usage_page(self.database, self.books, question)
        final = Finality(question.calendar, page.standings, self.dedupe_window_s)
        totals = page.totals if page.totals is not None else usage_json.totals(page.rows)
        series: Any = usage_json.series(
            page.rows,
            final=final,
            labels=page.labels,
            by_value=question.by_value,
            names=page.names.values,
        )  # already what a list of points becomes
        next_cursor = None
        if page.more:
            bucket, model, client, *_ = page.rows[-1]
            last = sealed(question, (bucket, model, client))
            next_cursor = self.cursors.seal(last, question.bound_to)
        return answers.response(
            answers.Usage(
                org_id=question.org_id,
                org_name=page.names.org,
                **_range(question.span),
                granularity=question.calendar.granularity.value,
                time_zone=question.calendar.zone.key,
                dimension=dimension,
                series=series,
                totals=answers.UsageTotals(**usage_fields(totals), **adjusted_fields(totals, page.adjusted)),
                price_version=page.price_version,
                freshness=self._freshness(page.standings),
                next_cursor=next_cursor,
            )
        )

    async def reliability(self, request: web.Request) -> web.Response:
        question = self.parser.figures("reliability", request[ORG_ID], request.query)
        question, dimension = await self._counted(question)
        question = await self._with_quarters(question)
        has_codes = not (question.dimension and question.client_ids)

        async def read(connection: AsyncConnection) -> tuple[Page, Sequence[Any]]:
            page = await read_page(connection, question, rollups.RELIABILITY)
            return page, await rollups.error_codes(connection, question) if has_codes else []

        page, failed = await self.database.read(read)
        codes = [
            answers.ErrorCode(
                status=_FAILURES[row.status], error_code=row.error_code or None, count=row.events
            )
            for row in failed
        ]
        final = Finality(question.calendar, page.standings, self.dedupe_window_s)

        def shape() -> tuple[list[answers.ReliabilityPoint], answers.ReliabilityFigures]:
            of_points, of_all = reliability(page)
            for one in (*of_points, of_all):
                one["latency_ms"] = _percentiles(one["latency_ms"], question.percentiles)
            series = [
                answers.ReliabilityPoint(
                    bucket_start=to_datetime(point.position.bucket),
                    **_key(point.position, page, by_value=question.by_value),
                    final=final(point.position.bucket),
                    **fields,
                )
                for point, fields in zip(page.points, of_points, strict=True)
            ]
            return series, answers.ReliabilityFigures(**of_all)

        # Merging many sketches takes long enough to keep other requests waiting.
        few = sketch_count(page) <= _SKETCHES_INLINE_MAX
        series, totals = shape() if few else await asyncio.to_thread(shape)
        hours = rollups.error_codes_span(question.span)
        return answers.response(
            answers.Reliability(
                org_id=question.org_id,
                org_name=page.names.org,
                **_range(question.span),
                granularity=question.calendar.granularity.value,
                time_zone=question.calendar.zone.key,
                dimension=dimension,
                series=series,
                totals=totals,
                error_codes=codes if has_codes else None,
                error_codes_range=answers.Range(start=to_datetime(hours.start), end=to_datetime(hours.end)),
                freshness=self._freshness(page.standings),
                next_cursor=self._next_cursor(question, page),
            )
        )

    async def org_freshness(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing(
            "freshness", org_id, request.query, UUID, chosen_by=(params.MODEL_ID, ids.uuid)
        )
        all_models = await self.cache.org(org_id) if self.cache else None
        if all_models:
            page = _chosen(all_models, question)
            named, labels = await self._names_soon(org_id, page.by_model)
        else:

            async def read(connection: AsyncConnection) -> tuple[StandingsPage, Names, dict[str, Label]]:
                if question.chosen:
                    page = await _chosen_standings(connection, org_id, question)
                else:
                    page = await seen.standings_page(connection, org_id, question.after, question.limit)
                return page, *(await _names(connection, org_id, page.by_model))

            page, named, labels = await self.database.read(read)
        if not page.of_org:
            raise problems.not_found("No event of this org has been seen.")
        of_org = self._freshness(page.of_org)
        entries = []
        for model_id, standings in page.by_model.items():
            of_model = self._freshness(standings)
            assert of_model.last_event_at is not None
            assert of_model.last_rollup_at is not None
            entries.append(
                answers.FreshnessEntry(
                    **_model(model_id, labels),
                    last_event_at=of_model.last_event_at,
                    last_rollup_at=of_model.last_rollup_at,
                    lag_seconds=of_model.lag_seconds,
                    status=of_model.status,
                )
            )
        return answers.response(
            answers.OrgFreshness(
                org_id=org_id,
                org_name=named.org,
                status=of_org.status,
                lag_seconds=of_org.lag_seconds,
                watermark=of_org.watermark,
                counted_through=of_org.counted_through,
                entries=entries,
                next_cursor=self.cursors.seal(entries[-1].model_id, question.bound_to) if page.more else None,
            )
        )

    async def models(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("models", org_id, request.query, UUID)

        async def read(connection: AsyncConnection) -> tuple[list[Seen], Names, dict[str, Label]]:
            found = await seen.models(connection, org_id, question.after, question.limit + 1)
            return found, *(await _names(connection, org_id, (row.key for row in found)))

        found, named, labels = await self.database.read(read)
        page, cursor = self.cursors.paged(question, found, lambda one: one.key)
        items = [
            answers.Model(
                **_model(row.key, labels),
                first_event_at=row.first_event_at,
                last_event_at=row.last_event_at,
            )
            for row in page
        ]
        return answers.response(
            answers.Models(org_id=org_id, org_name=named.org, items=items, next_cursor=cursor)
        )

    async def clients(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("clients", org_id, request.query, str)

        async def read(connection: AsyncConnection) -> tuple[list[Seen], Names]:
            found = await seen.clients(connection, org_id, question.after, question.limit + 1)
            return found, await names.read(connection, org_id, CLIENT, (row.key for row in found))

        found, named = await self.database.read(read)
        page, cursor = self.cursors.paged(question, found, lambda one: one.key)
        items = [
            answers.Client(
                client_id=row.key or None,
                client_name=named.values.get(row.key),
                first_event_at=row.first_event_at,
                last_event_at=row.last_event_at,
            )
            for row in page
        ]
        return answers.response(
            answers.Clients(org_id=org_id, org_name=named.org, items=items, next_cursor=cursor)
        )

    async def dimensions(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        self.parser.nothing(request.query)

        async def read(connection: AsyncConnection) -> tuple[list[Counted], Names]:
            return await seen.dimensions(connection, org_id), await names.read(connection, org_id)

        found, named = await self.database.read(read)
        items = [answers.Dimension(name=one.name, source=one.source, since=one.since) for one in found]
        return answers.response(answers.Dimensions(org_id=org_id, org_name=named.org, items=items))

    async def values(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        name = request.match_info["name"]
        question = self.parser.listing(f"dimensions/{name}", org_id, request.query, str)

        async def read(connection: AsyncConnection) -> tuple[list[Counted], list[Seen], Names]:
            known = await seen.dimensions(connection, org_id)
            values = seen.clients if name == CLIENT else partial(seen.values, dimension=name)
            found = await values(connection, org_id, after=question.after, limit=question.limit + 1)
            return known, found, await names.read(connection, org_id, name, (row.key for row in found))

        known, found, named = await self.database.read(read)
        if name not in (CLIENT, *(one.name for one in known)):
            raise problems.not_found(f"The dimensions are {questions.listed(known)} (DIMENSIONS).")
        page, cursor = self.cursors.paged(question, found, lambda one: one.key)
        items = [
            answers.Value(
                value=row.key or None,
                value_name=named.values.get(row.key),
                first_event_at=row.first_event_at,
                last_event_at=row.last_event_at,
            )
            for row in page
        ]
        return answers.response(
            answers.Values(org_id=org_id, org_name=named.org, dimension=name, items=items, next_cursor=cursor)
        )

    async def orgs(self, request: web.Request) -> web.Response:
        question = self.parser.orgs(request.query)
        seen_by = request[CALLER].sees

        async def read(connection: AsyncConnection) -> tuple[list[UUID], Book, Any, Any, dict[UUID, str]]:
            org_ids = await seen.orgs(connection, question.after, question.limit + 1, seen_by)
            page = org_ids[: question.limit]
            book = await prices.read(connection, question.pricing, page, question.span)
            standings = await seen.orgs_standings(connection, page)
            totals = await rollups.org_totals(connection, book, [("", question.span, page)])
            return org_ids, book, totals, standings, await names.of_orgs(connection, page)

        org_ids, book, totals, standings, named = await self.database.read(read)
        page = org_ids[: question.limit]
        items = []
        for org_id in page:
            measures = totals.get((org_id, ""), rollups.ORG_NOTHING)
            age = self._freshness(standings[org_id])
            assert age.last_event_at is not None
            items.append(
                answers.Org(
                    org_id=org_id,
                    org_name=named.get(org_id),
                    invocations=measures["invocations"],
                    input_tokens=measures["input_tokens"],
                    output_tokens=measures["output_tokens"],
                    **spend_fields(measures),
                    error_rate=error_rate(measures),
                    last_event_at=age.last_event_at,
                    freshness=age,
                )
            )
        more = len(org_ids) > len(page)
        cursor = self.cursors.seal(sealed(question, page[-1]), question.bound_to) if more else None
        return answers.response(
            answers.Orgs(**_range(question.span), items=items, price_version=book.version, next_cursor=cursor)
        )

    async def validate(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        event = wire.read(await request.read())
        if isinstance(event, wire.Invalid):
            raise problems.invalid_event([Fault(fault.field, fault.message) for fault in event.faults])
        outlook = self._outlook(event.occurred_us)
        return web.Response(status=204) if outlook is None else answers.response(outlook)

    async def caller(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        caller = request[CALLER]
        return answers.response(
            answers.Caller(
                subject=caller.subject,
                roles=sorted(caller.roles),
                orgs=None if caller.orgs is None else sorted(caller.orgs),
                all_orgs=caller.reaches_all,
                auth_mode=self.auth_mode,
            )
        )

    # --- about this process ---

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="OK", headers={"Cache-Control": "no-store"})

    async def readyz(self, request: web.Request) -> web.Response:
        answer = await self.ready.answer()
        return answers.response(answer, status=200 if answer.status == "ready" else 503)

    async def prometheus(self, request: web.Request) -> web.Response:
        try:
            facts = await self.facts.answer()
        except Unavailable:
            facts = Facts()  # what this process knows of itself is worth a scrape all the same
        body = self.metrics.exposition(facts, self.clock())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self.document(), content_type="application/json")

    # --- shared by the answers ---

    async def _counted(self, question: FiguresQuestion) -> tuple[FiguresQuestion, answers.Dimension | None]:
        """The part of the question that its dimension can answer, and the dimension. Raises `Problem` 400."""
        if not question.dimension:
            return question, None
        known = await self.database.read(lambda c: seen.dimensions(c, question.org_id))
        asked_by = "groupBy" if question.by_client else "dimension"
        one = questions.counted(known, question.dimension, asked_by)
        return one.narrow(question), answers.Dimension(name=one.name, source=one.source, since=one.since)

    async def _with_quarters(self, question: FiguresQuestion) -> FiguresQuestion:
        """The question with the rows of DAY_ZONES that it needs. Raises `Problem` 400 if they are too few."""
        if not question.needs_quarters:
            return question
        known = await self.database.read(lambda c: seen.quarters(c, question.org_id))
        return self.parser.with_quarters(question, known)

    def _outlook(self, occurred_us: int) -> answers.EventOutlook | None:
        """What the worker would do with an event of this time if it came now. None: accept it."""
        now_us = (self.clock() - to_datetime(0)) // timedelta(microseconds=1)
        if occurred_us > now_us + rules.FUTURE_US:
            minutes = rules.FUTURE_US // 60_000_000
            detail = f"occurredAt is more than {minutes} minutes ahead of this server's clock"
            return answers.EventOutlook(outcome="future", detail=detail)
        if occurred_us < now_us - round(self.dedupe_window_s * 1e6):
            detail = f"occurredAt is more than {self.dedupe_window_s / 3600:g} h ago (DEDUPE_WINDOW)"
            return answers.EventOutlook(outcome="too_late", detail=detail)
        return None

    def _freshness(self, standings: Sequence[Standing]) -> answers.FreshnessOut:
        found = freshness(standings, self.clock(), self.freshness)
        return answers.FreshnessOut(**found.fields())

    async def _names_soon(self, org_id: UUID, models: Iterable[UUID]) -> tuple[Names, dict[str, Label]]:
        """`_names` for an answer from Redis, which does not wait for a database that is away: no names."""
        try:
            async with asyncio.timeout(_NAMES_TIMEOUT_S):
                return await self.database.read(lambda c: _names(c, org_id, models))
        except (Unavailable, TimeoutError):
            return NO_NAMES, {}

    def _next_cursor(self, question: FiguresQuestion, page: Page) -> str | None:
        if not page.more:
            return None
        last: Position = page.points[-1].position
        position = sealed(question, (last.bucket, last.model_id, last.client_id))
        return self.cursors.seal(position, question.bound_to)


async def _names(
    connection: AsyncConnection, org_id: UUID, models: Iterable[UUID]
) -> tuple[Names, dict[str, Label]]:
    """The name of an org, and the labels of some of its models by the model's id as text."""
    return await names.read(connection, org_id), await seen.labels(connection, org_id, models)


def _chosen(models: Sequence[ModelStanding], question: ListingQuestion) -> StandingsPage:
    """The page of the models that are asked for; none: of all. ``models`` are all of the org's."""
    chosen = [model for model in models if not question.chosen or model.model_id in question.chosen]
    page = standings_page(chosen, question.after, question.limit)
    return replace(page, of_org=[model.standing for model in models])


async def _chosen_standings(
    connection: AsyncConnection, org_id: UUID, question: ListingQuestion
) -> StandingsPage:
    """The page of the models that are asked for by their ids."""
    values = {"org_id": org_id, "models": list(question.chosen)}
    found = await rows(connection, seen.SQL["standings_of_chosen"], values, tuple_row)
    models = [ModelStanding(model_id=model, standing=Standing(*standing)) for model, *standing in found]
    page = standings_page(models, question.after, question.limit)
    return replace(page, of_org=await seen.org_standings(connection, org_id))


def _range(span: Span) -> dict[str, datetime]:
    """The fields that say which range an answer covers."""
    return {"start": to_datetime(span.start), "end": to_datetime(span.end)}


def _percentiles(latency: answers.Latency, asked: Sequence[Percentile]) -> answers.Latency:
    """The latency with the percentiles that are asked for alone; none: with all."""
    absent = {one.value: UNSET for one in Percentile if asked and one not in asked}
    return structs.replace(latency, **absent)


def _model(model_id: UUID | None, labels: Mapping[str, Label]) -> dict[str, Any]:
    """The fields that name a model."""
    label = labels.get(str(model_id), seen.NO_LABEL)
    return {"model_id": model_id, "model_name": label.model_name, "provider": label.provider}


def _key(position: Position, page: Page, *, by_value: bool) -> dict[str, Any]:
    """The fields that say whose figures a point has. ``by_value``: its client is the value of a dimension."""
    client = position.client_id or None
    name = page.names.values.get(client or "")
    return {
        **_model(position.model_id, page.labels),
        "client_id": None if by_value else client,
        "client_name": None if by_value else name,
        "value": client if by_value else None,
        "value_name": name if by_value else None,
    }
