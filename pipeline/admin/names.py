"""Setting, listing and removing the names of orgs and of values of dimensions: ``spendstream names``.

The statement that changes names also records in the audit log who did so.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from pipeline.common.actor import actor
from pipeline.common.connect import Connection, Session, connect
from pipeline.common.names import NO_ROOM, SQL, Name, Naming, no_dimension, of_actors
from pipeline.common.operator import OperatorError


class NameRefused(OperatorError):
    """The name cannot be set; nothing was changed. The message has the reason."""


def change(database_url: str, naming: Naming) -> int:
    """Set or remove names that keep the rules; the number of names that were changed.

    Raises:
        NameRefused: no worker counts the dimension, or it has too many names already.
        psycopg.Error: the database cannot be used; nothing was changed.
    """
    with connect(database_url, _SESSION) as connection:
        if naming.needs_dimension:
            _check_dimension(connection, naming.dimension)
        if connection.execute(SQL["of_actors"], {"dimension": naming.dimension}).fetchone() == (True,):
            naming = of_actors(naming)
        values = naming.values(set_by=actor())
        connection.execute(SQL["turn"], values)
        row = connection.execute(SQL["set"], values).fetchone()
    assert row is not None
    is_room, changed = row
    if not is_room:
        raise NameRefused(NO_ROOM)
    return int(changed)


def listed(
    database_url: str,
    *,
    org_id: UUID | None = None,
    dimension: str | None = None,
    limit: int | None = None,
) -> list[Name]:
    """Names of an org or of all, of a dimension or of all. Raises `psycopg.Error`."""
    values: dict[str, Any] = {"org_id": org_id, "dimension": dimension, "limit": limit}
    with connect(database_url, _SESSION) as connection:
        return connection.cursor(row_factory=class_row(Name)).execute(SQL["page"], values).fetchall()


def _check_dimension(connection: Connection, dimension: str) -> None:
    known = connection.cursor(row_factory=scalar_row).execute(SQL["dimensions"]).fetchall()
    if dimension not in known:
        raise NameRefused(f"the dimension {dimension!r} is unknown: {no_dimension(known)}")


_SESSION: Final = Session(application_name="spendstream-names", lock_timeout_s=60.0)
