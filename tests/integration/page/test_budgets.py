"""Budgets and alerts on the page: figures are those of REST, and a person sets and changes budgets."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.exports import cells
from tests.support.access import ENV, new_key
from tests.support.api_server import BASE, Client, served
from tests.support.browser import Page
from tests.support.page_driver import (
    at,
    choose,
    click,
    dollars,
    faults_of,
    of_acme,
    rest,
    saved_file,
    see,
    settled,
    text,
    texts,
)
from tests.support.page_world import ACME, CANARY, MARKUP, ORGS, WEBHOOKS, World, made, tick


@pytest.fixture(scope="module")
def guarded(filled: World) -> Iterator[World]:
    """The same figures behind keys."""
    with served({"DATABASE_URL": filled.url, **ENV, **WEBHOOKS}) as api:
        yield replace(filled, port=api.port)


async def type_into(page: Page, id: str, said: str) -> None:
    """Type over what stands in a field."""
    await page.value(f"document.getElementById({json.dumps(id)}).focus(); document.activeElement.select();0")
    await page.write(said)


async def test_a_budget_stands_there_with_its_figures(page: Page, filled: World) -> None:
    order = {
        "name": MARKUP,
        "metric": "cost",
        "period": "month",
        "amount": "10.00",
        "thresholds": [{"percent": 80, "on": "actual"}],
    }
    made(Client(filled.port), f"{BASE}/orgs/{ORGS[3]}/budgets", order)
    await page.goto(at(filled, f"#/orgs/{ORGS[3]}?last=7d"))
    await see(page, "#budgets tbody th", says=MARKUP)
    (budget,) = rest(filled, f"orgs/{ORGS[3]}/budgets")["items"]
    current = budget["current"]
    assert await text(page, "[data-spent]") == dollars(current["spent"]) + " *" * (current["unpriced"] > 0)
    await see(page, "#budgets .badge", says=current["state"])
    await see(page, "#budgets .empty", says="No threshold has been reached.")
    assert not await faults_of(page)
    await page.goto(at(filled, f"#/orgs/{ORGS[5]}?last=7d"))
    await see(page, "#budgets .empty", says="No budget has been set.")
    await see(page, "#month-budget", says="no budget by month")


async def test_the_month_stands_against_its_budget_and_forecast(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="24h")))
    await settled(page)
    budget = budget_of_acme(filled)
    current = budget["current"]
    await see(page, "#card-month #month-budget", says=f"of {dollars(budget['amount'])}")
    share = Decimal(current["spent"]) / Decimal(budget["amount"])
    said = await text(page, "#month-budget")
    assert f"{share * 100:.1f} % of" in said or f"{share * 100:.2f} % of" in said
    forecast = current["forecast"]
    assert ("no forecast yet" if forecast is None else f"forecast {dollars(forecast)}") in said
    assert ("over budget" in said) == (forecast is not None and Decimal(forecast) > Decimal(budget["amount"]))
    assert await page.value("document.querySelector('#month-budget meter').value") == pytest.approx(
        float(share), abs=0.01
    )
    await page.goto(at(filled, of_acme(last="24h", tz="Asia/Tokyo")))
    await see(page, "#month-budget", says="month of UTC")


def budget_of_acme(world: World) -> Any:
    (found,) = [one for one in rest(world, f"orgs/{ACME}/budgets")["items"] if one["name"] == "Whole company"]
    return found


async def test_alerts_stand_there_with_what_was_delivered(page: Page, filled: World, tmp_path: Path) -> None:
    await page.downloads_to(tmp_path)
    await page.goto(at(filled, of_acme(last="24h")))
    alerts = rest(filled, f"orgs/{ACME}/alerts")["items"]
    assert {(one["percent"], one["on"]) for one in alerts} >= {("80", "actual")}
    for one in alerts:
        row = f'[data-alert="{one["alertId"]}"]'
        await see(page, row, says="Whole company")
        figure = one["forecast"] if one["on"] == "forecast" else one["spent"]
        await see(page, f"{row} .figure", says=dollars(figure))
        await see(page, f"{row} .deliveries", says="On call of Whole company: delivered")
    await click(page, "#alerts-csv")
    rows = list(csv.DictReader(io.StringIO(await asyncio.to_thread(saved_file, tmp_path), newline="")))
    assert [(row["spent"], row["watermark"], row["delivered"]) for row in rows] == [
        (one["spent"], one["watermark"], "1") for one in alerts
    ]


async def test_notices_stand_there_with_what_they_were_compared_with(
    page: Page, filled: World, tmp_path: Path
) -> None:
    await page.downloads_to(tmp_path)
    await page.goto(at(filled, of_acme(last="24h")))
    notices = rest(filled, f"orgs/{ACME}/notices/sent")["items"]
    assert {one["kind"] for one in notices} == {"spend.unusual", "spend.daily"}
    for one in notices:
        row = f'[data-notice="{one["noticeId"]}"]'
        await see(page, row)
        said = await text(page, row)
        if one["unusualSpend"] is not None:
            for part in ("Unusual hour", "2 calls without a price are not in it", "$61.50", "provisional"):
                assert part in said
            assert "at most $9.10 about this time in 1 week before" in said
            assert "no webhook" in said
        else:
            day = one["dailySummary"]
            assert day["day"] in said
            assert f"{day['timeZone']}: {day['invocations']} request" in said
            assert dollars(day["cost"]["amount"]) in said
            assert f"the day before {dollars(day['dayBefore']['cost']['amount'])}" in said
            assert "On call of Whole company: " in said
    await see(page, "#notices-asked", says="over 5 times the usual, and a summary of each day of UTC.")
    assert not await faults_of(page)
    await click(page, "#notices-csv")
    rows = list(csv.DictReader(io.StringIO(await asyncio.to_thread(saved_file, tmp_path), newline="")))
    assert [(row["kind"], row["periodStart"], row["spent"]) for row in rows] == [
        (one["kind"], one["periodStart"], amount_of(one)) for one in notices
    ]
    await page.goto(at(filled, f"#/orgs/{ORGS[5]}?last=7d"))
    await see(page, "#notices-asked", says="The org asks for no notices.")
    assert "No notice has been sent." in await text(page, "#budgets")


def amount_of(notice: Any) -> str:
    found = notice["unusualSpend"] or {"spent": notice["dailySummary"]["cost"]["amount"]}
    return str(found["spent"])


async def test_a_delivery_that_failed_says_why_and_is_sent_again(page: Page, filled: World) -> None:
    with psycopg.connect(filled.url) as connection:
        connection.execute(
            "UPDATE analytics.webhook_deliveries SET status = 'failed', attempts = 10, last_status = NULL,"
            " last_error = %s, delivered_at = NULL WHERE org_id = %s",
            ("no connection <b>", ACME),
        )
    await page.goto(at(filled, of_acme(last="24h")))
    await see(page, ".deliveries", says="failed, 10 attempts: no connection <b>")
    assert not await faults_of(page)
    await page.value("document.querySelector('[id^=retry-]').focus()")
    await page.press("Enter")
    await see(page, ".deliveries", says="waiting")
    alerts = rest(filled, f"orgs/{ACME}/alerts")["items"]
    assert "pending" in {delivery["status"] for one in alerts for delivery in one["deliveries"]}


async def test_a_budget_is_set_changed_and_deleted_by_keyboard(page: Page, filled: World) -> None:
    org = ORGS[2]
    await page.goto(at(filled, f"#/orgs/{org}?last=24h"))
    await see(page, "#budgets .empty", says="No budget has been set.")
    await page.value("document.getElementById('budget-new').focus()")
    await page.press("Enter")
    await page.until("document.activeElement.id === 'budget-name'")
    await page.write("Search")
    await type_into(page, "budget-amount", "much")
    await page.press("Enter")
    await see(page, ".budget-form .failure", says="amount: ")
    await see(page, ".budget-form .failure", says="Request")
    assert await page.value("document.getElementById('budget-name').value") == "Search"
    assert not await faults_of(page)
    await type_into(page, "budget-amount", "2500.50")
    await page.until("document.querySelector('#budget-scope [value=team]') !== null")
    await choose(page, "#budget-scope", "team")
    await type_into(page, "budget-value", "checkout")
    await type_into(page, "budget-actual", "80 %, 2000")
    await type_into(page, "budget-forecast", "110%")
    await page.press("Enter")
    await see(page, "#budgets tbody th", says="team: checkout")
    (budget,) = rest(filled, f"orgs/{org}/budgets")["items"]
    assert (budget["name"], budget["amount"], budget["period"]) == ("Search", "2500.50", "month")
    assert (budget["scope"]["dimension"], budget["scope"]["value"]) == ("team", "checkout")
    marks = [(one["percent"], one["amount"], one["on"]) for one in budget["thresholds"]]
    assert marks == [("80", None, "actual"), (None, "2000.00", "actual"), ("110", None, "forecast")]
    assert await page.value("document.activeElement.id") == "budget-new"

    id = budget["budgetId"]
    await page.value(f"document.getElementById('edit-{id}').focus()")
    await page.press("Enter")
    await page.until("document.activeElement.value === 'Search'")
    await type_into(page, "budget-amount", "3000")
    await page.press("Enter")
    await see(page, "#budgets tbody .figure", says="$3,000.00")
    (changed,) = rest(filled, f"orgs/{org}/budgets")["items"]
    assert (changed["scope"], changed["thresholds"]) == (budget["scope"], budget["thresholds"])
    assert changed["amount"] == "3000.00"

    await page.value(f"document.getElementById('delete-{id}').focus()")
    await page.press("Enter")
    await page.until(f"document.activeElement.id === 'keep-{id}'")
    assert len(rest(filled, f"orgs/{org}/budgets")["items"]) == 1, "one key deletes nothing"
    await page.press("Tab")
    await page.press("Enter")
    await see(page, "#budgets .empty", says="No budget has been set.")
    assert rest(filled, f"orgs/{org}/budgets")["items"] == []
    # The order that was refused, and questions that the page itself gave up.
    assert [said for said in page.complaints if "400" not in said and "ERR_ABORTED" not in said] == []


async def test_budgets_go_on_ticking(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="today")))
    await settled(page)
    cell = f'[data-spent="{budget_of_acme(filled)["budgetId"]}"]'
    await see(page, cell, says="$")
    before = await text(page, cell)
    tick(filled.url, ACME)
    await page.until(f"document.querySelector('{cell}').innerText !== {json.dumps(before)}")
    await see(page, cell, says=dollars(budget_of_acme(filled)["current"]["spent"]))


async def test_who_may_only_read_sees_budgets_of_their_org_alone(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await see(page, "#credential")
    await page.write(guarded.key)
    await page.press("Enter")
    await see(page, "#budgets tbody th", says="Whole company")
    await see(page, ".deliveries li", says="On call of Whole company")
    assert await page.value("document.querySelector('#budget-new')") is None
    assert await texts(page, "#budgets tbody button") == []
    assert CANARY not in await page.value("document.documentElement.outerHTML")


async def test_a_key_without_the_role_has_no_budgets_on_its_page(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await see(page, "#credential")
    await page.write(new_key(guarded.url, ACME, "analytics:usage:read"))
    await page.press("Enter")
    await settled(page)
    assert await page.value("document.querySelector('#budgets, #month-budget')") is None


# --- files -------------------------------------------------------------------------------------------

NASTY = (
    "=1+1", "+1", "-1 apple", "-12.50", "@SUM(A1)", "  =1", "\t=1", '"=1', "a,=1", "a;-b", "a|b", "a|=b",
    "|a", "%0a", "\uff1d1", "\u200b=1", "\u00a0+x", "\ufeff@a", "a\u2028=b", "plain", "gpt-4o", "a - b",
    "'=1", "x\r\n=2", "", "1e5", "東京-1",
)  # fmt: skip


async def test_no_cell_is_run_by_a_spreadsheet_by_the_rule_of_exports(page: Page, filled: World) -> None:
    await page.goto(at(filled))
    await page.value("import('./format.js').then((found) => { window.defused = found.defused; });0")
    await page.until("window.defused !== undefined")
    shown = json.loads(await page.value(f"JSON.stringify({json.dumps(NASTY)}.map(window.defused))"))
    with psycopg.connect(filled.url) as connection:
        query = f"SELECT COALESCE({cells.cell('given')}, '') FROM (SELECT %s::text AS given) AS one"
        exported = [connection.execute(query, (one,)).fetchone()[0] for one in NASTY]  # type: ignore[index]
    assert shown == exported
    assert sum(a != b for a, b in zip(shown, NASTY, strict=True)) > 15
