"""``spendstream prices`` on a real database: imports, corrections, and what the audit log says of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.common.actor import actor
from pipeline.prices import book, csv_file
from tests.support import migrated
from tests.support.spend_rows import DAY, MODELS, ORGS, add_classes, add_label

ORG = "00000000-0000-4000-8000-00000000000a"
CSV = """provider,model_name,service_tier,context_from,kind,rate,currency,valid_from,valid_to,org_id
openai,gpt-5,,,input,1.25,USD,2026-01-01,,
openai,gpt-5,,,output,10,USD,2026-01-01,,
openai,gpt-5,,200001,input,2.5,USD,2026-01-01,,
openai,gpt-5,batch,,input,0.625,USD,2026-01-01,,
openai,gpt-5,batch,,output,5,USD,2026-01-01,,
,,,,discount,10,,2026-02-01,,00000000-0000-4000-8000-00000000000a
"""

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str) -> Run:
    """Runs ``spendstream prices …``; `code` is the exit code that is expected."""

    def run(*arguments: object, code: int = 0) -> Result:
        environment = {"DATABASE_URL": database_url}
        result = CliRunner().invoke(main, ["prices", *map(str, arguments)], env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    return path


def audited(connection: psycopg.Connection[Any]) -> list[tuple[str, str | None, dict[str, Any]]]:
    rows = connection.execute(
        "SELECT action, org_id::text, detail FROM analytics.audit_log ORDER BY id"
    ).fetchall()
    return [(action, org, detail) for action, org, detail in rows]


def state(connection: psycopg.Connection[Any]) -> list[Any]:
    """Everything that an import could change, with the transactions that wrote it."""
    return [
        connection.execute(f"SELECT xmin::text, t::text FROM analytics.{table} AS t ORDER BY 2").fetchall()
        for table in ("prices", "price_sheets", "audit_log")
    ]


def test_the_same_import_a_second_time_changes_nothing(
    run: Run, file: Path, connection: psycopg.Connection[Any]
) -> None:
    assert "6 prices read, 6 would be appended; version 0" in run("import", "csv", file, "--dry-run").output
    assert state(connection) == [[], [], []]
    assert "6 prices read, 6 appended; version 6" in run("import", "csv", file).output
    before = state(connection)
    assert "6 prices read, 0 appended; version 6" in run("import", "csv", file).output
    assert state(connection) == before
    [(action, org, detail)] = audited(connection)
    assert (action, org, detail["rows"], detail["version"]) == ("prices.import", None, 6, 6)


def test_a_faulty_line_is_named_and_nothing_is_imported(
    run: Run, file: Path, connection: psycopg.Connection[Any]
) -> None:
    file.write_text(CSV + "openai,gpt-6,,,input,-1,USD,2026-01-01T00:30:00Z,,\n")
    result = run("import", "csv", file, code=1)
    assert result.output.splitlines() == [
        "line 8: rate -1 is negative",
        "line 8: valid_from 2026-01-01T00:30:00+00:00 is not a whole hour of UTC",
        f"Error: {file} has 2 faults: nothing was imported",
    ]
    assert state(connection) == [[], [], []]
    assert run("import", "csv", file.with_name("none.csv"), code=1).output.startswith("Error: No such file")
    for arguments in (("csv",), ("genai-prices", file), ("litellm",)):
        run("import", *arguments, code=2)


def test_a_price_is_set_shown_and_retracted(
    run: Run, file: Path, connection: psycopg.Connection[Any]
) -> None:
    run("import", "csv", file)
    dear = ("set", "--provider", "openai", "--model", "gpt-5", "--kind", "input", "--rate", "1.5")
    since = (*dear, "--from", "2026-03-01", "--to", "2026-03-01T05:00")
    assert "version 7" in run(*since, "--basis", "invoice 9").output
    assert "the book says so already" in run(*since).output

    def inputs(*options: object) -> list[tuple[str, int, str, str]]:
        lines = run("show", "gpt-5", "--json", *options).output.splitlines()
        return [
            (row["service_tier"], row["context_from"], row["valid_from"][:13], row["input"])
            for row in map(json.loads, lines)
            if row["org_id"] is None or "--org" in options
        ]

    def shown(*options: object) -> list[dict[str, Any]]:
        rows = map(json.loads, run("show", "gpt-5", "--json", *options).output.splitlines())
        return [row for row in rows if row["org_id"] is None]

    standard = [("standard", 0, "2026-01-01T00", "1.25"), ("standard", 0, "2026-03-01T00", "1.5")]
    standard += [("standard", 0, "2026-03-01T05", "1.25"), ("standard", 200_001, "2026-01-01T00", "2.5")]
    assert inputs() == [("batch", 0, "2026-01-01T00", "0.625"), *standard]
    assert ("batch", 0, "2026-02-01T00", "0.5625") in inputs("--org", ORG)
    assert "gpt-5 standard, 200001 tokens and more, from 2026-01-01" in run("show", "gpt-5").output
    assert [row["input"] for row in shown("--at", "2026-03-01T04:00")] == ["0.625", "1.5", "2.5"]
    assert [row["input"] for row in shown("--now")] == ["0.625", "1.25", "2.5"]
    run("show", "gpt-5", "--now", "--at", "2026-03-01", code=2)
    assert "of 'gpt-5' at 2025-03-01 00:00" in run("show", "gpt-5", "--at", "2025-03-01", code=1).output
    would = run("retract", 7, "--reason", "a wrong invoice", "--dry-run").output
    assert would.startswith("7 openai gpt-5 standard input 1.5 USD a million, from 2026-03-01 up to")
    assert would.endswith("1 price would be retracted; version 7\n")
    assert "version 8" in run("retract", 7, "--reason", "a wrong invoice").output
    assert inputs() == [("batch", 0, "2026-01-01T00", "0.625"), standard[0], standard[3]]
    assert inputs("--version", 7) == [("batch", 0, "2026-01-01T00", "0.625"), *standard]
    for number, message in (
        (7, "retracted already, by row 8"),
        (8, "itself a retraction"),
        (99, "no row 99"),
    ):
        assert message in run("retract", number, "--reason", "x", code=1).output
    run("retract", 1, "--reason", " ", code=2)
    assert "no model 'gpt-4'" in run("show", "gpt-4", code=1).output
    assert [action for action, _, _ in audited(connection)] == [
        "prices.import",
        "prices.set",
        "prices.retract",
    ]
    assert audited(connection)[1][2]["price"]["basis"] == "invoice 9"
    half = run(*dear, "--from", "2026-03-01T00:30", code=2).output
    assert "--from 2026-03-01T00:30:00+00:00 is not a whole hour of UTC" in half
    discount = ("set", "--kind", "discount", "--rate", "10", "--from", "2026-03-01")
    assert "a discount belongs to an org: --org is missing" in run(*discount, code=2).output
    assert "give no --tier" in run(*discount, "--org", ORG, "--tier", "batch", code=2).output
    run("set", "--kind", "discount", "--rate", "12.5", "--from", "2026-03-01", "--org", ORG)
    assert audited(connection)[-1][1] == ORG


def test_a_rate_or_a_version_that_is_no_number_is_a_wrong_argument(run: Run) -> None:
    since = ("--provider", "p", "--model", "m", "--kind", "input", "--from", "2026-01-01")
    for rate in ("NaN", "Infinity", "1_000", "٣", "", "0.30000000000000004", "1e999", "-1"):
        run("set", *since, f"--rate={rate}", code=2)
    run("set", *since, "--rate", "1", "--context-from", 10**13, code=2)
    for command in (("list",), ("show", "m"), ("export",)):
        run(*command, "--version", 2**63, code=2)
    assert "input 0 USD" in run("set", *since, "--rate=-0").output


def test_an_import_is_undone(run: Run, file: Path, connection: psycopg.Connection[Any]) -> None:
    sheets = "SELECT s::text FROM analytics.price_sheets AS s ORDER BY 1"
    run("import", "csv", file)
    before = connection.execute(sheets).fetchall()
    file.write_text(CSV.replace(",1.25,", ",9,").replace("gpt-5,batch", "gpt-6,batch"))
    assert "3 appended; version 9" in run("import", "csv", file).output
    run("retract", 8, "--reason", "this one first")
    undo = ("retract", "--after", 6, "--reason", "not ours")
    origin, would = run(*undo, "--dry-run").output.splitlines()
    assert (origin, would) == (
        "2 from csv of openai, for everyone",
        "2 prices would be retracted; version 10",
    )
    imported = connection.execute(sheets).fetchall()
    refused = run(*undo, code=1).output
    assert "retract these 2 prices? [y/N]" in refused
    assert "nothing was changed; --yes goes on without asking" in refused
    assert connection.execute(sheets).fetchall() == imported != before
    done = run(*undo, "--yes").output
    assert "2 prices are retracted; version 12" in done
    assert connection.execute(sheets).fetchall() == before
    assert "spendstream prices export --version 10 --output back.csv" in done
    action, org, detail = audited(connection)[-1]
    assert (action, org) == ("prices.retract", None)
    assert detail == {"after": 6, "rows": 2, "reason": "not ours", "version": 12}
    assert "no price that counts" in run("retract", "--after", 6, "--reason", "x", code=1).output
    run("export", "--version", 10, "--output", file.with_name("back.csv"))
    run("import", "csv", file.with_name("back.csv"))
    assert connection.execute(sheets).fetchall() == imported
    run("retract", "--reason", "x", code=2)
    run("retract", 1, "--after", 6, "--reason", "x", code=2)


def test_a_database_without_the_tables_says_what_to_do(embedded_postgres_url: str) -> None:
    result = CliRunner().invoke(main, ["prices", "list"], env={"DATABASE_URL": embedded_postgres_url})
    assert result.exit_code == 1
    assert result.output.startswith("Error: run `spendstream migrate` first: relation ")


def test_the_list_has_filters(run: Run, file: Path) -> None:
    run("import", "csv", file)
    run("retract", 1, "--reason", "x")

    def ids(*options: object) -> list[int]:
        return [json.loads(line)["id"] for line in run("list", "--json", *options).output.splitlines()]

    assert ids() == [2, 3, 4, 5, 6]
    assert ids("--all") == [1, 2, 3, 4, 5, 6, 7]
    assert ids("--version", 6) == [1, 2, 3, 4, 5, 6]
    assert ids("--tier", "batch") == [4, 5]
    assert ids("--kind", "input", "--model", "gpt-5", "--provider", "openai") == [3, 4]
    assert ids("--org", ORG) == [6]
    assert ids("--at", "2026-01-31") == [2, 3, 4, 5]
    assert ids("--limit", 2) == [2, 3]
    lines = run("list", "--all").output.splitlines()
    assert lines[2].startswith(
        "3 openai gpt-5 standard from 200001 tokens input 2.5 USD a million, from 2026-01-01 [csv] (mine.csv)"
        f", by {actor()} 20"
    )
    assert lines[0].endswith("[retracted by 7]")
    assert lines[-2].startswith(f"7 retracts 1: x, by {actor()} 2")
    assert lines[-1] == "version 7"
    assert run("list", "--version", 6).output.splitlines()[-1] == "version 6"


def test_what_is_exported_reads_back_unchanged(
    run: Run, file: Path, tmp_path: Path, embedded_postgres: Any, connection: psycopg.Connection[Any]
) -> None:
    run("import", "csv", file)
    options = ("--provider", "openai", "--model", "gpt-5", "--kind", "input", "--from", "2026-01-01")
    run("set", *options, "--rate", "1.3")  # the same key and time once more: a correction
    run("set", *options, "--rate", "1.4", "--to", "2026-01-05")
    exported = tmp_path / "exported.csv"
    assert "7 prices of version 8" in run("export", "--output", exported).output
    before = state(connection)
    assert "7 prices read, 0 appended; version 8" in run("import", "csv", exported).output
    assert state(connection) == before
    assert "6 prices of version 6" in run("export", "--version", 6).output

    sheets = "SELECT s::text FROM analytics.price_sheets AS s ORDER BY 1"
    embedded_postgres.psql("CREATE DATABASE prices_elsewhere")
    elsewhere = embedded_postgres.get_uri("prices_elsewhere")
    try:
        migrated.upgrade(elsewhere)
        result = CliRunner().invoke(
            main, ["prices", "import", "csv", str(exported)], env={"DATABASE_URL": elsewhere}
        )
        assert result.exit_code == 0, result.output
        with psycopg.connect(elsewhere) as other:
            other.execute("SET timezone = 'UTC'")
            assert other.execute(sheets).fetchall() == connection.execute(sheets).fetchall()
    finally:
        embedded_postgres.psql("DROP DATABASE prices_elsewhere WITH (FORCE)")


def test_importers_at_once_append_every_price_once(
    file: Path, database_url: str, connection: psycopg.Connection[Any]
) -> None:
    prices = csv_file.read(file)

    def once(_: int) -> int:
        with book.connected(database_url) as own:
            done = book.add(own, prices, action="prices.import", title="csv")
        return len(done.plan.append)

    with ThreadPoolExecutor(4) as pool:
        appended = sorted(pool.map(once, range(4)))
    assert appended == [0, 0, 0, 6]
    assert len(audited(connection)) == 1


def test_a_price_that_a_source_no_longer_has_is_said_and_stays(run: Run, file: Path) -> None:
    run("import", "csv", file)
    file.write_text("\n".join(CSV.splitlines()[:3]) + "\n")
    output = run("import", "csv", file).output
    assert (
        "3 prices of this source are no longer in it, and stay in the book until you retract them:" in output
    )
    assert "    row 3 of the book: openai gpt-5 standard from 200001 tokens input" in output
    assert "3 prices read" not in output
    assert "2 prices read, 0 appended; version 6" in output


def test_rows_of_another_file_are_not_missed_in_a_file(run: Run, file: Path) -> None:
    run("import", "csv", file)
    second = file.with_name("second.csv")
    second.write_text(CSV.splitlines()[0] + "\nopenai,gpt-6,,,input,1.25,USD,2026-01-01,,\n")
    output = run("import", "csv", second).output
    assert output == "1 price read, 1 appended; version 7\n"
    second.write_text(CSV.splitlines()[0] + "\nopenai,gpt-6,,,output,1.25,USD,2026-01-01,,\n")
    output = run("import", "csv", second).output
    assert (
        "    row 7 of the book: openai gpt-6 standard input 1.25 USD a million, from 2026-01-01 [csv]"
        in output
    )
    assert "gpt-5" not in output
    run(
        "set",
        "--provider",
        "openai",
        "--model",
        "gpt-7",
        "--kind",
        "input",
        "--rate",
        "1",
        "--from",
        "2026-01-01",
    )
    run(
        "set",
        "--provider",
        "openai",
        "--model",
        "gpt-8",
        "--kind",
        "input",
        "--rate",
        "1",
        "--from",
        "2026-01-01",
    )
    some = file.with_name("some.csv")
    run("export", "--model", "gpt-7", "--output", some)
    some.write_text(some.read_text() + "openai,gpt-6,,,cache_read,1,USD,2026-01-01,,,csv,second.csv\n")
    assert run("import", "csv", some).output == "2 prices read, 1 appended; version 11\n"


def test_a_file_without_a_header_is_one_fault(run: Run, file: Path) -> None:
    file.write_text("\n".join(CSV.splitlines()[1:]))
    lines = run("import", "csv", file, code=1).output.splitlines()
    assert lines[0].startswith(
        "line 1: the first line must name the columns: provider, model_name, kind, rate"
    )
    assert len(lines) == 2


def test_a_change_that_reaches_into_the_past_of_calls_is_said(
    run: Run, file: Path, connection: psycopg.Connection[Any]
) -> None:
    add_classes(connection)
    model = next(iter(MODELS))
    add_label(connection, ORGS[0], model, "openai", "gpt-5", at=DAY)
    add_label(connection, ORGS[1], model, "openai", "gpt-5", at=DAY)
    would = run("import", "csv", file, "--dry-run").output.splitlines()
    assert would[-2] == (
        "the cost of past calls would change where these calls have the tier and size: 6 prices hold for"
        f" times since {DAY:%Y-%m-%d} from which there are calls, of 1 model and 2 orgs"
    )
    assert would[-1].endswith(f" --csv {file}")
    done = run("import", "csv", file).output.splitlines()
    assert done[-1].endswith("--before 0 --after 6")
    said = shlex.split(done[-1].partition("spendstream prices ")[2])
    assert "in all: " in run(*said).output
    later = ("set", "--provider", "openai", "--model", "gpt-5", "--kind", "input", "--rate", "2")
    assert "past calls" not in run(*later, "--from", f"{DAY + timedelta(hours=1):%Y-%m-%dT%H:00}").output
    discount = ("set", "--kind", "discount", "--rate", "5", "--org", ORGS[0], "--from", f"{DAY:%Y-%m-%d}")
    assert "1 price holds for times since" in run(*discount).output
    assert json.loads(run("import", "csv", file, "--json").output)["past"]["prices"] == 1
    assert json.loads(run("import", "csv", file, "--json").output)["past"] is None


def test_what_no_event_has_named_is_set_with_a_note(run: Run, connection: psycopg.Connection[Any]) -> None:
    add_label(connection, ORGS[0], next(iter(MODELS)), "p", "m", at=DAY)
    rate = ("--kind", "input", "--rate", "1", "--from", "2026-01-01")
    result = run("set", "--provider", "p", "--model", "n", *rate)
    assert "note: no event has named this model yet" in result.stderr
    assert "note:" not in run("set", "--provider", "p", "--model", "m", *rate).stderr
    result = run("set", "--provider", "p", "--model", "m", *rate, "--org", ORG)
    assert result.stderr == "note: no event of this org has been counted yet\n"


def test_the_price_of_an_org_says_which_kinds_keep_everyones_price(run: Run) -> None:
    def set_(kind: str, rate: str, *options: object) -> Result:
        names = ("--provider", "p", "--model", "m", "--kind", kind, "--rate", rate)
        return run("set", *names, "--from", "2026-01-01", *options)

    for kind, rate in (("input", "2.5"), ("cache_read", "1.25"), ("output", "10")):
        assert "keeps" not in set_(kind, rate).stderr
    kept = "note: cache_read of this org keeps everyone's price, 1.25 USD a million"
    assert kept in set_("input", "1", "--org", ORG).stderr
    [sheet] = [
        row
        for row in map(json.loads, run("show", "m", "--org", ORG, "--json").output.splitlines())
        if row["org_id"] == ORG
    ]
    rates = {kind: sheet[kind] for kind in ("input", "cache_read", "cache_write", "output")}
    assert rates == {"input": "1", "cache_read": "1.25", "cache_write": "1", "output": "10"}
    assert "keeps" not in set_("cache_read", "0.5", "--org", ORG).stderr
    assert "keeps" not in set_("input", "0.9", "--org", ORG).stderr


def test_a_price_set_by_hand_stays_when_a_source_has_another(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    rates = {"litellm_provider": "openai", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06}
    path.write_text(json.dumps({"gpt-5": rates}))
    options = ("--provider", "openai", "--model", "gpt-5", "--from", "2026-01-01", "--basis", "contract 7")
    run("set", *options, "--kind", "input", "--rate", "1.1")

    def rate() -> str:
        lines = run("show", "gpt-5", "--json").output.splitlines()
        return str(json.loads(lines[-1])["input"])

    output = run("import", "litellm", path).output
    assert (
        "1 price that was set by hand or came from a file stays; --overwrite takes those of the source:"
        in output
    )
    assert "    row 1 of the book: openai gpt-5 standard input 1.1 USD a million, from 2026-01-01" in output
    assert rate() == "1.1"
    again = json.loads(run("import", "litellm", path, "--json").output)
    assert (again["appended"], [row["basis"] for row in again["kept"]]) == (0, ["contract 7"])
    overwritten = run("import", "litellm", path, "--overwrite").output.splitlines()
    assert overwritten[0] == "1 price takes the place of prices from manual:"
    assert overwritten[1].startswith("    openai gpt-5 standard input 2 USD a million, from 2026-")
    assert overwritten[1].endswith(", in place of 1.1 USD a million [manual]")
    assert rate() == "2"


def test_a_provider_is_imported_under_the_name_that_events_have(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    rates = {"litellm_provider": "gemini", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06}
    path.write_text(json.dumps({"gemini/gemini-3": rates}))
    run("import", "litellm", path, "--provider", "gemini", "--as", "gcp.gemini")
    assert "gcp.gemini gemini-3 standard, since ever" in run("show", "gemini-3").output
    assert "0 appended" in run("import", "litellm", path, "--provider", "gemini", "--as", "gcp.gemini").output
    run("import", "litellm", path, "--as", "gcp.gemini", code=2)
    assert (
        "no price of the provider 'gemin'"
        in run("import", "litellm", path, "--provider", "gemin", code=1).output
    )


def test_a_whole_package_is_imported_once(run: Run, connection: psycopg.Connection[Any]) -> None:
    pytest.importorskip("genai_prices")
    first = json.loads(run("import", "genai-prices", "--json").output)
    assert first["read"] == first["appended"] == first["version"] > 5_000
    again = json.loads(run("import", "genai-prices", "--json").output)
    assert (again["appended"], again["differences"], again["version"]) == (0, [], first["version"])
    only = json.loads(run("import", "model-prices", "--provider", "xai", "--dry-run", "--json").output)
    assert {row["provider"] for row in only["differences"]} == {"xai"}
    [(count,)] = connection.execute("SELECT count(*) FROM analytics.price_sheets").fetchall()
    assert count > 2_000
