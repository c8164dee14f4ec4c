"""A dimension for tests of the API: the team of an event is its client, so figures of both are the same."""

from __future__ import annotations

import psycopg

from sql import schema

_FIGURES = ", ".join(column.name for column in list(schema.client_hour.columns)[4:])
_STATEMENTS = (
    "INSERT INTO analytics.dimensions SELECT partition, 'team', 'metadata.team', 'epoch'"
    " FROM analytics.partitions",
    "INSERT INTO analytics.values_seen SELECT org_id, 'team', client_id, partition, first_event_at,"
    " last_event_at, last_rollup_at FROM analytics.clients_seen",
    *(
        f"INSERT INTO analytics.breakdown_{grain}"
        f" (org_id, dimension, bucket_start, model_id, value, {_FIGURES})"
        f" SELECT org_id, 'team', bucket_start, model_id, client_id, {_FIGURES} FROM analytics.client_{grain}"
        for grain in ("hour", "day")
    ),
)


def load_teams(url: str) -> None:
    """Copy the rows by client into the dimension ``team``. The rows by client must have been loaded."""
    with psycopg.connect(url) as connection:
        for statement in _STATEMENTS:
            connection.execute(statement)
