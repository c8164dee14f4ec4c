"""Access for tests: keys that let a caller in, and a login that lets the API into the database."""

import uuid
from collections.abc import Iterator

import psycopg
from psycopg import sql as pgsql
from sqlalchemy import make_url

from pipeline.admin import keys
from sql import roles
from tests.support.api_facts import ORG

SECRET = "the server's own secret, 32 characters"
ENV = {"AUTH_MODE": "gateway", "API_KEY_SECRET": SECRET}
"""Settings of an API that accepts keys made with `SECRET` and the headers of a gateway."""


def reader_of(url: str, *more: str) -> Iterator[str]:
    """`login_of` with the role of the API, and further roles."""
    yield from login_of(url, roles.READER, *more)


def login_of(url: str, *granted: str) -> Iterator[str]:
    """Make a login with these roles, until a fixture ends; yields the URL with this login."""
    name = f"api_{uuid.uuid4().hex}"
    role = pgsql.Identifier(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            pgsql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(
                role, pgsql.SQL(", ").join(map(pgsql.Identifier, granted))
            )
        )
    yield psycopg.conninfo.make_conninfo(url, user=name) if "://" not in url else _as(url, name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,)
        )
        connection.execute(pgsql.SQL("DROP ROLE {}").format(role))


def _as(url: str, user: str) -> str:
    return make_url(url).set(username=user, password=None).render_as_string(hide_password=False)


def new_key(url: str, org: uuid.UUID = ORG, *roles: str, valid_s: float | None = None) -> str:
    """Make a key of the org in the database. Without given roles the key may ask for usage."""
    return keys.create(
        url,
        SECRET.encode(),
        org_id=org,
        roles=roles or ("analytics:usage:read",),
        label="",
        valid_s=valid_s,
    )


def with_key(key: str) -> dict[str, str]:
    """The headers of a caller who has the key."""
    return {"X-API-Key": key}
