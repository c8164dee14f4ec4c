"""A database with odd settings, and events whose text would be damaged if a session obeyed the settings."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg import sql as psql

from pipeline.common import connect
from pipeline.core.rules import Rules
from pipeline.sink.timescale import TimescaleSink
from tests.support import books
from tests.support import oracle as naive

NOW = datetime(2026, 11, 10, 12, 34, 56, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
ORG, MODEL = "aaaaaaaa-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000000"
CLIENTS = ("", "Zürich", "日本", "emoji 🦀", "back\\slash'quote")
RULES = Rules()


def bodies(count: int) -> list[bytes]:
    """Events of one org, a second apart, with every kind of text."""
    return [
        msgspec.json.encode(
            {
                "eventId": str(uuid.UUID(int=i + 1)),
                "orgId": ORG,
                "modelId": MODEL,
                "clientId": CLIENTS[i % len(CLIENTS)] or None,
                "occurredAt": (NOW - timedelta(seconds=i)).isoformat(),
                "latencyMs": i,
                "status": "error" if i % 3 == 0 else "success",
                "errorCode": "größer" if i % 3 == 0 else None,
                "inputTokens": 3,
                "outputTokens": 4,
                "costEstimateCents": 0.1,
            }
        )
        for i in range(count)
    ]


def alter(url: str, settings: dict[str, str]) -> None:
    """Give these settings to all new connections to the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        name = psql.Identifier(connection.info.dbname)
        for setting, value in settings.items():
            wanted = (
                psql.Identifier(*setting.split(".")),
                psql.SQL(value) if setting == "search_path" else value,
            )
            text = psql.SQL("ALTER DATABASE {} SET {} = {}").format(name, *wanted)
            connection.execute(text)


def reset(url: str) -> None:
    """Undo `alter`."""
    with connect.connect(url, SESSION, autocommit=True) as connection:
        connection.execute(
            psql.SQL("ALTER DATABASE {} RESET ALL").format(psql.Identifier(connection.info.dbname))
        )


SESSION = connect.Session(application_name="test", statement_timeout_s=30)


async def flushed(url: str, events: Sequence[bytes]) -> None:
    """Commit events in two parts, with a restart between them."""
    for first, last in ((0, len(events) // 2), (len(events) // 2, len(events))):
        sink = TimescaleSink(url)
        claim, ledger = await books.recover(sink, RULES)
        for chunk in books.chunks_of(events[first:last], size=20, broker_us=NOW_US, first_offset=first):
            ledger.ingest(**chunk)
        await books.flush(sink, claim, ledger)
        await sink.close()


def expected(events: Sequence[bytes]) -> dict[str, Any]:
    """The rows that the oracle counts, in the form of `books.stored`."""
    oracle = naive.Oracle(books.oracle_rules(RULES))
    oracle.feed_all((i, NOW_US, body) for i, body in enumerate(events))
    return books.expected(oracle)
