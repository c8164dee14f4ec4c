"""The handlers of budgets and alerts. A change and its line in the audit log are one statement."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from msgspec import structs
from psycopg.rows import dict_row, scalar_row

from api.access.guard import CALLER, ORG_ID
from api.answering import answers as all_answers
from api.answering import budgets as answers
from api.answering.webhooks import Delivery, SentAlert, SentAlerts
from api.asking import params
from api.asking.buckets import Span, to_datetime, to_minute
from api.asking.cursors import Cursors
from api.asking.params import CLIENT, Reader
from api.asking.questions import Parser, counted
from api.budgets import kept, orders, spending
from api.budgets.kept import SQL
from api.budgets.periods import span_of, spans_between
from api.budgets.rules import BUDGETS_MAX, Budget, Plan
from api.budgets.spending import Wanted
from api.reading import names, seen
from api.reading.database import Database, rows
from api.webhooks import kept as webhooks
from pipeline.common import ids, problems
from pipeline.common.connect import AsyncConnection
from pipeline.common.problems import Fault

PERIODS_DEFAULT: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """The handlers of budgets, and what they work with."""

    database: Database
    parser: Parser
    cursors: Cursors
    clock: Callable[[], datetime]

    async def page(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("budgets", org_id, request.query, tuple[str, UUID])
        after_name, after = question.after or (None, None)
        values = {"org_id": org_id, "after_name": after_name, "after": after, "limit": question.limit + 1}

        async def read(connection: AsyncConnection) -> answers.Budgets:
            found = await kept.budgets(connection, "page", values)
            page, cursor = self.cursors.paged(
                question, found, lambda budget: (budget.plan.name, budget.budget_id)
            )
            named = await names.read(connection, org_id)
            return answers.Budgets(
                org_id=org_id,
                org_name=named.org,
                items=await self._shown(connection, page),
                next_cursor=cursor,
            )

        return all_answers.response(await self.database.read(read))

    async def one(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request)

        async def read(connection: AsyncConnection) -> answers.Budget:
            return await self._one(connection, await kept.budgets(connection, "one", values))

        return all_answers.response(await self.database.read(read))

    async def create(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        key = params.idempotency_key(request.headers)
        plan = await self._plan(request)
        org_id: UUID = request[ORG_ID]
        values = self._values(request, plan) | {"budget_id": uuid.uuid4(), "idempotency_key": key}

        async def add(connection: AsyncConnection) -> answers.Budget:
            await connection.execute(SQL["turn"], {"org_id": org_id})
            found = await kept.budgets(connection, "by_idempotency_key", values) if key else []
            if not found:
                (count,) = await rows(connection, SQL["count"], values, scalar_row)
                if count >= BUDGETS_MAX:
                    raise problems.conflict(f"This org has {count} budgets, as many as an org may have.")
                found = await kept.budgets(connection, "create", values)
            if not found or found[0].plan != plan:
                raise problems.conflict("This Idempotency-Key has made another budget.")
            return await self._one(connection, found)

        shown = await self.database.write(add)
        location = f"{request.path}/{shown.budget_id}"
        return all_answers.response(shown, status=201, headers={"Location": location})

    async def change(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request) | self._values(request, await self._plan(request))

        async def change(connection: AsyncConnection) -> answers.Budget:
            return await self._one(connection, await kept.budgets(connection, "change", values))

        return all_answers.response(await self.database.write(change))

    async def remove(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request) | {"actor": request[CALLER].subject, "now": self.clock()}

        async def remove(connection: AsyncConnection) -> None:
            if not await rows(connection, SQL["remove"], values, scalar_row):
                raise _no_budget()

        await self.database.write(remove)
        return web.Response(status=204)

    async def history(self, request: web.Request) -> web.Response:
        reader = Reader(request.query, params.HISTORY)
        periods = reader.one(params.PERIODS, params.limit_up_to(params.PERIODS_MAX)) or PERIODS_DEFAULT
        values = _named(request)
        reader.finish()

        async def read(connection: AsyncConnection) -> answers.BudgetHistory:
            found = await kept.budgets(connection, "one", values)
            if not found:
                raise _no_budget()
            budget = found[0]
            return answers.BudgetHistory(
                org_id=budget.org_id,
                budget_id=budget.budget_id,
                metric=budget.plan.metric.value,
                amount=kept.shown(budget.plan.metric, budget.plan.amount),
                items=await self._periods(connection, budget, periods),
            )

        return all_answers.response(await self.database.read(read))

    async def alerts(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("alerts", org_id, request.query, tuple[datetime, UUID])
        before, alert_id = question.after or (None, None)
        values = {"org_id": org_id, "before": before, "alert_id": alert_id, "limit": question.limit + 1}

        async def read(connection: AsyncConnection) -> SentAlerts:
            found = await rows(connection, SQL["alerts_page"], values, dict_row)
            page, cursor = self.cursors.paged(
                question, found, lambda row: (row["judged_at"], row["alert_id"])
            )
            named = await names.read(connection, org_id)
            deliveries = await webhooks.of_alerts(connection, (row["alert_id"] for row in page))
            return SentAlerts(
                org_id=org_id,
                org_name=named.org,
                items=[_sent(row, deliveries.get(row["alert_id"], ())) for row in page],
                next_cursor=cursor,
            )

        return all_answers.response(await self.database.read(read))

    # --- parts ---

    async def _plan(self, request: web.Request) -> Plan:
        """The plan of the body, whose value is as events have it. Raises `Problem` 400."""
        plan = orders.plan(await request.read(), self.parser.limits)
        dimension = plan.scope.dimension
        if dimension in (None, CLIENT):
            return plan
        known = await self.database.read(lambda c: seen.dimensions(c, request[ORG_ID]))
        found = counted(known, str(dimension), "scope.dimension")
        return replace(plan, scope=replace(plan.scope, value=found.as_counted(str(plan.scope.value))))

    def _values(self, request: web.Request, plan: Plan) -> dict[str, Any]:
        return {
            "org_id": request[ORG_ID],
            "actor": request[CALLER].subject,
            "now": self.clock(),
            **kept.values_of(plan),
        }

    async def _one(self, connection: AsyncConnection, found: Sequence[Budget]) -> answers.Budget:
        if not found:
            raise _no_budget()
        (shown,) = await self._shown(connection, found)
        return shown

    async def _shown(self, connection: AsyncConnection, budgets: Sequence[Budget]) -> list[answers.Budget]:
        """The budgets with the period that runs now."""
        if not budgets:
            return []
        now = to_minute(self.clock())
        wanted = [Wanted(one, span_of(one.plan.period, one.plan.zone, now)) for one in budgets]
        watermarks, _ = await spending.watermarks_of(connection, {one.org_id for one in budgets})
        found = await spending.read(connection, wanted, self.parser.limits, watermarks)
        alerts = await kept.alerts_of(connection, budgets, to_datetime(min(w.span.start for w in wanted)))
        return [
            kept.budget_shown(one.budget, kept.current_shown(one.budget, one.span, *found.of(one), alerts))
            for one in wanted
        ]

    async def _periods(
        self, connection: AsyncConnection, budget: Budget, count: int
    ) -> list[answers.BudgetHistoryItem]:
        """The newest ``count`` periods before the one that runs now, the newest first, as far as rows go."""
        plan, limits = budget.plan, self.parser.limits
        running = span_of(plan.period, plan.zone, limits.now)
        oldest = limits.now - int(limits.ranges.retention_rollup_s // 60)
        spans: list[Span] = []
        if running.start - 1 > oldest:
            spans = [*spans_between(plan.period, plan.zone, oldest, running.start - 1)][::-1][:count]
        wanted = [Wanted(budget, span) for span in spans if span.start >= oldest]
        watermarks, _ = await spending.watermarks_of(connection, [budget.org_id])
        found = await spending.read(connection, wanted, limits, watermarks)
        return [kept.period_shown(budget, one.span, *found.of(one)) for one in wanted]


def _sent(row: Mapping[str, Any], deliveries: Sequence[Delivery]) -> SentAlert:
    return SentAlert(**structs.asdict(kept.alert_shown(row)), deliveries=[*deliveries])


def _named(request: web.Request) -> dict[str, Any]:
    """The org and the budget of the path, as values."""
    try:
        budget_id = ids.uuid(request.match_info["budgetId"])
    except ValueError as error:
        raise problems.invalid_parameters([Fault("budgetId", str(error))]) from None
    return {"org_id": request[ORG_ID], "budget_id": budget_id}


def _no_budget() -> problems.Problem:
    return problems.not_found("This org has no such budget.")
