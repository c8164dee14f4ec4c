"""Readiness: whether this process has what it needs to answer, component by component."""

from __future__ import annotations

from typing import Final

from psycopg.rows import tuple_row

from api.answering.answers import Component, Components, Readiness
from api.reading.database import SCHEMA_REMEDY, Database, rows
from api.reading.freshness import FreshnessCache
from pipeline.common.connect import AsyncConnection
from pipeline.common.errors import Unavailable
from sql import queries, schema

_NEEDED: Final = (
    schema.usage_minute,
    schema.usage_hour,
    schema.usage_quarter,
    schema.usage_day,
    schema.client_hour,
    schema.client_day,
    schema.breakdown_hour,
    schema.breakdown_day,
    schema.dimensions,
    schema.split_hours,
    schema.usage_errors_hour,
    schema.partitions,
    schema.orgs_seen,
    schema.models_seen,
    schema.clients_seen,
    schema.values_seen,
    schema.audit_log,
    schema.api_keys,
    schema.export_jobs,
    schema.export_schedules,
    schema.prices,
    schema.adjustments,
    schema.names,
)

_SQL: Final = queries.load("readiness")


async def readiness(database: Database, cache: FreshnessCache | None) -> Readiness:
    """Ready: the database answers, and has our tables. Redis is not needed; without it answers are slower."""
    components = Components(
        database=Component(status="ok", detail="answers"),
        redis=await _redis(cache),
        schema=Component(status="ok", detail="has every table and column that is read"),
    )
    try:
        missing = await database.read(missing_columns)
    except Unavailable as error:
        components = Components(
            database=Component(status="down", detail=str(error)),
            redis=components.redis,
            schema=Component(status="down", detail="unknown while the database is away"),
        )
    else:
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            detail = f"{SCHEMA_REMEDY} Missing: {shown}."
            components = Components(
                database=components.database,
                redis=components.redis,
                schema=Component(status="down", detail=detail),
            )
    ready = components.database.status == "ok" and components.schema.status == "ok"
    return Readiness(status="ready" if ready else "not_ready", components=components)


async def missing_columns(connection: AsyncConnection) -> list[str]:
    """Tables and columns that the queries need and the database lacks; of a missing table, only its name."""
    there = set(await rows(connection, _SQL["columns"], {"schema": schema.SCHEMA}, tuple_row))
    tables = {relation for relation, _ in there}
    missing = []
    for table in _NEEDED:
        if table.name not in tables:
            missing.append(table.name)
        else:
            missing += [f"{table.name}.{c.name}" for c in table.columns if (table.name, c.name) not in there]
    return missing


async def _redis(cache: FreshnessCache | None) -> Component:
    if cache is None:
        return Component(status="off", detail="REDIS_URL is not set; the database answers for freshness")
    fault = await cache.ping()
    if fault is not None:
        return Component(status="degraded", detail="away; the database answers for freshness")
    return Component(status="ok", detail="answers")
