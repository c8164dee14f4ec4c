"""``prices diff`` says beforehand what the views say afterwards; ``prices check`` finds what does not fit."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.prices import book, compare
from tests.support.price_books import write
from tests.support.spend_rows import (
    DAY,
    MODELS,
    ORGS,
    add_classes,
    add_label,
    add_usage,
    fill,
    pair,
    rows,
)

RANGE = ("--start", "2026-03-10", "--end", "2026-03-13")
HEAD = "provider,model_name,service_tier,context_from,kind,rate,valid_from,org_id\n"


def run(url: str, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["prices", *map(str, arguments)], env={"DATABASE_URL": url})
    assert result.exit_code == code, result.output
    return result


def spent(connection: psycopg.Connection[Any], view: str) -> dict[tuple[str, str], Decimal]:
    found = rows(
        connection, f"SELECT org_id::text, model_id::text, sum(cost) AS cost FROM {view} GROUP BY 1, 2"
    )
    return {(row["org_id"], row["model_id"]): row["cost"] or Decimal(0) for row in found}


def everything(connection: psycopg.Connection[Any]) -> list[Any]:
    tables = ("prices", "price_sheets", "audit_log", "usage_hour", "usage_day")
    return [
        rows(connection, f"SELECT xmin::text, t::text FROM analytics.{t} AS t ORDER BY 2") for t in tables
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["p,m,,,input,3.5,2026-03-10T03:00:00Z,"],
        [
            "p,m,,200001,output,7,2026-03-11,",
            "p,m-mini,,,input,9,2026-01-01,",
            "p,m-mini,,,output,9,2026-01-01,",
        ],
        [f",,,,discount,25,2026-03-11T05:00:00Z,{ORGS[0]}"],
        [f"p,free,,,output,1,2026-03-11T05:00:00Z,{ORGS[1]}", "q,m,,,input,1,,", "q,m,,,output,1,,"],
    ],
)
def test_a_diff_says_beforehand_what_the_figures_say_afterwards(
    connection: psycopg.Connection[Any], database_url: str, tmp_path: Path, lines: list[str]
) -> None:
    fill(connection)
    file = tmp_path / "new.csv"
    file.write_text(HEAD + "\n".join(lines) + "\n")
    before, state = spent(connection, "analytics.spend_day"), everything(connection)
    said = json.loads(run(database_url, "diff", *RANGE, "--csv", file, "--json").output)
    assert everything(connection) == state
    version = book_version(connection)
    run(database_url, "import", "csv", file)
    after = spent(connection, "analytics.spend_day")
    assert after == spent(connection, "analytics.spend_hour")
    changes = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert changes
    found = {(row["org_id"], row["model_id"]): Decimal(row["by"]) for row in said["differences"]}
    assert {key: by for key, by in found.items() if by} == changes
    assert Decimal(said["by"]) == sum(changes.values())
    newest = book_version(connection)
    again = run(database_url, "diff", *RANGE, "--before", version, "--after", newest, "--json").output
    assert json.loads(again) == said
    back = run(database_url, "diff", *RANGE, "--before", newest, "--after", version).output
    assert back.splitlines()[-1] == f"in all: {-Decimal(said['by']):+f} USD"
    assert "in all: +0 USD" in run(database_url, "diff", *RANGE, "--after", newest).output


def book_version(connection: psycopg.Connection[Any]) -> int:
    return int(rows(connection, "SELECT max(id) AS n FROM analytics.prices")[0]["n"])


def test_a_diff_is_of_the_hours_and_orgs_that_are_asked_for(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    fill(connection)
    version = book_version(connection)
    write(connection, [pair(50, valid_from=DAY)])
    start, end = DAY + timedelta(hours=5), DAY + timedelta(hours=11)
    with book.connected(database_url) as reading:
        found = compare.between_versions(reading, version, book.NEWEST, start=start, end=end)
    hours = rows(
        connection,
        "SELECT sum(cost) AS cost, sum(invocations) AS n FROM analytics.spend_hour WHERE org_id = %s"
        " AND provider = 'p' AND model_name = 'm' AND bucket_start >= %s AND bucket_start < %s",
        (ORGS[0], start, end),
    )
    [first] = [one for one in found if str(one.org_id) == ORGS[0]]
    assert (first.after, first.invocations) == (hours[0]["cost"], hours[0]["n"])
    with book.connected(database_url) as reading:
        only = compare.between_versions(
            reading, version, book.NEWEST, start=start, end=end, orgs=[first.org_id]
        )
    assert only == [first]


def test_a_price_at_which_calls_cost_the_same_is_no_difference(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    fill(connection)
    write(connection, [pair(50, valid_from=DAY)])
    version = book_version(connection)
    write(connection, [pair(50, valid_from=DAY + timedelta(hours=1))])
    said = run(database_url, "diff", *RANGE, "--before", version, "--after", book_version(connection)).output
    assert said == "in all: +0 USD\n"


def test_a_version_that_does_not_exist_yet_exits_with_2(database_url: str) -> None:
    for arguments in (
        ("list", "--version", "9"),
        ("show", "m", "--version", "9"),
        ("export", "--version", "9"),
        ("diff", *RANGE, "--after", "9"),
        ("diff", *RANGE, "--before", "9", "--after", "0"),
    ):
        assert "has no version 9 yet" in run(database_url, *arguments, code=2).output


def test_wrong_questions_exit_with_2(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text(HEAD + "p,m,,,input,-1,,\n")
    for options in (
        RANGE,
        (*RANGE, "--after", "1", "--csv", file),
        (*RANGE, "--before", "1", "--csv", file),
        ("--start", "2026-03-10T00:30", "--end", "2026-03-13", "--after", "1"),
        ("--start", "2026-03-13", "--end", "2026-03-13", "--after", "1"),
    ):
        run(database_url, "diff", *options, code=2)
    assert "line 2: rate -1 is negative" in run(database_url, "diff", *RANGE, "--csv", file, code=1).output


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def test_a_check_finds_what_does_not_fit(
    connection: psycopg.Connection[Any], database_url: str, now: datetime
) -> None:
    assert run(database_url, "check").output == "every model seen has a price\n"
    add_classes(connection)
    ids = list(MODELS)
    long_ago = now - timedelta(days=900)
    for number, (provider, name) in enumerate(
        [("p", "m"), ("p", "ended"), ("q", "new"), ("", ""), ("p", "ok")]
    ):
        add_label(connection, ORGS[0], ids[number], provider, name, at=now)
        add_usage(connection, ORGS[0], ids[number], now, {"invocations": 3, "unestimated": 3}, rate_class=1)
    add_usage(connection, ORGS[0], ids[0], now, {"invocations": 4}, rate_class=4)
    write(
        connection,
        [
            [
                *pair(1, valid_from=long_ago.replace(hour=0)),
                *pair(2, valid_from=long_ago, context_from=128_000),
                *pair(2, valid_from=long_ago, context_from=200_000),
                *pair(1, valid_from=long_ago, valid_to=now, model_name="ended"),
                *pair(1, valid_from=long_ago, model_name="ok"),
                *pair(1, valid_from=long_ago, model_name="new", provider="other"),
            ]
        ],
    )
    result = run(database_url, "check", "--json", code=1)
    found: dict[str, list[str]] = defaultdict(list)
    for line in result.output.splitlines()[:-1]:
        found[json.loads(line)["kind"]].append(json.loads(line)["text"])
    assert set(found) == {"unlabelled", "unpriced", "unpriced calls", "boundary", "unseen"}
    assert [text.partition(" (")[0] for text in found["unpriced"]] == [
        "p ended of 1 org has no price",
        "q new of 1 org has no price",
    ]
    assert found["unpriced"][1].endswith(
        f"at the tier standard, since {now:%Y-%m-%d}, 3 calls count nothing, as nobody knows the cost; the"
        " book has a model of this name from other: see import --as"
    )
    assert found["unpriced"][0].endswith("; import or set prices of it for input and output")
    assert ids[3] in found["unlabelled"][0]
    assert len(found["unlabelled"]) == 1
    assert found["unpriced calls"] == [
        f"p m of 1 org has calls at the tier batch that the book does not price: since {now:%Y-%m-%d},"
        " 4 calls count at the producers' estimate, 0 USD; set prices for input and output with --tier batch"
        f" --from {now:%Y-%m-%d}"
    ]
    assert found["unseen"] == [
        "other new has 2 prices from test, but no event has named this model: names must be those of the"
        " events, to the letter"
    ]
    # 200,000 is the beginning of a class; 128,000 is inside one.
    assert [text.partition(":")[0] for text in found["boundary"]] == [
        "p m standard has another price from 128000 tokens on, inside rate class 1 (0 to 199999 tokens),"
        " which has rows"
    ]


def test_a_check_says_since_when_calls_have_no_price_and_what_they_count_at(
    connection: psycopg.Connection[Any], database_url: str, now: datetime
) -> None:
    """The book prices the calls from a time within the first of two days on."""
    add_classes(connection)
    model, day = next(iter(MODELS)), (now - timedelta(days=9)).replace(hour=0)
    add_label(connection, ORGS[0], model, "p", "m", at=now)
    figures = {"invocations": 5, "unestimated": 2, "cost_microcents": 150_000_000}
    for hours in (-24, 3, 15):
        add_usage(connection, ORGS[0], model, day + timedelta(hours=hours), figures, rate_class=1)
    write(connection, [pair(1, valid_from=day + timedelta(hours=6))])
    [line, _] = run(database_url, "check", code=1).output.splitlines()
    assert line == (
        "unpriced calls: p m of 1 org has calls at the tier standard that the book does not price: since"
        f" {day - timedelta(days=1):%Y-%m-%d}, 6 calls count at the producers' estimate, 3 USD and 4"
        " calls count nothing, as nobody knows the cost; set prices for input and output with --tier standard"
        f" --from {day - timedelta(days=1):%Y-%m-%d}"
    )


@pytest.mark.parametrize(("cost", "unestimated", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_the_model_of_the_synthetic_check_needs_no_price_while_its_calls_cost_nothing(
    connection: psycopg.Connection[Any],
    database_url: str,
    now: datetime,
    cost: int,
    unestimated: int,
    code: int,
) -> None:
    add_classes(connection)
    model = next(iter(MODELS))
    add_label(connection, ORGS[0], model, "spendstream", "check", at=now)
    figures = {"invocations": 2, "unestimated": unestimated, "cost_microcents": cost}
    add_usage(connection, ORGS[0], model, now, figures, rate_class=1)
    said = run(database_url, "check", code=code).output
    assert ("spendstream check of 1 org has no price" in said) == (code == 1)


def test_a_check_says_which_sources_disagree(
    connection: psycopg.Connection[Any], database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "two.csv"
    for source, rates in (("a", ("1.00", "4", "0")), ("b", ("1.01", "4.1", "0.5"))):
        lines = [
            f"p,m,{kind},{rate},{source}"
            for kind, rate in zip(("input", "output", "request"), rates, strict=True)
        ]
        file.write_text("provider,model_name,kind,rate,source\n" + "\n".join(lines) + "\n")
        run(database_url, "import", "csv", file)
    unseen = "unseen: p m has 6 prices from a, b, but no event has named this model:"
    differ = [
        "sources: p m standard output: 4 by a, 4.1 by b; the last one counts",
        "sources: p m standard request: 0 by a, 0.5 by b; the last one counts",
    ]
    first, *others = run(database_url, "check", "--all").output.splitlines()
    assert first.startswith(unseen)
    assert others == differ
    [only] = run(database_url, "check").output.splitlines()
    assert only.startswith(unseen)
    add_classes(connection)
    add_label(connection, ORGS[0], next(iter(MODELS)), "p", "m", at=DAY)
    assert run(database_url, "check").output.splitlines() == differ
    assert rows(connection, "SELECT count(*) AS n FROM analytics.prices")[0]["n"] == 6
