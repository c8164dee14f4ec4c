"""Ordering exports, waiting for them, and reading the rows of their files."""

import codecs
import csv
import io
import json
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq

from tests.support import focus
from tests.support.api_facts import (
    KINDS,
    ORG,
    Event,
    Figures,
    bucket_of,
    expected,
    random_events,
    rfc3339,
)
from tests.support.api_server import BASE, Client

COUNTS = ("invocations", "inputTokens", "outputTokens", *KINDS, "unpricedInvocations")
"""The counts of a row in the order of `Figures`."""
GRANULARITIES = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month"}
"""What REST calls the granularities of orders."""
EXPORTS = f"{BASE}/orgs/{ORG}/exports"
EVIL = {
    '=HYPERLINK("http://evil")': """'=HYPERLINK("http://evil")""",
    "+1": "'+1",
    "-2+3": "'-2+3",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t'=1",
    " \n=1": "' \n'=1",
    "＝1": "'＝1",
    'quo"te, comma\nline': 'quo"te, comma\nline',
    "a;=cmd|'/C calc'!A0;b": "a;'=cmd|'/C calc'!A0;b",
    "a| |-1": "a|' |'-1",
}
"""Client ids that a spreadsheet would run as formulas, and the harmless text that the export writes."""


def with_evil_clients(events: Sequence[Event]) -> list[Event]:
    """The events, with a fifth of them given to clients of `EVIL`."""
    return [
        replace(e, client=list(EVIL)[i // 5 % len(EVIL)]) if i % 5 == 0 else e for i, e in enumerate(events)
    ]


EVENTS = with_evil_clients(random_events(2500, seed=12))


def order(
    server: Client, body: Mapping[str, Any], headers: Mapping[str, str] = {}, path: str = EXPORTS
) -> tuple[int, Any]:
    """Order an export; returns status and body of the answer."""
    status, _, answer = server.request("POST", path, headers=headers, body=json.dumps(body).encode())
    return status, json.loads(answer)


def made(server: Client, body: Mapping[str, Any], path: str = EXPORTS) -> Any:
    """Order an export and wait for its end; returns the job."""
    status, job = order(server, body, path=path)
    assert (status, job["status"]) == (202, "pending"), job
    return ended(server, job, path)


def ended(server: Client, job: Any, path: str = EXPORTS) -> Any:
    """Wait until a job has ended, well or badly."""
    deadline = time.monotonic() + 300
    while job["status"] in ("pending", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
        job = server.ok(f"{path}/{job['jobId']}")
    return job


def downloaded(server: Client, job: Any, path: str = EXPORTS) -> bytes:
    """Download the file of a job, from the API itself or from the bucket."""
    status, headers, _ = server.request("GET", f"{path}/{job['jobId']}/download")
    assert status == 302
    if headers["Location"].startswith("http"):
        with urllib.request.urlopen(headers["Location"]) as answer:
            return bytes(answer.read())
    status, headers, body = server.request("GET", headers["Location"])
    assert status == 200
    assert headers["Content-Disposition"].startswith("attachment")
    return body


def shown_client(client: str) -> str:
    """A client id as csv-excel writes it."""
    return EVIL.get(client, client)


def rows_of(body: Mapping[str, Any], data: bytes) -> dict[Any, Figures]:
    """The figures of an export file, by (bucket, model, client)."""
    if body["format"] == "parquet":
        table = pq.read_table(io.BytesIO(data))
        return {
            (rfc3339(r["bucketStart"]), r["modelId"], r["clientId"] or ""): (
                *(r[name] for name in COUNTS),
                r["costAmount"],
            )
            for r in table.to_pylist()
        }
    if body["format"].startswith("focus"):
        return _focus_rows(body, data)
    found = {}
    encoding = "utf-8-sig" if body["format"] == "csv-excel" else "utf-8"
    assert data.startswith(codecs.BOM_UTF8) == (body["format"] == "csv-excel")
    for r in csv.DictReader(io.StringIO(data.decode(encoding), newline="")):
        assert r["costCurrency"] == "USD"
        key = (r["bucketStart"], r["modelId"], r["clientId"])
        found[key] = (
            *(int(r[name]) for name in COUNTS),
            Decimal(r["costAmount"]) if r["costAmount"] else None,
        )
    return found


def bucket_in(body: Mapping[str, Any], at: datetime) -> datetime:
    """The start of the bucket of an order that holds an instant."""
    return bucket_of(at, GRANULARITIES[body["granularity"]], body.get("timeZone", "UTC"))


def expected_rows(body: Mapping[str, Any]) -> dict[Any, Figures]:
    """What the file of an order must say, by a naive count of `EVENTS`: as `rows_of`."""
    start, end = (datetime.fromisoformat(body["timeRange"][name]) for name in ("start", "end"))
    by_client = "client" in body.get("groupBy", "client") and not body["format"].startswith("focus")
    groups = defaultdict(list)
    for e in EVENTS:
        chosen = not body.get("models") or str(e.model) in body["models"]
        if e.org == ORG and start <= e.at < end and chosen:
            client = e.client if by_client else ""
            shown = client if body["format"] == "parquet" else shown_client(client)
            groups[rfc3339(bucket_in(body, e.at)), str(e.model), shown].append(e)
    return {key: expected(group) for key, group in groups.items()}


def _focus_rows(body: Mapping[str, Any], data: bytes) -> dict[Any, Figures]:
    """The figures of each bucket and model; FOCUS files have no clients."""
    found = {}
    for (start, model), rows in focus.by_bucket(focus.rows_of(data)).items():
        counts = focus.counts(rows)
        cost = None if counts[0] == counts[-1] else focus.total(rows)
        assert cost is not None or not focus.total(rows), "FOCUS has no unknown cost: it is 0"
        bucket = rfc3339(bucket_in(body, datetime.fromisoformat(start)))
        found[bucket, model, ""] = (*counts, cost)
    return found
