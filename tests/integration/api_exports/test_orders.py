"""Exports: the file says what REST says; orders, links, schedules and their bounds."""

import csv
import hashlib
import io
import json
import re
import time
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import focus
from tests.support.access import ENV, new_key, with_key
from tests.support.api_facts import (
    MODELS,
    NEIGHBOUR,
    NOW,
    ORG,
    WATERMARKS,
    figures,
    rfc3339,
    summed,
)
from tests.support.api_server import BASE, Api, served
from tests.support.export_servers import OCTOBER, ORDERS, RECENT, STRANGER_ORG, server_runner
from tests.support.exports import EXPORTS, downloaded, ended, expected_rows, made, order, rows_of


@pytest.mark.parametrize("body", ORDERS, ids=lambda body: f"{body['format']}-{body['granularity']}")
def test_the_file_is_what_was_counted_and_what_rest_says(server: Api, body: dict[str, Any]) -> None:
    job = made(server, body)
    assert job["status"] == "succeeded", job
    data = downloaded(server, job)
    rows = rows_of(body, data)
    assert rows == expected_rows(body)
    assert len(rows) > 5
    assert job["byteCount"] == len(data)
    lines = len(focus.rows_of(data)) if body["format"].startswith("focus") else len(rows)
    assert job["rowCount"] == lines
    assert job["checksum"] == hashlib.sha256(data).hexdigest()
    watermark = min(WATERMARKS.values())
    assert job["watermark"] == rfc3339(watermark)
    end = datetime.fromisoformat(body["timeRange"]["end"])
    assert job["final"] is (end + timedelta(days=1) <= watermark)
    query = {**body["timeRange"], "modelId": body.get("models", []), "groupBy": "none"}
    totals = server.ok(f"{BASE}/orgs/{ORG}/usage", query)["totals"]
    assert summed(rows.values()) == figures(totals)


def test_focus_has_the_mandatory_columns_and_sane_periods(server: Api) -> None:
    job = made(server, {"timeRange": RECENT, "granularity": "monthly", "format": "focus-1.2"})
    rows = list(csv.DictReader(io.StringIO(downloaded(server, job).decode(), newline="")))
    mandatory = re.findall(
        r"\w+",
        "BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart"
        " ChargeCategory ChargeClass ChargeDescription ChargePeriodEnd ChargePeriodStart ContractedCost"
        " EffectiveCost InvoiceIssuerName ListCost PricingQuantity PricingUnit ProviderName PublisherName"
        " ServiceCategory ServiceName",
    )
    assert set(mandatory) <= set(rows[0])
    periods = {(r["BillingPeriodStart"], r["BillingPeriodEnd"]) for r in rows}
    assert periods == {
        ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
    }
    charges = {(r["ChargePeriodStart"], r["ChargePeriodEnd"]) for r in rows}
    assert charges == {
        (RECENT["start"], "2026-11-01T00:00:00Z"),
        ("2026-11-01T00:00:00Z", RECENT["end"]),
    }
    assert {r["ServiceCategory"] for r in rows} == {"AI and Machine Learning"}
    assert {r["BillingAccountId"] for r in rows} == {str(ORG)}


def test_a_file_is_final_once_the_watermark_is_a_dedupe_window_past_its_end(server: Api) -> None:
    end = min(WATERMARKS.values()) - timedelta(days=1)
    end = end.replace(minute=0, second=0, microsecond=0)
    for hours, final in ((0, True), (1, False)):
        until = end + timedelta(hours=hours)
        span = {"start": rfc3339(until - timedelta(hours=2)), "end": rfc3339(until)}
        status, ordered = order(server, {"timeRange": span, "granularity": "hourly"})
        assert (status, ordered["final"]) == (202, None)
        job = ended(server, ordered)
        assert job["final"] is final
        points = server.ok(f"{BASE}/orgs/{ORG}/usage", {**span, "granularity": "hour"})["series"]
        assert all(point["final"] for point in points) is final


def test_an_export_of_nothing_is_a_header(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "models": [str(NEIGHBOUR)]})
    assert (job["status"], job["rowCount"]) == ("succeeded", 0)
    assert downloaded(server, job).count(b"\n") == 1


def test_the_same_key_orders_once_and_never_something_else(server: Api) -> None:
    body = {"timeRange": OCTOBER}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    status, first = order(server, body, key)
    assert status == 202
    assert order(server, {**body, "granularity": "daily", "format": "csv"}, key)[1]["jobId"] == first["jobId"]
    status, problem = order(server, {**body, "granularity": "monthly"}, key)
    assert (status, problem["type"]) == (409, "urn:spendstream:problem:conflict")
    other = order(server, body, key, f"{BASE}/orgs/{NEIGHBOUR}/exports")[1]
    assert other["jobId"] != first["jobId"]
    for bad in ("", "a b", "é", "x" * 201):
        assert order(server, body, {"Idempotency-Key": bad.encode().decode("latin-1")})[0] == 400
    ended(server, first)
    assert order(server, body, key)[1]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ([], {""}),
        ({}, {"timeRange"}),
        ({"timeRange": {"start": "x", "end": 5}}, {"timeRange.start", "timeRange.end"}),
        (
            {"timeRange": {"start": "2026-10-01T00:30:00Z", "end": "2026-10-02T00:00:00Z"}},
            {"timeRange.start"},
        ),
        ({"timeRange": {"start": OCTOBER["end"], "end": OCTOBER["start"]}}, {"timeRange.end"}),
        (
            {"timeRange": {"start": "2020-10-01T00:00:00Z", "end": "2020-11-01T00:00:00Z"}},
            {"timeRange.start"},
        ),
        (
            {"timeRange": {**OCTOBER, "end": "2026-11-01T01:00:00Z"}, "granularity": "hourly"},
            {"timeRange.end"},
        ),
        ({"timeRange": {**OCTOBER, "end": "2027-11-01T01:00:00Z"}}, {"timeRange.end"}),
        (
            {"timeRange": OCTOBER, "granularity": "day", "format": "xls", "models": ["x"], "colour": 1}
            | {"groupBy": "none,model", "dimensions": ["team"]},
            {"granularity", "format", "models", "colour", "groupBy", "dimensions[0]"},
        ),
    ],
)
def test_every_fault_of_an_order_is_named(server: Api, body: Any, fields: set[str]) -> None:
    status, problem = order(server, body)
    assert status == 400
    assert {fault["field"] for fault in problem["errors"]} == fields


def test_jobs_are_listed_newest_first_in_pages_of_one_org(server: Api) -> None:
    for _ in range(3):
        made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    whole = server.ok(EXPORTS)["items"]
    assert len(whole) >= 3
    assert whole == sorted(whole, key=lambda j: (j["createdAt"], j["jobId"]), reverse=True)
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = server.ok(EXPORTS, {"limit": 2, **cursor})
        items += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert items == whole
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports", cursor)[0] == 400
    assert all(job["orgId"] == str(ORG) for job in items)
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports/{items[0]['jobId']}")[0] == 404
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports/{items[0]['jobId']}/download")[0] == 404


def test_a_link_is_good_only_as_it_was_signed(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    _, headers, _ = server.request("GET", f"{EXPORTS}/{job['jobId']}/download")
    path, _, query = headers["Location"].partition("?")
    fields = dict(part.split("=") for part in query.split("&"))
    assert 86_000 < int(fields["expires"]) - time.time() <= 86_400
    assert server.request("GET", path, fields)[0] == 200
    for change in (
        {"expires": str(int(fields["expires"]) + 1)},
        {"expires": "1"},
        {"signature": fields["signature"][:-1] + "x"},
        {"signature": "é"},
    ):
        assert server.get(path, fields | change)[0] == 403
    other = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    assert server.get(path.replace(job["jobId"], other["jobId"]), fields)[0] == 403
    assert server.get(path)[0] == 400


def test_a_page_gets_a_shorter_link_in_the_answer(server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    link = server.ok(f"{EXPORTS}/{job['jobId']}/link")
    assert datetime.fromisoformat(link["expiresAt"]) == NOW + timedelta(minutes=10)
    path, _, query = link["url"].partition("?")
    fields = dict(part.split("=") for part in query.split("&"))
    assert 500 < int(fields["expires"]) - time.time() <= 600
    status, headers, file = server.request("GET", path, fields)
    assert (status, file) == (200, downloaded(server, job))
    assert headers["Content-Disposition"].startswith("attachment")
    assert server.get(f"{BASE}/orgs/{NEIGHBOUR}/exports/{job['jobId']}/link")[0] == 404


def test_roles_of_exports_are_three(env: dict[str, str], database_url: str) -> None:
    keys = {
        name: with_key(new_key(database_url, ORG, f"analytics:exports:{name}"))
        for name in ("create", "read", "download")
    }
    with served({**env, **ENV}, NOW) as server:
        status, job = order(server, {"timeRange": OCTOBER}, keys["create"])
        assert status == 202
        path = f"{EXPORTS}/{job['jobId']}"
        for name, key in keys.items():
            assert (order(server, {"timeRange": OCTOBER}, key)[0] == 202) == (name == "create")
            assert (server.get(EXPORTS, headers=key)[0] == 200) == (name == "read")
            assert (server.get(path, headers=key)[0] == 200) == (name == "read")
            assert (server.request("GET", f"{path}/download", headers=key)[0] in (302, 409)) == (
                name == "download"
            )
            assert (server.get(f"{path}/link", headers=key)[0] in (200, 409)) == (name == "download")


def test_an_org_can_wait_for_so_many_exports_and_no_more(env: dict[str, str], database_url: str) -> None:
    path = f"{BASE}/orgs/{STRANGER_ORG}/exports"
    with served({**env, "EXPORT_IN_API": "false", "EXPORT_OPEN_MAX": "2"}, NOW) as server:
        for _ in range(2):
            assert order(server, {"timeRange": OCTOBER}, path=path)[0] == 202
        status, problem = order(server, {"timeRange": OCTOBER}, path=path)
        assert (status, "EXPORT_OPEN_MAX" in problem["detail"]) == (429, True)
        another = f"{BASE}/orgs/{uuid.uuid4()}/exports"
        assert order(server, {"timeRange": OCTOBER}, path=another)[0] == 202  # it has room of its own
        pending = server.ok(path)["items"][0]
        assert server.get(f"{path}/{pending['jobId']}/download")[0] in (404, 409)
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM analytics.export_jobs WHERE status IN ('pending', 'running')")


def test_without_a_place_for_files_an_order_is_refused(env: dict[str, str]) -> None:
    with served({**env, "EXPORT_DIR": ""}, NOW) as server:
        status, problem = order(server, {"timeRange": OCTOBER})
        assert (status, "EXPORT_DIR" in problem["detail"]) == (503, True)


def test_a_file_has_its_time(env: dict[str, str], database_url: str, server: Api) -> None:
    job = made(server, {"timeRange": OCTOBER, "granularity": "monthly"})
    file = Path(env["EXPORT_DIR"]) / job["outputUri"].removeprefix("file:")
    assert file.exists()
    assert job["expiresAt"] == rfc3339(NOW + timedelta(days=7))
    runner = server_runner(env, NOW + timedelta(days=7, seconds=1))
    with psycopg.connect(database_url, autocommit=True) as connection:
        runner.expire(connection)
    assert not file.exists()
    job = server.ok(f"{EXPORTS}/{job['jobId']}")
    assert (job["status"], job["outputUri"]) == ("expired", None)
    assert server.get(f"{EXPORTS}/{job['jobId']}/download")[0] == 404


def test_a_month_is_exported_once_when_it_is_final(
    env: dict[str, str], database_url: str, server: Api
) -> None:
    path = f"{BASE}/orgs/{ORG}/export-schedule"
    assert server.get(path)[0] == 404
    body = {"granularity": "daily", "format": "focus-1.2", "models": [str(MODELS[1])]}
    status, _, answer = server.request("PUT", path, body=json.dumps(body).encode())
    assert (status, json.loads(answer)["format"]) == (200, "focus-1.2")
    assert server.ok(path)["models"] == [str(MODELS[1])]
    assert server.request("PUT", path, body=b'{"format": "xls"}')[0] == 400

    def scheduled() -> list[Any]:
        with psycopg.connect(database_url) as connection:
            return connection.execute(
                "SELECT format, range_start, range_end FROM analytics.export_jobs"
                " WHERE created_by = 'schedule'"
            ).fetchall()

    with psycopg.connect(database_url, autocommit=True) as connection:
        # The slowest partition is at 10 November: October is final, November will be in December.
        server_runner(env, datetime(2026, 12, 1, tzinfo=UTC)).schedule(connection)
        assert scheduled() == []
        for _ in range(2):
            for now in (NOW, NOW + timedelta(days=3)):
                server_runner(env, now).schedule(connection)
    october = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    assert scheduled() == [("focus-1.2", *october)]
    for _ in range(2):
        assert server.request("DELETE", path)[0] == 204
    assert server.get(path)[0] == 404
    job = next(j for j in server.ok(EXPORTS)["items"] if j["format"] == "focus-1.2" and j["models"])
    assert ended(server, job)["status"] == "succeeded"


def runs(cell: str) -> bool:
    """Would a spreadsheet run it? Blanks that nobody sees and quotation marks are passed over, too."""
    for character in cell:
        if not (character.isspace() or character == '"' or unicodedata.category(character) in ("Cc", "Cf")):
            return unicodedata.normalize("NFKC", character) in tuple("=+-@|%")
    return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.text(st.sampled_from("a=+-@|%＝ \t\n\r,;\"'\u00a0\u200b\ufeff1"), max_size=9), max_size=30)
)
def test_no_part_of_a_cell_runs_whatever_the_spreadsheet_splits_at(
    embedded_postgres_url: str, names: list[str]
) -> None:
    from api.exports import cells

    with psycopg.connect(embedded_postgres_url) as connection:
        shown = [
            text or ""
            for (text,) in connection.execute(
                f"SELECT {cells.cell('name')} FROM unnest(%s::text[]) WITH ORDINALITY AS n (name, place)"
                " ORDER BY place",
                (names,),
            )
        ]
    for name, text in zip(names, shown, strict=True):
        assert text.replace("'", "") == name.replace("'", ""), "only apostrophes are added"
        for separators in (",", ";", "|", "\t", "\n", "\r", '"', ',;|\t\n\r"'):
            parts = re.split(f"[{re.escape(separators)}]", text)
            assert not any(runs(part) for part in parts), (name, text)
