"""How soon a crossed budget is told, and what judging costs: python -m tests.bench.bench_alerts.

On servers of its own it loads days of usage of many orgs that have ten budgets each. Then it runs a worker
on a real stream, ``spendstream alerts`` as the process it is, and an endpoint that takes the webhooks. While
3,000 events a second come from all orgs, one org after another gets a *probe*: an event that is worth a
million dollars, which crosses one threshold of one budget. The bench reports how long after the publishing of
a probe its webhook came, and which CPU the process and its sessions in the database took. It judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg
from aiohttp import web

from api.webhooks.sealed import Endpoint, Sealer, Secret, new_secret
from deploy.local import Stack
from deploy.local.ports import free_port
from pipeline.transports.rabbitmq.transport import RabbitMQTransport
from sql import migrate
from tests.bench import rollup_rows
from tests.bench.bench_api import cpu_s, percentile_ms
from tests.bench.rollup_rows import Size
from tests.support import processes, streams

STREAM: Final = "analytics.usage.v1"
KEY: Final = "a key of webhooks with 32 characters"
BATCHES_A_SECOND: Final = 10
PROBED: Final = "probed"
"""The name of the budgets that probes cross."""
PROBE_CENTS: Final = 10**8
PROBE_MODEL: Final = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000009")
"""The book does not know this model, so an event of it costs what its estimate says."""
FAR: Final = 10**13
BUDGETS: Final = (
    ("cost", "day", "UTC", "client", "forecast"),
    ("tokens", "day", "Europe/Berlin", "model", "actual"),
    ("requests", "day", "UTC", "client", "actual"),
    ("cost", "month", "Europe/Berlin", None, "forecast"),
    ("tokens", "month", "UTC", None, "actual"),
    ("cost", "month", "America/New_York", "model", "actual"),
    ("cost", "week", "UTC", None, "forecast"),
    ("tokens", "week", "Europe/Berlin", None, "actual"),
)
"""Budgets that are never crossed: metric, period, time zone, scope, and the basis of the second threshold."""


# --- what is measured on -----------------------------------------------------------------------


def add_budgets(url: str, size: Size, rng: random.Random, *, soon: float) -> int:
    """Ten budgets an org; how many there are.

    They are those of `BUDGETS`, one for probes, and one that the org crosses after 0 to ``soon`` more events,
    at random.
    """
    monday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monday -= timedelta(days=monday.weekday())
    now = datetime.now(UTC)
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        counted = cursor.execute(
            "SELECT org_id, sum(invocations)::bigint FROM analytics.usage_hour WHERE bucket_start >= %s"
            " GROUP BY org_id",
            [monday],
        )
        requests: dict[uuid.UUID, int] = dict(counted.fetchall())
        rows: list[tuple[Any, ...]] = []
        for org in map(rollup_rows.org, range(size.orgs)):
            tenths = [{"percent": str(10 * step), "on": "actual"} for step in range(1, 11)]
            rows.append((org, PROBED, None, None, None, "cost", "month", "UTC", PROBE_CENTS // 10, tenths))
            near = requests.get(org, 0) + 1 + int(rng.random() * soon)
            whole = [{"percent": "100", "on": "actual"}]
            rows.append((org, "soon", None, None, None, "requests", "week", "UTC", near, whole))
            for metric, period, zone, scope, basis in BUDGETS:
                model = rollup_rows.model(rng.randrange(size.models)) if scope == "model" else None
                client = rollup_rows.client(rng.randrange(rollup_rows.CLIENTS)) if scope == "client" else None
                both = [{"percent": "80", "on": "actual"}, {"percent": "100", "on": basis}]
                dimension = client and "client"
                rows.append((org, "far", model, dimension, client, metric, period, zone, FAR, both))
        names = "name, model_id, dimension, value, metric, period, time_zone, amount, thresholds"
        with cursor.copy(
            f"COPY analytics.budgets (org_id, {names}, budget_id, version, created_by, created_at,"
            " updated_at, judged_from) FROM STDIN"
        ) as copy:
            for *row, amount, thresholds in rows:
                kept = (uuid.uuid4(), 1, "bench", now, now, now)
                copy.write_row((*row, Decimal(amount), json.dumps(thresholds), *kept))
        cursor.execute("ANALYZE analytics.budgets")
    return len(rows)


def add_webhooks(url: str, size: Size, port: int) -> None:
    """A webhook of each org. The path of its URL is the id of the org."""
    sealer, now = Sealer([KEY]), datetime.now(UTC)
    with (
        psycopg.connect(url) as connection,
        connection.cursor().copy(
            "COPY analytics.webhooks (webhook_id, org_id, name, format, shown_url, sealed, enabled,"
            " created_by, created_at, updated_at) FROM STDIN"
        ) as copy,
    ):
        for org in map(rollup_rows.org, range(size.orgs)):
            webhook = uuid.uuid4()
            there = Endpoint(url=f"http://127.0.0.1:{port}/{org}", secrets=(Secret(text=new_secret()),))
            sealed = sealer.seal(webhook, there)
            copy.write_row((webhook, org, "w", "standard", "http://…", sealed, True, "bench", now, now))


@asynccontextmanager
async def endpoint(port: int) -> AsyncIterator[list[tuple[str, str, float]]]:
    """Takes every webhook: the org, the name of the budget and the time of each, in the order they came."""
    came: list[tuple[str, str, float]] = []

    async def handle(request: web.Request) -> web.Response:
        at = time.time()
        alert = (await request.json())["data"]["alert"]
        came.append((request.path[1:], alert["budgetName"], at))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{org}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield came
    finally:
        await runner.cleanup()


# --- the load ----------------------------------------------------------------------------------


def body(org: uuid.UUID, model: uuid.UUID, cents: float, rng: random.Random) -> bytes:
    """An event of now."""
    return json.dumps(
        {
            "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
            "orgId": str(org),
            "modelId": str(model),
            "clientId": rollup_rows.client(rng.randrange(rollup_rows.CLIENTS)),
            "occurredAt": datetime.now(UTC).isoformat(),
            "latencyMs": rng.randrange(2000),
            "status": "success",
            "inputTokens": rng.randrange(20_000),
            "outputTokens": rng.randrange(2000),
            "costEstimateCents": cents,
        }
    ).encode()


def publish(url: str, size: Size, rate: int, asked: Any, sent: Any) -> None:
    """Events of all orgs and models at random, ten batches a second, until terminated.

    A number of an org that comes by ``asked`` gets a probe in the next batch. The number, and the time just
    before that batch is published, go to ``sent``.
    """
    rng = random.Random()
    orgs = [rollup_rows.org(number) for number in range(size.orgs)]
    models = [rollup_rows.model(number) for number in range(size.models)]

    async def run() -> None:
        transport = RabbitMQTransport(streams.config(url, STREAM))
        await transport.open()
        publisher = await transport.publisher("raw")
        due = time.monotonic()
        while True:
            due += 1 / BATCHES_A_SECOND
            count = rate // BATCHES_A_SECOND
            bodies = [body(rng.choice(orgs), rng.choice(models), 0.5, rng) for _ in range(count)]
            probed = []
            while not asked.empty():
                probed.append(asked.get())
            bodies += [body(orgs[number], PROBE_MODEL, PROBE_CENTS, rng) for number in probed]
            at = time.time()
            await publisher.publish(bodies)
            for number in probed:
                sent.put((number, at))
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    asyncio.run(run())


# --- measuring ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Sessions:
    """The CPU of the database's processes that serve one application. They may come and go."""

    url: str
    application: str
    total_s: float = 0.0
    _last: dict[int, float] = field(default_factory=dict)

    def sample(self) -> None:
        """Add what they have used since the last sample."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT client_port FROM pg_stat_activity WHERE application_name = %s", [self.application]
            ).fetchall()
        ports = [f"({port})".encode() for (port,) in found]
        now = {}
        for process in Path("/proc").glob("[0-9]*"):  # the numbers of the database are those of its namespace
            with suppress(OSError):
                title = (process / "cmdline").read_bytes()
                if title.startswith(b"postgres: ") and any(port in title for port in ports):
                    now[int(process.name)] = cpu_s(int(process.name))
        self.total_s += sum(used - self._last.get(pid, 0.0) for pid, used in now.items())
        self._last = now


@dataclass(slots=True)
class Measured:
    """What a run has found."""

    seconds: float
    process_s: float
    database_s: float
    probes: int
    latencies_s: list[float]
    webhooks: int
    looks: dict[str, float]

    def show(self) -> None:
        quantiles = ", ".join(
            f"p{100 * q:g} {percentile_ms(self.latencies_s, q) / 1000:.2f} s" for q in (0.5, 0.95, 0.99, 1)
        )
        print(
            f"from publishing to the webhook: {quantiles} ({len(self.latencies_s)} of {self.probes} probes)"
        )
        print(f"webhooks of all kinds in the {self.seconds:.0f} s: {self.webhooks}")
        for name, used in (
            ("spendstream alerts", self.process_s),
            ("its database sessions", self.database_s),
        ):
            print(f"CPU of {name}: {used:.1f} s, {used / self.seconds:.1%} of one core")
        for name, value in self.looks.items():
            print(f"{name} {value:g}", flush=True)


_LOOKS: Final = (
    "analytics_budgets_look_seconds_sum",
    "analytics_budgets_look_seconds_count",
    "analytics_budgets_judged_total",
    "analytics_budgets_read_total",
)


async def measure(
    alerts: processes.Process,
    sessions: Sessions,
    came: list[tuple[str, str, float]],
    size: Size,
    arguments: argparse.Namespace,
    queues: tuple[Any, Any],
) -> Measured:
    """Send probes for so many seconds, and wait for the last of their webhooks."""
    asked, sent = queues
    numbers = random.Random(5).sample(
        range(size.orgs), min(size.orgs, int(arguments.probes * arguments.seconds))
    )
    before = await asyncio.to_thread(processes.metrics, alerts)
    sessions.sample()
    first, used, database = len(came), cpu_s(alerts.process.pid), sessions.total_s
    started = time.monotonic()
    for count, number in enumerate(numbers, 1):
        asked.put(number)
        await asyncio.sleep(max(0.0, started + count / arguments.probes - time.monotonic()))
        await asyncio.to_thread(sessions.sample)
    seconds = time.monotonic() - started
    used, database = cpu_s(alerts.process.pid) - used, sessions.total_s - database
    after = await asyncio.to_thread(processes.metrics, alerts)
    webhooks = len(came) - first
    await asyncio.sleep(15)
    published = {}
    while not sent.empty():
        number, at = sent.get()
        published[str(rollup_rows.org(number))] = at
    arrived = {org: at for org, name, at in reversed(came) if name == PROBED}
    return Measured(
        seconds=seconds,
        process_s=used,
        database_s=database,
        probes=len(published),
        latencies_s=[arrived[org] - at for org, at in published.items() if org in arrived],
        webhooks=webhooks,
        looks={name: after[name] - before[name] for name in _LOOKS if name in after},
    )


@contextmanager
def publishing(url: str, size: Size, rate: int, queues: tuple[Any, Any]) -> Iterator[None]:
    """A process that publishes, until it is terminated."""
    process = multiprocessing.get_context("spawn").Process(
        target=publish, args=(url, size, rate, *queues), daemon=True
    )
    process.start()
    try:
        yield
        assert process.is_alive()
    finally:
        process.terminate()
        process.join()


async def run(stack: Stack, folder: Path, size: Size, arguments: argparse.Namespace) -> Measured:
    stack.start(("rabbitmq", "postgres"))
    url = stack.postgres.create_database("bench")
    migrate.upgrade(url)
    started = time.monotonic()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    rollup_rows.load(url, size, end=end)
    rollup_rows.price(url, changed_at=end - timedelta(days=3))
    rng = random.Random(7)
    usual = arguments.events * arguments.seconds / size.orgs
    budgets = add_budgets(url, size, rng, soon=arguments.soon * usual)
    print(f"loaded {size.rows:,} rows, {budgets:,} budgets in {time.monotonic() - started:.0f} s", flush=True)
    port, page = free_port(), free_port()
    add_webhooks(url, size, port)
    spawn = multiprocessing.get_context("spawn")
    queues = spawn.Queue(), spawn.Queue()
    broker = {**stack.rabbitmq.env, "RABBITMQ_STREAM": STREAM}
    alerts = processes.Process(
        "pipeline.cli",
        ["alerts"],
        env={
            "DATABASE_URL": url,
            "API_ALLOW_PRIVILEGED": "true",
            "WEBHOOK_KEY": KEY,
            "WEBHOOK_ALLOW_PRIVATE": "true",
            "ALERTS_METRICS_PORT": str(page),
        },
        log=folder / "alerts.log",
        ready=f"http://127.0.0.1:{page}/readyz",
    )
    with (
        processes.worker({**broker, "DATABASE_URL": url}, folder) as worker,
        publishing(stack.rabbitmq.env["RABBITMQ_URL"], size, arguments.events, queues),
    ):
        processes.wait_for(lambda: streams.offered(url) > arguments.events * 5, 120, worker.log)
        async with endpoint(port) as came:
            await asyncio.to_thread(alerts.start)
            try:
                await asyncio.sleep(arguments.warm)
                sessions = Sessions(url, "spendstream-alerts")
                return await measure(alerts, sessions, came, size, arguments, queues)
            finally:
                alerts.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orgs", type=int, default=1000, help="each has ten budgets")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--days", type=int, default=10, help="days of hour and day rows before the run")
    parser.add_argument("--events", type=int, default=3000, help="events a second")
    parser.add_argument("--probes", type=float, default=1.0, help="probes a second, of an org each")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm", type=float, default=20, help="seconds for the looks of the start")
    parser.add_argument(
        "--soon", type=float, default=10, help="1 of so many orgs crosses a budget by its usual events"
    )
    arguments = parser.parse_args()
    size = Size(orgs=arguments.orgs, models=arguments.models, days=arguments.days, client_days=1)
    with tempfile.TemporaryDirectory(prefix="spendstream-bench-alerts-") as folder:
        stack = Stack(Path(folder) / "stack", temporary=True)
        try:
            asyncio.run(run(stack, Path(folder), size, arguments)).show()
        finally:
            stack.stop(purge=True)


if __name__ == "__main__":
    main()
