"""Reading the audit log: ``spendstream audit``. Rows are written where things are done, and never here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row

from pipeline.common.connect import Session, connect
from sql import queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A row of ``analytics.audit_log``."""

    id: int
    at: datetime
    actor: str
    action: str
    org_id: UUID | None
    outcome: str
    detail: dict[str, Any] | None


def newest(
    database_url: str,
    *,
    action: str | None = None,
    org_id: UUID | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> list[Audited]:
    """The newest rows that are chosen, the newest first. Raises `psycopg.Error`."""
    values = {"action": action, "org_id": org_id, "actor": actor, "since": since, "limit": limit}
    with connect(database_url, _SESSION) as connection:
        return (
            connection.cursor(row_factory=class_row(Audited)).execute(_QUERIES["newest"], values).fetchall()
        )


_QUERIES: Final = queries.load("audit")
_SESSION: Final = Session(application_name="spendstream-audit", lock_timeout_s=60.0)
