"""A database with the schema of an earlier revision."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import text

import sql
from pipeline.common import connect
from sql.schema import SCHEMA


def make(database_url: str, revision: str) -> None:
    """Give the database the schema of ``revision``, with no rows, in place of its own schema."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    config = Config()
    config.set_main_option("script_location", str(Path(sql.__file__).parent / "migrations"))
    engine = connect.engine(database_url, connect.Session(application_name="test"))
    with engine.begin() as made:
        made.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        config.attributes["connection"] = made
        command.upgrade(config, revision)
    engine.dispose()
