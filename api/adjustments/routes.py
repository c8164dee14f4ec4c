"""The handlers of adjustments. A row and its line in the audit log are one statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from aiohttp import web
from psycopg.rows import class_row

from api.access.guard import ANALYTICS_ADMIN, CALLER, ORG_ID
from api.adjustments import orders
from api.answering import answers
from api.answering.money import dollars_of
from api.asking import bodies, params
from api.asking.cursors import Cursors
from api.asking.questions import Parser
from api.reading import names
from api.reading.database import Database, no_right, rows
from api.reading.names import Names
from pipeline.common import problems
from pipeline.common.adjustments import SQL, Recorded, refusal
from pipeline.common.connect import AsyncConnection
from pipeline.common.problems import Fault
from sql import roles

_NO_RIGHT: Final = no_right("record adjustments", roles.ADJUSTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """The handlers of adjustments, and what they work with."""

    database: Database
    parser: Parser
    cursors: Cursors

    async def page(self, request: web.Request) -> web.Response:
        question = self.parser.adjustments(request[ORG_ID], request.query)
        values = {
            "org_id": question.org_id,
            "start": question.start,
            "end": question.end,
            "retracted": question.retracted,
            "after": question.after,
            "limit": question.limit + 1,
        }

        async def read(connection: AsyncConnection) -> tuple[list[Recorded], Names]:
            return await _rows(connection, "page", values), await names.read(connection, question.org_id)

        found, named = await self.database.read(read)
        shown, cursor = self.cursors.paged(question, found, lambda row: row.id)
        is_admin = request[CALLER].has(ANALYTICS_ADMIN)
        items = [_shown(one, recorded_by=is_admin) for one in shown]
        return answers.response(
            answers.Adjustments(org_id=question.org_id, org_name=named.org, items=items, next_cursor=cursor)
        )

    async def add(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        key = params.idempotency_key(request.headers)
        wanted = orders.adjustment(await request.read(), request[ORG_ID])
        values = wanted.values(recorded_by=request[CALLER].subject, idempotency_key=key)

        async def add(connection: AsyncConnection) -> Recorded:
            found = await _one(connection, "add", values)
            found = found or await _one(connection, "by_idempotency_key", values)
            assert found is not None
            if not found.is_of(wanted):
                _other_request()
            return found

        return await self._recorded(add)

    async def retract(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = {
            "id": _number(request),
            "org_id": request[ORG_ID],
            "idempotency_key": params.idempotency_key(request.headers),
            "reason": bodies.reason(await request.read()),
            "recorded_by": request[CALLER].subject,
        }

        async def retract(connection: AsyncConnection) -> Recorded:
            known = await _one(connection, "by_idempotency_key", values)
            if known:
                if (known.retracts, known.reason) != (values["id"], values["reason"]):
                    _other_request()
                return known
            target = await _one(connection, "one", values)
            if target is None:
                raise problems.not_found("This org has no such adjustment.")
            why_not = refusal(target)
            added = None if why_not else await _one(connection, "retract", values)
            if added is None:
                raise problems.conflict(f"It cannot be retracted: {why_not or 'somebody was faster'}.")
            return added

        return await self._recorded(retract)

    async def _recorded(self, work: Any) -> web.Response:
        """The answer with the row that was appended. Raises `Unavailable` if the role may append none."""
        found = await self.database.write(work, no_right=_NO_RIGHT)
        return answers.response(_shown(found, recorded_by=True), status=201)


def _other_request() -> NoReturn:
    raise problems.conflict("This Idempotency-Key has recorded something else.")


def _shown(one: Recorded, *, recorded_by: bool) -> answers.Adjustment:
    fields: dict[str, Any] = {name: getattr(one, name) for name in Recorded.__slots__}
    fields["amount"] = None if one.amount is None else dollars_of(one.amount)
    if not recorded_by:
        fields["recorded_by"] = None
    return answers.Adjustment(**fields, currency="USD")


def _number(request: web.Request) -> int:
    try:
        return params.version(request.match_info["adjustmentId"])
    except ValueError:
        raise problems.invalid_parameters([Fault("adjustmentId", "expected the id of a row")]) from None


async def _rows(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> list[Recorded]:
    return await rows(connection, SQL[name], values, class_row(Recorded))


async def _one(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> Recorded | None:
    found = await _rows(connection, name, values)
    return found[0] if found else None
