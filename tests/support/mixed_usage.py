"""A ledger's count of a mix with small caps, so that `other` is in play, and readers of its files.

Some models have prices, and the org has adjustments and names.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pyarrow.parquet as pq

from pipeline.admin import names as naming
from pipeline.common.names import Naming
from tests.support import focus, mix
from tests.support.api_facts import Figures, floor, rfc3339
from tests.support.api_server import BASE, Api
from tests.support.dimensions import NOW, NOW_US, RULES, count
from tests.support.exports import COUNTS, GRANULARITIES, bucket_in, downloaded, made
from tests.support.price_books import price, write

MIX: Final = mix.make(3000, seed=77, now_us=NOW_US, orgs=2, models=6, late=0.1)
ORG: Final = MIX.orgs[0]
EXPORTS: Final = f"{BASE}/orgs/{ORG}/exports"
DAYS: Final = {"start": "2026-11-09T00:00:00Z", "end": "2026-11-11T00:00:00Z"}


def load(url: str) -> None:
    """Count the mix in a migrated database, and price half of the models' labels."""
    asyncio.run(count(url, MIX.bodies, RULES))
    with psycopg.connect(url, autocommit=True) as connection:
        labels = connection.execute(
            "SELECT DISTINCT provider, model_name FROM analytics.models_seen"
            " WHERE org_id = %s AND provider <> '' AND model_name <> ''",
            (ORG,),
        ).fetchall()
        priced = [
            price(provider=provider, model_name=name, kind=kind, rate=Decimal(rate))
            for provider, name in sorted(labels)[::2]
            for kind, rate in (("input", "2.5"), ("output", "10"))
        ]
        assert priced
        write(connection, [priced])
        connection.execute(
            "INSERT INTO analytics.adjustments (org_id, kind, amount, period_start, period_end, reason,"
            " recorded_by) VALUES (%s, 'credit', -12.5, %s, %s, 'outage', 'test')",
            (ORG, floor(NOW, "hour") - timedelta(hours=10), floor(NOW, "hour")),
        )
    for dimension, value in (("team", "search"), ("client", "key-1")):
        named: dict[str, str | None] = {value: f"=The {value}"}
        naming.change(url, Naming(org_id=UUID(ORG), dimension=dimension, names=named))


def environment(login: str, folder: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": login,
        "API_ALLOW_PRIVILEGED": "false",
        "API_RATE_LIMIT": "0",  # a failing example is tried again and again until it is small
        "EXPORT_DIR": str(folder),
    }


def lines_of(body: Any, data: bytes) -> list[dict[str, Any]]:
    """The lines of a csv or parquet file, with texts and numbers alike: nothing for null."""
    if body["format"] == "parquet":
        found = pq.read_table(io.BytesIO(data)).to_pylist()
        return [{name: "" if cell is None else cell for name, cell in line.items()} for line in found]
    text = data.decode("utf-8-sig" if body["format"] == "csv-excel" else "utf-8")
    return [dict(line) for line in csv.DictReader(io.StringIO(text, newline=""))]


def plain(text: str | None) -> str:
    """A text without the apostrophes that keep a spreadsheet from running it; ours have no others."""
    return (text or "").replace("'", "")


def usage_of(body: Any, data: bytes) -> dict[Any, Figures]:
    """The figures of usage in a file by bucket, model and value (or client)."""
    if body["format"].startswith("focus"):
        return focus_usage(body, data)
    found = {}
    for line in lines_of(body, data):
        if line["lineType"] == "usage":
            bucket = line["bucketStart"]
            bucket = bucket if isinstance(bucket, str) else rfc3339(bucket)
            key = bucket, line["modelId"], plain(line.get("value") or line["clientId"])
            assert key not in found
            cost = None if line["costAmount"] == "" else Decimal(line["costAmount"])
            found[key] = (*(int(line[name]) for name in COUNTS), cost)
    return found


def focus_usage(body: Any, data: bytes) -> dict[Any, Figures]:
    groups: dict[Any, list[focus.Row]] = defaultdict(list)
    for row in focus.rows_of(data):
        tags = json.loads(row.get("Tags") or "{}")
        groups[row["ChargePeriodStart"], row["x_ModelId"], plain("".join(tags.values()))].append(row)
    found = {}
    for (start, model, value), rows in groups.items():
        counts = focus.counts(rows)
        cost = None if counts[0] == counts[-1] else focus.total(rows)
        found[rfc3339(bucket_in(body, datetime.fromisoformat(start))), model, value] = (*counts, cost)
    return found


def asked_of_rest(body: Any, **more: Any) -> dict[str, Any]:
    """The question of REST that asks for the same as an order."""
    return {
        **body["timeRange"],
        "granularity": GRANULARITIES[body["granularity"]],
        "timeZone": body["timeZone"],
        "groupBy": body["groupBy"],
        "modelId": body.get("models", []),
        "dimension": body.get("dimensions", []),
        "limit": 10_000,
        **more,
    }


def file_of(server: Api, body: Any) -> bytes:
    job = made(server, body, EXPORTS)
    assert job["status"] == "succeeded", job
    for name in ("groupBy", "dimensions", "timeZone"):
        assert job[name] == body.get(name, job[name])
    return downloaded(server, job, EXPORTS)
