"""SQL on what has been seen: orgs, their models and clients, and how far each partition has come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Row, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.reading.freshness import Standing, StandingsPage
from sql.schema import clients_seen, models_seen, orgs_seen, partition_watermarks


async def org_standings(connection: AsyncConnection, org_id: UUID) -> list[Standing]:
    """How far each partition of the org has come; empty for an org never seen."""
    return (await orgs_standings(connection, [org_id])).get(org_id, [])


async def orgs_standings(connection: AsyncConnection, org_ids: Iterable[UUID]) -> dict[UUID, list[Standing]]:
    """The same for many orgs at once."""
    query = _with_watermark(orgs_seen, orgs_seen.c.org_id).where(orgs_seen.c.org_id.in_(list(org_ids)))
    by_org: dict[UUID, list[Standing]] = defaultdict(list)
    for row in await connection.execute(query):
        by_org[row.org_id].append(_standing(row))
    return by_org


async def standings_page(
    connection: AsyncConnection, org_id: UUID, after: UUID | None, limit: int
) -> StandingsPage:
    """How far each partition has come with the org, and with each of a page of its models."""
    of_org = await org_standings(connection, org_id)
    model_id, partition = models_seen.c.model_id, models_seen.c.partition
    query = (
        _with_watermark(models_seen, model_id)
        .where(models_seen.c.org_id == org_id)
        .order_by(model_id, partition)
        # A model has a row in each partition of the org at most: one model more than the page is in these.
        .limit((limit + 1) * len(of_org))
    )
    if after is not None:
        query = query.where(model_id > after)
    by_model: dict[UUID, list[Standing]] = {}
    for row in await connection.execute(query):
        by_model.setdefault(row.model_id, []).append(_standing(row))
    shown = list(by_model)[:limit]
    return StandingsPage(
        of_org=of_org, by_model={key: by_model[key] for key in shown}, more=len(by_model) > len(shown)
    )


async def watermarks(connection: AsyncConnection) -> dict[int, datetime | None]:
    """The watermark of every partition that is not retired."""
    p = partition_watermarks.c
    rows = await connection.execute(select(p.partition, p.watermark).where(p.retired_at.is_(None)))
    return {row.partition: row.watermark for row in rows}


async def orgs(connection: AsyncConnection, after: UUID | None, limit: int) -> list[UUID]:
    """A page of the orgs, by id."""
    query = select(orgs_seen.c.org_id).distinct().order_by(orgs_seen.c.org_id).limit(limit)
    if after is not None:
        query = query.where(orgs_seen.c.org_id > after)
    return [row.org_id for row in await connection.execute(query)]


async def models(
    connection: AsyncConnection, org_id: UUID, after: UUID | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of the org's models, by id: (key, first_event_at, last_event_at)."""
    return await _page(connection, models_seen, models_seen.c.model_id, org_id, after, limit)


async def clients(
    connection: AsyncConnection, org_id: UUID, after: str | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of the org's clients, by id in byte order: (key, first_event_at, last_event_at)."""
    key = clients_seen.c.client_id.collate("C")
    return await _page(connection, clients_seen, key, org_id, after, limit)


async def _page(
    connection: AsyncConnection, table: Table, key: Any, org_id: UUID, after: Any, limit: int
) -> Sequence[Row[Any]]:
    query = (
        select(
            key.label("key"),
            func.min(table.c.first_event_at).label("first_event_at"),
            func.max(table.c.last_event_at).label("last_event_at"),
        )
        .where(table.c.org_id == org_id)
        .group_by(key)
        .order_by(key)
        .limit(limit)
    )
    if after is not None:
        query = query.where(key > after)
    return (await connection.execute(query)).all()


def _with_watermark(seen: Table, key: Column[Any]) -> Any:
    p = partition_watermarks
    return select(
        key, seen.c.partition, p.c.watermark, seen.c.last_event_at, seen.c.last_rollup_at
    ).select_from(seen.outerjoin(p, p.c.partition == seen.c.partition))


def _standing(row: Row[Any]) -> Standing:
    return Standing(
        partition=row.partition,
        watermark=row.watermark,
        last_event_at=row.last_event_at,
        last_rollup_at=row.last_rollup_at,
    )
