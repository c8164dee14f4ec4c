"""Every event in every state of a dead letter, on the database: the table of steps is what the SQL does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from pipeline.config import RetentionConfig
from pipeline.dead_letters import table
from pipeline.dead_letters.life import STEPS, Event, State
from pipeline.worker import maintenance
from sql import queries
from tests.support import migrated

NOW = datetime(2026, 11, 23, tzinfo=UTC)
RETENTION = RetentionConfig()
PLACE = {"partition": 0, "offset": 7, "position": 0}
WAYS_THERE = {
    State.REJECTED: (),
    State.WAITING: (Event.ASKED,),
    State.COUNTED: (Event.ASKED, Event.COUNTED),
    State.LEFT: (Event.ASKED, Event.LEFT),
    State.DELETED: (Event.PURGED,),
}


async def happen(url: str, event: Event) -> None:
    """Let one event happen, by the statement of the code that does it."""
    match event:
        case Event.ASKED:
            request(url)
        case Event.COUNTED:
            settle(url, "duplicate")
        case Event.LEFT:
            settle(url, "unknown")
        case Event.PURGED:
            table.purge(url, table.Chosen(offset=7), replayed=False)
        case Event.EXPIRED:
            after = NOW + timedelta(seconds=RETENTION.dead_letters_s + 1)
            kept = replace(RETENTION, rollup_s=10 * RETENTION.dead_letters_s)
            await maintenance.expire(url, kept, dedupe_window_us=0, now=after)


def request(url: str) -> None:
    values = {"run": uuid4(), "broker_time": NOW, "evidence": "none", "absent_to": None, "body": None}
    with psycopg.connect(url) as connection:
        connection.execute(queries.load("replays")["request"], PLACE | values)


def settle(url: str, outcome: str) -> None:
    values = {"outcome": outcome, "org": None, "event": None, "check": None, "at_offset": 8}
    with psycopg.connect(url) as connection:
        connection.execute(queries.load("replays")["settle"], PLACE | values)


def state(url: str) -> State:
    found = list(table.newest(url, table.Chosen(offset=7)))
    return found[0].state if found else State.DELETED


@pytest.mark.parametrize("before", State)
async def test_a_letter_takes_the_steps_of_the_table_and_no_others(
    before: State, embedded_postgres_url: str
) -> None:
    url = embedded_postgres_url
    migrated.upgrade(url)
    for event in Event:
        if before is State.DELETED and event is Event.ASKED:
            continue  # the command asks only for letters that are there
        with psycopg.connect(url) as connection:
            connection.execute("TRUNCATE analytics.dead_letters, analytics.replays")
            connection.execute(
                "INSERT INTO analytics.dead_letters"
                ' (partition, "offset", position, stream, reason, faults, rejected_at)'
                " VALUES (0, 7, 0, 's', 'too_late', '[]', %s)",
                (NOW,),
            )
        for step in WAYS_THERE[before]:
            await happen(url, step)
        assert state(url) is before
        await happen(url, event)
        assert state(url) is STEPS.get((before, event), before), event
