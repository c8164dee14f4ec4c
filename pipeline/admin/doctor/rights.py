"""The rights that the login of each process needs in the database, and those that a login lacks.

The rights are looked at in PostgreSQL's catalog, which every login may read. So a login without any right on
our schema is told what it lacks, and no question of ours is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sql import roles, schema

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ALL: Final = "SELECT, INSERT, UPDATE, DELETE"
_RIGHT: Final = re.compile(r"([A-Z]+)(?: \(([a-z_, ]+)\))?")

_LACKING: Final = """
SELECT wanted.relation, wanted.privilege, wanted.col
FROM unnest(CAST(:relations AS text[]), CAST(:privileges AS text[]), CAST(:cols AS text[]))
    WITH ORDINALITY AS wanted (relation, privilege, col, place)
LEFT JOIN (
    pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = :schema
) ON c.relname = wanted.relation
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = wanted.col
WHERE NOT coalesce(
    CASE
        WHEN wanted.col = '' THEN has_table_privilege(c.oid, wanted.privilege)
        ELSE has_column_privilege(c.oid, a.attnum, wanted.privilege)
    END,
    false)
ORDER BY wanted.place
"""


@dataclass(frozen=True, slots=True)
class Right:
    """A right on a table or view; with ``column``, on one column of it."""

    relation: str
    privilege: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.privilege} on {self.relation}{self.column and f' ({self.column})'}"


def of_process(process: str) -> list[Right]:
    """The rights that the login of this process needs, as ``spendstream migrate`` gives them to its role."""
    if process == "worker":
        return list(_rights({table.name: _ALL for table in schema.metadata.sorted_tables}))
    if process == "alerts":
        return list(_rights({**dict.fromkeys(roles.READABLE, "SELECT"), **roles.ALERTS}))
    if process == "collector":
        return list(_rights(roles.COLLECTS))
    return list(
        _rights({**dict.fromkeys(roles.READABLE, "SELECT"), **roles.OWN, "alembic_version": "SELECT"})
    )


def lacking(connection: Connection, process: str) -> list[str]:
    """What the login lacks for this process, in words; empty if it lacks nothing."""
    from sqlalchemy import text

    wanted = of_process(process)
    rows = connection.execute(
        text(_LACKING),
        {
            "relations": [right.relation for right in wanted],
            "privileges": [right.privilege for right in wanted],
            "cols": [right.column for right in wanted],
            "schema": schema.SCHEMA,
        },
    )
    found = [str(Right(*row)) for row in rows]
    usage = text(
        "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = :name"
    )
    if not connection.scalar(usage, {"name": schema.SCHEMA}):
        found.insert(0, f"USAGE on the schema {schema.SCHEMA}")
    temporary = text("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
    if process == "worker" and not connection.scalar(temporary):
        found.append("TEMPORARY on the database")
    return found


def _rights(given: Mapping[str, str]) -> Iterator[Right]:
    """The rights of texts as `sql.roles` has them, such as ``SELECT, UPDATE (last_used_at)``."""
    for relation, granted in given.items():
        for privilege, columns in _RIGHT.findall(granted):
            for column in columns.split(", ") if columns else [""]:
                yield Right(relation, privilege, column)
