"""The handlers of names. A change of names and its lines in the audit log are one statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web
from psycopg.rows import scalar_row, tuple_row

from api.access.guard import CALLER, ORG_ID
from api.answering import answers
from api.asking.questions import Parser
from api.names import orders
from api.reading.database import Database, no_right, rows
from pipeline.common import problems
from pipeline.common.connect import AsyncConnection
from pipeline.common.names import NO_ROOM, ORG, SQL, Naming, naming_of_org, no_dimension, of_actors
from sql import roles

_NO_RIGHT: Final = no_right("set names", roles.NAMER)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameChanges:
    """The handlers that set and remove names, and what they work with."""

    database: Database
    parser: Parser

    async def set_org(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        naming = orders.of_org(await request.read(), request[ORG_ID])
        await self._set(request, naming)
        return answers.response(answers.OrgName(org_id=naming.org_id, org_name=naming.names[ORG]))

    async def remove_org(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        await self._set(request, naming_of_org(request[ORG_ID], None))
        return web.Response(status=204)

    async def set_values(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        naming = orders.of_values(await request.read(), request[ORG_ID], request.match_info["name"])
        naming = await self._set(request, naming)
        items = [answers.ValueName(value=value, value_name=name) for value, name in naming.names.items()]
        return answers.response(
            answers.ValueNames(org_id=naming.org_id, dimension=naming.dimension, items=items)
        )

    async def _set(self, request: web.Request, naming: Naming) -> Naming:
        """Set the names, and return them with their values as events have them.

        Raises:
            Problem: 404, the dimension is not set. 409, the dimension has no room for so many names.
            Unavailable: the database is away, or its role may not set names.
        """

        async def change(connection: AsyncConnection) -> Naming | None:
            if naming.needs_dimension:
                await _check_dimension(connection, naming.dimension)
            [is_of_actors] = await rows(
                connection, SQL["of_actors"], {"dimension": naming.dimension}, scalar_row
            )
            done = of_actors(naming) if is_of_actors else naming
            values = done.values(set_by=request[CALLER].subject)
            await connection.execute(SQL["turn"], values)
            [(is_room, _)] = await rows(connection, SQL["set"], values, tuple_row)
            return done if is_room else None

        done = await self.database.write(change, no_right=_NO_RIGHT)
        if done is None:
            raise problems.conflict(f"{NO_ROOM[0].upper()}{NO_ROOM[1:]}.")
        return done


async def _check_dimension(connection: AsyncConnection, dimension: str) -> None:
    known = await rows(connection, SQL["dimensions"], {}, scalar_row)
    if dimension not in known:
        raise problems.not_found(f"The dimension is unknown: {no_dimension(known)}.")
