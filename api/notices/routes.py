"""The handlers of notices. A change and its line in the audit log are one statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from aiohttp import web
from msgspec import structs
from psycopg.rows import dict_row

from api.access.guard import CALLER, ORG_ID
from api.answering import answers as all_answers
from api.answering import notices as answers
from api.answering.webhooks import SentNotice, SentNotices
from api.asking.cursors import Cursors
from api.asking.questions import Parser
from api.notices import kept, orders
from api.notices.kept import SQL
from api.reading import names
from api.reading.database import Database, rows
from api.webhooks import kept as webhooks
from pipeline.common.connect import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeRoutes:
    """The handlers of notices, and what they work with."""

    database: Database
    parser: Parser
    cursors: Cursors
    clock: Callable[[], datetime]

    async def settings(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        org_id: UUID = request[ORG_ID]

        async def read(connection: AsyncConnection) -> answers.Notices:
            found = await kept.settings(connection, "one", {"org_id": org_id})
            named = await names.read(connection, org_id)
            return kept.settings_shown(org_id, named.org, found[0] if found else None)

        return all_answers.response(await self.database.read(read))

    async def ask_for(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        org_id: UUID = request[ORG_ID]
        values = kept.values_of(orders.asked(await request.read()))
        values |= {"org_id": org_id, "actor": request[CALLER].subject, "now": self.clock()}

        async def write(connection: AsyncConnection) -> answers.Notices:
            (found,) = await kept.settings(connection, "set", values)
            named = await names.read(connection, org_id)
            return kept.settings_shown(org_id, named.org, found)

        return all_answers.response(await self.database.write(write))

    async def sent(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("notices", org_id, request.query, tuple[datetime, UUID])
        before, notice_id = question.after or (None, None)
        values = {"org_id": org_id, "before": before, "notice_id": notice_id, "limit": question.limit + 1}

        async def read(connection: AsyncConnection) -> SentNotices:
            found = await rows(connection, SQL["sent_page"], values, dict_row)
            page, cursor = self.cursors.paged(
                question, found, lambda row: (row["noticed_at"], row["notice_id"])
            )
            named = await names.read(connection, org_id)
            deliveries = await webhooks.of_notices(connection, (row["notice_id"] for row in page))
            return SentNotices(
                org_id=org_id,
                org_name=named.org,
                items=[
                    SentNotice(
                        **structs.asdict(kept.notice_shown(row)),
                        deliveries=[*deliveries.get(row["notice_id"], ())],
                    )
                    for row in page
                ],
                next_cursor=cursor,
            )

        return all_answers.response(await self.database.read(read))
