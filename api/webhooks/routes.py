"""The handlers of webhooks. A change of a webhook and its line in the audit log are one statement."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from psycopg.rows import scalar_row

from api.access.guard import CALLER, ORG_ID
from api.answering import answers as all_answers
from api.answering import webhooks as answers
from api.asking import params
from api.asking.cursors import Cursors
from api.asking.questions import Parser
from api.config import WebhookConfig
from api.reading import names
from api.reading.database import Database, rows
from api.webhooks import kept, messages, orders
from api.webhooks.kept import SQL
from api.webhooks.orders import Order
from api.webhooks.sealed import Endpoint, Sealer, Secret, Unreadable, new_secret
from pipeline.common import ids, problems
from pipeline.common.connect import AsyncConnection
from pipeline.common.problems import Fault

WEBHOOKS_MAX: Final = 20
"""How many webhooks an org may have."""
WAITING_MAX: Final = 100
"""How many deliveries of a webhook may wait when somebody asks for a test or another attempt."""
_OLD_SECRET_S: Final = 86_400
_NO_KEY: Final = "This server cannot keep the secrets of webhooks: set WEBHOOK_KEY."


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """The handlers of webhooks, and what they work with."""

    database: Database
    config: WebhookConfig
    parser: Parser
    cursors: Cursors
    clock: Callable[[], datetime]

    async def page(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing("webhooks", org_id, request.query, UUID)
        values = {"org_id": org_id, "after": question.after, "limit": question.limit + 1}

        async def read(connection: AsyncConnection) -> answers.Webhooks:
            found = await kept.found(connection, "page", values)
            page, cursor = self.cursors.paged(question, found, lambda row: row["webhook_id"])
            named = await names.read(connection, org_id)
            return answers.Webhooks(
                org_id=org_id,
                org_name=named.org,
                items=[kept.webhook_shown(row) for row in page],
                next_cursor=cursor,
            )

        return all_answers.response(await self.database.read(read))

    async def one(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request)
        row = await self.database.read(lambda connection: _one(connection, values))
        return all_answers.response(kept.webhook_shown(row))

    async def create(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        key = params.idempotency_key(request.headers)
        order = orders.webhook(await request.read(), allow_private=self.config.allow_private, changes=False)
        sealer = self._sealer()
        endpoint = Endpoint(url=order.url, secrets=(Secret(text=new_secret()),))
        webhook_id = uuid.uuid4()
        values = self._values(request, order, sealer.seal(webhook_id, endpoint))
        values |= {"webhook_id": webhook_id, "idempotency_key": key}

        async def add(connection: AsyncConnection) -> answers.Webhook:
            await connection.execute(SQL["turn"], values)
            found = await kept.found(connection, "by_idempotency_key", values) if key else []
            if not found:
                (count,) = await rows(connection, SQL["count"], values, scalar_row)
                if count >= WEBHOOKS_MAX:
                    raise problems.conflict(f"This org has {count} webhooks, as many as an org may have.")
                found = await kept.found(connection, "create", values)
            (row,) = found
            made = self._opened(sealer, row)
            same = (row["name"], row["format"], row["enabled"]) == (order.name, order.form, order.enabled)
            if made.url != order.url or not same:
                raise problems.conflict("This Idempotency-Key has made another webhook.")
            return kept.webhook_shown(row, secret=made.secrets[0].text)

        shown = await self.database.write(add)
        location = f"{request.path}/{shown.webhook_id}"
        return all_answers.response(shown, status=201, headers={"Location": location})

    async def change(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        named = _named(request)
        order = orders.webhook(await request.read(), allow_private=self.config.allow_private, changes=True)
        sealer = self._sealer()
        now = self.clock().timestamp()

        async def change(connection: AsyncConnection) -> answers.Webhook:
            await connection.execute(SQL["turn"], named)
            before = self._opened(sealer, await _one(connection, named))
            secrets = tuple(one for one in before.secrets if one.until is None or one.until > now)
            if order.rotate:
                old = (Secret(text=one.text, until=one.until or now + _OLD_SECRET_S) for one in secrets)
                secrets = (Secret(text=new_secret()), *old)[:3]
            endpoint = Endpoint(url=order.url, secrets=secrets)
            sealed = sealer.seal(named["webhook_id"], endpoint)
            (row,) = await kept.found(connection, "change", named | self._values(request, order, sealed))
            return kept.webhook_shown(row, secret=secrets[0].text if order.rotate else None)

        return all_answers.response(await self.database.write(change))

    async def remove(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request) | {"actor": request[CALLER].subject, "now": self.clock()}

        async def remove(connection: AsyncConnection) -> None:
            if not await rows(connection, SQL["remove"], values, scalar_row):
                raise _no_webhook()

        await self.database.write(remove)
        return web.Response(status=204)

    async def test(self, request: web.Request) -> web.Response:
        """Put a message into the outbox that tries the webhook."""
        self.parser.nothing(request.query)
        values = _named(request)

        async def queue(connection: AsyncConnection) -> answers.Delivery:
            row = await _one(connection, values)
            if not row["enabled"]:
                raise problems.conflict("The webhook is disabled: enable it first.")
            await _check_waiting(connection, values)
            body = messages.of_test(row["format"], self.clock(), row["org_id"], row["webhook_id"])
            (made,) = await kept.found(connection, "queue", kept.queued(row, messages.TEST, body, None))
            return kept.delivery_shown(made)

        return all_answers.response(await self.database.write(queue), status=202)

    async def deliveries(self, request: web.Request) -> web.Response:
        named = _named(request)
        org_id, webhook_id = named["org_id"], named["webhook_id"]
        route = f"deliveries {webhook_id}"
        question = self.parser.listing(route, org_id, request.query, tuple[datetime, UUID])
        before, delivery_id = question.after or (None, None)
        values = named | {"before": before, "delivery_id": delivery_id, "limit": question.limit + 1}

        async def read(connection: AsyncConnection) -> answers.Deliveries:
            await _one(connection, named)
            found = await kept.found(connection, "deliveries_page", values)
            page, cursor = self.cursors.paged(
                question, found, lambda row: (row["created_at"], row["delivery_id"])
            )
            return answers.Deliveries(
                org_id=org_id,
                webhook_id=webhook_id,
                items=[kept.delivery_shown(row) for row in page],
                next_cursor=cursor,
            )

        return all_answers.response(await self.database.read(read))

    async def retry(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = _named(request) | {"delivery_id": _id(request, "deliveryId")}

        async def retry(connection: AsyncConnection) -> answers.Delivery:
            row = await _one(connection, values)
            if not row["enabled"]:
                raise problems.conflict("The webhook is disabled: enable it first.")
            await _check_waiting(connection, values)
            found = await kept.found(connection, "retry", values)
            if not found:
                raise problems.not_found("This webhook has no such delivery.")
            return kept.delivery_shown(found[0])

        return all_answers.response(await self.database.write(retry), status=202)

    # --- parts ---

    def _sealer(self) -> Sealer:
        if not self.config.keys:
            raise problems.unavailable(_NO_KEY)
        return Sealer(self.config.keys)

    def _opened(self, sealer: Sealer, row: dict[str, Any]) -> Endpoint:
        try:
            return sealer.open(row["webhook_id"], bytes(row["sealed"]))
        except Unreadable:
            raise problems.conflict(
                "The webhook was encrypted with a key that WEBHOOK_KEY does not have: delete it, or add the"
                " key."
            ) from None

    def _values(self, request: web.Request, order: Order, sealed: bytes) -> dict[str, Any]:
        return {
            "org_id": request[ORG_ID],
            "actor": request[CALLER].subject,
            "now": self.clock(),
            "name": order.name,
            "format": order.form,
            "shown_url": order.shown_url,
            "sealed": sealed,
            "enabled": order.enabled,
        }


async def _one(connection: AsyncConnection, values: dict[str, Any]) -> dict[str, Any]:
    found = await kept.found(connection, "one", values)
    if not found:
        raise _no_webhook()
    return found[0]


async def _check_waiting(connection: AsyncConnection, values: dict[str, Any]) -> None:
    (waiting,) = await rows(connection, SQL["waiting"], values, scalar_row)
    if waiting >= WAITING_MAX:
        raise problems.too_many(f"{waiting} deliveries wait for this webhook already.", retry_after_s=30)


def _named(request: web.Request) -> dict[str, Any]:
    """The org and the webhook of the path, as values."""
    return {"org_id": request[ORG_ID], "webhook_id": _id(request, "webhookId")}


def _id(request: web.Request, name: str) -> UUID:
    try:
        return ids.uuid(request.match_info[name])
    except ValueError as error:
        raise problems.invalid_parameters([Fault(name, str(error))]) from None


def _no_webhook() -> problems.Problem:
    return problems.not_found("This org has no such webhook.")
