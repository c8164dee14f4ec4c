"""Bring a database to the schema that this code needs, and refuse one that is older.

`upgrade` is safe to run at any time and from several processes at once: it takes an advisory lock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from sql import editions, roles
from sql.schema import SCHEMA

HEAD: Final = "0005"
"""The schema's revision that this code needs."""

_LOCK: Final = 0x5350454E44  # "SPEND"
_DAY_S: Final = 86_400.0


class SchemaTooOld(Exception):
    """The database's schema is missing or not the one that this code needs: run ``spendstream migrate``."""


def upgrade(
    database_url: str,
    *,
    retention_minute_s: float = 14 * _DAY_S,
    retention_rollup_s: float = 400 * _DAY_S,
) -> editions.Applied:
    """Create or upgrade the schema, then apply what the edition offers and the rights of `sql.roles`.

    One transaction each.

    Raises:
        sqlalchemy.exc.OperationalError: the database cannot be reached.
    """
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        with connection.begin():
            applied = editions.apply(
                connection, retention_minute_s=retention_minute_s, retention_rollup_s=retention_rollup_s
            )
            return replace(applied, notes=(*applied.notes, roles.apply(connection)))


def revision(connection: Connection) -> str | None:
    """The schema's revision in the database; None when there is none."""
    if not connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"}):
        return None
    return MigrationContext.configure(
        connection, opts={"version_table_schema": SCHEMA}
    ).get_current_revision()


def sqlalchemy_url(database_url: str) -> str:
    """The URL with psycopg 3 named as the driver, password and all, and with several hosts in its words."""
    parts = urlsplit(database_url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts:
        query = "&".join([*(f"host={host}" for host in hosts.split(",")), *filter(None, [parts.query])])
        database_url = parts._replace(netloc=f"{user}{at}", query=query).geturl()
    url = make_url(database_url)
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
