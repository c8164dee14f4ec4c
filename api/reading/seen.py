"""What has been seen: orgs, their models, clients and values, and how far each partition has come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row, scalar_row, tuple_row

from api.asking.buckets import Quarters, to_minute
from api.asking.questions import Counted
from api.reading.database import rows
from api.reading.freshness import Standing, StandingsPage
from pipeline.common.connect import AsyncConnection
from sql import queries

_QUERIES: Final = queries.load("seen")
SQL: Final = {name: text.replace("{mine}", _QUERIES["mine"]) for name, text in _QUERIES.items()}


@dataclass(frozen=True, slots=True)
class Seen:
    """A model by its id, or a client or a value by its name, with its first and last event."""

    key: Any
    first_event_at: datetime
    last_event_at: datetime


@dataclass(frozen=True, slots=True)
class Label:
    """What people call a model. None if no event has said so."""

    provider: str | None
    model_name: str | None


NO_LABEL: Final = Label(None, None)
LABELS_AT_ONCE: Final = 1000
"""Labels of an org that are read beside its figures. If an org has more, those of the page are asked for."""


async def labels(connection: AsyncConnection, org_id: UUID, models: Iterable[UUID | str]) -> dict[str, Label]:
    """The labels of some models of an org, by the model's id as text. A model without labels is absent."""
    values = labels_values(org_id, models)
    found = await rows(connection, SQL["labels"], values, tuple_row) if values["labelled"] else []
    return labels_of(found)


def labels_values(org_id: UUID, models: Iterable[UUID | str]) -> dict[str, Any]:
    """The values of the query ``labels`` for some models of an org."""
    wanted = [UUID(str(model)) for model in models]
    return {"org_id": org_id, "labelled": wanted, "labels_max": len(wanted)}


def labels_of(found: Iterable[Sequence[Any]]) -> dict[str, Label]:
    """The rows of the query ``labels`` by the model's id as text."""
    return {model: Label(provider or None, name or None) for model, provider, name in found}


async def org_standings(connection: AsyncConnection, org_id: UUID) -> list[Standing]:
    """How far each partition of the org has come; empty for an org never seen."""
    return (await orgs_standings(connection, [org_id])).get(org_id, [])


async def orgs_standings(connection: AsyncConnection, org_ids: Iterable[UUID]) -> dict[UUID, list[Standing]]:
    """The same for many orgs at once."""
    return _by_key(await rows(connection, SQL["standings"], {"org_ids": list(org_ids)}, tuple_row))


async def standings_page(
    connection: AsyncConnection, org_id: UUID, after: UUID | None, limit: int
) -> StandingsPage:
    """How far each partition has come with the org, and with each of a page of its models."""
    of_org = await org_standings(connection, org_id)
    # One model more than the page is in these rows.
    values = {"org_id": org_id, "after": after, "rows": (limit + 1) * len(of_org)}
    by_model = _by_key(await rows(connection, SQL["standings_of_models"], values, tuple_row))
    shown = list(by_model)[:limit]
    return StandingsPage(
        of_org=of_org, by_model={key: by_model[key] for key in shown}, more=len(by_model) > len(shown)
    )


def _by_key(found: Iterable[Sequence[Any]]) -> dict[UUID, list[Standing]]:
    """Rows of a key and the fields of a `Standing`, by their key in the rows' order."""
    by_key: dict[UUID, list[Standing]] = defaultdict(list)
    for key, *standing in found:
        by_key[key].append(Standing(*standing))
    return by_key


async def watermarks(connection: AsyncConnection) -> dict[int, datetime | None]:
    """The watermark of every partition that is not retired."""
    return dict(await rows(connection, SQL["watermarks"], {}, tuple_row))


async def orgs(
    connection: AsyncConnection, after: UUID | None, limit: int, seen_by: Sequence[UUID] | None
) -> list[UUID]:
    """A page of the orgs, by id: those of ``seen_by``, or all."""
    values = {"after": after, "limit": limit, "seen_by": seen_by}
    return await rows(connection, SQL["orgs"], values, scalar_row)


async def models(connection: AsyncConnection, org_id: UUID, after: UUID | None, limit: int) -> list[Seen]:
    """A page of the org's models, by id."""
    values = {"org_id": org_id, "after": after, "limit": limit}
    return await rows(connection, SQL["models"], values, class_row(Seen))


async def clients(connection: AsyncConnection, org_id: UUID, after: str | None, limit: int) -> list[Seen]:
    """A page of the org's clients, by id in byte order."""
    values = {"org_id": org_id, "after": after, "limit": limit}
    return await rows(connection, SQL["clients"], values, class_row(Seen))


async def dimensions(connection: AsyncConnection, org_id: UUID) -> list[Counted]:
    """The dimensions that are set, with the time from which on each is complete for the org."""
    return await rows(connection, SQL["dimensions"], {"org_id": org_id}, class_row(Counted))


async def quarters(connection: AsyncConnection, org_id: UUID) -> Quarters:
    """The hours that have rows by the quarter, for all events of the org."""
    found = await rows(connection, SQL["split_hours"], {"org_id": org_id}, tuple_row)
    return quarters_of(found)


def quarters_of(found: Iterable[tuple[int, datetime]]) -> Quarters:
    """The quarters of rows of the query ``split_hours``."""
    return Quarters({hour: to_minute(since) for hour, since in found})


async def values(
    connection: AsyncConnection, org_id: UUID, dimension: str, after: str | None, limit: int
) -> list[Seen]:
    """A page of the org's values of a dimension, in byte order."""
    wanted = {"org_id": org_id, "dimension": dimension, "after": after, "limit": limit}
    return await rows(connection, SQL["values"], wanted, class_row(Seen))
