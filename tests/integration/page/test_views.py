"""The page in a real browser: every view, by mouse and by keyboard, and its figures are those of REST."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.api_facts import rfc3339
from tests.support.browser import Page
from tests.support.page_driver import (
    APP,
    at,
    by_tab,
    choose,
    click,
    dollars,
    faults_of,
    of_acme,
    rest,
    saved_file,
    see,
    settled,
    shown,
    text,
    texts,
)
from tests.support.page_world import ACME, MARKUP, ORGS, UNPRICED, World, tick

# --- all orgs --------------------------------------------------------------------------------------


async def test_the_servers_address_leads_to_all_orgs_and_asks_nobody_else(page: Page, filled: World) -> None:
    await page.goto(f"http://127.0.0.1:{filled.port}/")
    await see(page, "tr[data-org]")
    await page.until("document.querySelectorAll('.spark').length === 6")
    assert urlsplit(await page.value("location.href")).path == APP
    assert {urlsplit(url).netloc for url in page.requests} == {f"127.0.0.1:{filled.port}"}
    assert not page.complaints


async def test_the_orgs_figures_are_those_of_rest(page: Page, filled: World) -> None:
    await page.goto(at(filled))
    await see(page, "tr[data-org]")
    items = of_this_month(filled)
    assert len(items) == len(ORGS)
    for item in items:
        cells = await texts(page, f'tr[data-org="{item["orgId"]}"] > *')
        assert cells[3].removesuffix(" *") == dollars(item["cost"]["amount"])
        assert cells[3].endswith("*") == (item["unpriced"]["invocations"] > 0)
        assert cells[4] == f"{item['invocations']:,}"


def of_this_month(filled: World) -> list[Any]:
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    items: list[Any] = rest(filled, "orgs", start=rfc3339(month), end=rfc3339(now))["items"]
    return items


async def test_a_name_that_is_markup_is_text(page: Page, filled: World) -> None:
    await page.goto(at(filled))
    await see(page, "tr[data-org] a", says=MARKUP)
    assert await page.value("document.querySelectorAll('main img, main b').length") == 0
    await page.goto(at(filled, f"#/orgs/{ORGS[4]}"))
    await see(page, "h1", says=MARKUP)
    assert (await page.value("document.title")).startswith(MARKUP)
    assert not page.complaints


async def test_orgs_are_searched_and_sorted_by_keyboard(page: Page, filled: World) -> None:
    await page.goto(at(filled))
    await see(page, "tr[data-org]")
    names = await texts(page, "tr[data-org] a")
    by_spend = sorted(of_this_month(filled), key=lambda item: Decimal(item["cost"]["amount"]), reverse=True)
    assert names == [item["orgName"] or item["orgId"] for item in by_spend]  # the most spend first
    await page.value("document.getElementById('sort-name').focus()")
    await page.press("Enter")
    await page.until("location.hash.includes('sort=name-up')")
    await see(page, "th[aria-sort=ascending]", says="Org")
    sorted_names = await texts(page, "tr[data-org] a")
    assert sorted_names == sorted(names, key=str.lower)
    assert await page.value("document.activeElement.id") == "sort-name"
    await page.press("Enter")
    await see(page, "th[aria-sort=descending]", says="Org")
    await page.value("document.getElementById('search').focus()")
    await page.write("borealis")
    await page.until("document.querySelectorAll('tr[data-org]').length === 1")
    assert "q=borealis" in await page.value("location.hash")
    await page.value("document.querySelector('tr[data-org] a').focus()")
    await page.press("Enter")
    await see(page, "h1", says="Borealis Health")


async def test_a_search_that_finds_nothing_says_so(page: Page, filled: World) -> None:
    await page.goto(at(filled, "#/?q=nobody"))
    await see(page, ".empty", says="No org's name or id has “nobody” in it.")


# --- one org ---------------------------------------------------------------------------------------


async def test_cards_chart_and_tables_of_an_org_are_those_of_rest(page: Page, filled: World) -> None:
    start = filled.now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=6)
    end = start + timedelta(days=5)
    view = {
        "start": f"{start:%Y-%m-%dT%H:%M}",
        "end": f"{end:%Y-%m-%dT%H:%M}",
        "last": "custom",
        "grain": "day",
    }
    await page.goto(at(filled, of_acme(**view)))
    await settled(page)
    span = {"start": rfc3339(start), "end": rfc3339(end), "granularity": "day"}
    usage = rest(filled, f"orgs/{ACME}/usage", **span)
    reliability = rest(filled, f"orgs/{ACME}/reliability", **span, groupBy="none")["totals"]
    assert await text(page, "[data-value=range]") == dollars(usage["totals"]["cost"]["amount"])
    assert await text(page, "[data-value=requests]") == f"{usage['totals']['invocations']:,}"
    assert (await text(page, "#card-errors .sub")).split()[0] == str(sum(reliability["errors"].values()))
    await click(page, "#spend-table")
    await see(page, "#spend tbody tr")
    heads = (await texts(page, "#spend thead th"))[1:]
    rows = {row[0]: row[1:] for row in [line.split("\t") for line in await texts(page, "#spend tbody tr")]}
    named = {f"{p['provider']} / {p['modelName']}" for p in usage["series"]}
    assert set(heads) == named
    for point in usage["series"]:
        if point["cost"]["amount"] is not None and float(point["cost"]["amount"]):
            cell = rows[point["bucketStart"][:10]][heads.index(f"{point['provider']} / {point['modelName']}")]
            assert cell == dollars(point["cost"]["amount"])
    unpriced = usage["totals"]["unpriced"]["invocations"]
    assert unpriced > 0
    assert await text(page, "#unpriced") == (
        f"{unpriced} {'call has' if unpriced == 1 else 'calls have'} no price and are in no amount below:"
        f" {' / '.join(UNPRICED)} ({unpriced})."
    )


async def test_a_commit_is_seen_without_a_reload_and_equals_rest(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="today")))
    await settled(page)
    await see(page, ".live", says="live")
    asked = page.requests.count(at(filled))
    for _ in range(3):
        before = await text(page, "[data-value=today]")
        tick(filled.url, ACME)
        await page.until(f"document.querySelector('[data-value=today]').innerText !== {json.dumps(before)}")
    day = filled.now.replace(hour=0, minute=0, second=0, microsecond=0)
    usage = rest(
        filled, f"orgs/{ACME}/usage", start=rfc3339(day), end=rfc3339(day + timedelta(days=1)), groupBy="none"
    )
    await see(page, "[data-value=today]", says=shown(usage["totals"]))
    await see(page, "[data-value=range]", says=shown(usage["totals"]))
    assert page.requests.count(at(filled)) == asked, "the page was loaded again"
    assert not page.complaints


async def test_the_badge_has_two_times(page: Page, filled: World) -> None:
    tick(filled.url, ACME)
    await page.goto(at(filled, of_acme(last="24h")))
    await settled(page)
    tick(filled.url, ACME)
    await see(page, "#freshness", says="counted up to")
    counted, complete = [
        datetime.fromisoformat(time)
        for time in await page.value(
            "[...document.querySelectorAll('#freshness time')].map((one) => one.dateTime)"
        )
    ]
    assert timedelta(seconds=9) < counted - complete < timedelta(seconds=30)
    await page.value("document.getElementById('freshness').focus()")
    await page.press("Enter")
    await see(page, ".explain", says="Provisional")


@pytest.mark.parametrize(
    ("control", "value", "says"),
    [
        ("#grain", "day", "grain=day"),
        ("#by", "client", "by=client"),
        ("#by", "team", "by=team"),
        ("#by", "none", "by=none"),
        ("#tz", "Asia/Tokyo", "tz=Asia"),
        ("#last", "90d", "last=90d"),
        ("#last", "custom", "last=custom"),
    ],
)
async def test_a_choice_is_in_the_address_and_the_address_is_the_view(
    page: Page, filled: World, control: str, value: str, says: str
) -> None:
    await page.goto(at(filled, of_acme(last="7d")))
    await settled(page)
    await choose(page, control, value)
    await page.until(f"location.hash.includes({json.dumps(says)})")
    await settled(page)
    link = await page.value("location.href")
    figures = await texts(page, "#card-range .value, #top-models tbody th")
    await page.goto("about:blank")
    await page.goto(link)
    await settled(page)
    assert await page.value(f"document.querySelector({json.dumps(control)}).value") == value
    assert await texts(page, "#card-range .value, #top-models tbody th") == figures
    assert not page.complaints


async def test_back_shows_the_view_before(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="7d")))
    await settled(page)
    await click(page, "#last-30d")
    await page.until("document.querySelector('#last-30d').getAttribute('aria-pressed') === 'true'")
    await page.value("history.back()")
    await page.until("document.querySelector('#last-7d').getAttribute('aria-pressed') === 'true'")


async def test_a_period_is_compared_with_the_one_before(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="7d")))
    await settled(page)
    await page.value("document.getElementById('compare').focus()")
    await page.press("Space")
    await see(page, "#card-range .sub", says="against the period before")
    await see(page, "#spend .legend", says="the period before")


async def test_the_csv_has_what_is_shown_exactly(page: Page, filled: World, tmp_path: Path) -> None:
    await page.downloads_to(tmp_path)
    end = filled.now.replace(hour=0, minute=0, second=0, microsecond=0)
    start = end - timedelta(days=4)
    view = {
        "start": f"{start:%Y-%m-%dT%H:%M}",
        "end": f"{end:%Y-%m-%dT%H:%M}",
        "last": "custom",
        "grain": "day",
    }
    await page.goto(at(filled, of_acme(**view, by="none")))
    await settled(page)
    await click(page, "#spend-csv")
    file = await asyncio.to_thread(saved_file, tmp_path)
    rows = list(csv.DictReader(io.StringIO(file, newline="")))
    usage = rest(filled, f"orgs/{ACME}/usage", start=rfc3339(start), end=rfc3339(end), groupBy="none")
    wanted = {point["bucketStart"]: float(point["cost"]["amount"]) for point in usage["series"]}
    assert {row["bucketStart"]: float(row["All calls"]) for row in rows if row["All calls"]} == wanted


async def test_the_csv_of_a_table_has_all_its_rows_exactly(page: Page, filled: World, tmp_path: Path) -> None:
    await page.downloads_to(tmp_path)
    end = filled.now.replace(hour=0, minute=0, second=0, microsecond=0)
    start = end - timedelta(days=9)
    view = {"start": f"{start:%Y-%m-%dT%H:%M}", "end": f"{end:%Y-%m-%dT%H:%M}", "last": "custom"}
    await page.goto(at(filled, of_acme(**view)))
    await settled(page)
    await click(page, "#top-models-csv")
    file = await asyncio.to_thread(saved_file, tmp_path)
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(file, newline=""))}
    span = {"start": rfc3339(start), "end": rfc3339(end), "groupBy": "model"}
    wanted: dict[str, Any] = {}
    for point in rest(filled, f"orgs/{ACME}/usage", **span)["series"]:
        one = wanted.setdefault(point["modelId"], {"amount": None, "calls": 0})
        one["calls"] += point["invocations"]
        if point["cost"]["amount"] is not None:
            one["amount"] = (one["amount"] or 0) + Decimal(point["cost"]["amount"])
    assert {
        key: (Decimal(row["spend"]) if row["spend"] else None, int(row["requests"]))
        for key, row in rows.items()
    } == {key: (one["amount"], one["calls"]) for key, one in wanted.items()}


async def test_an_export_is_ordered_watched_and_downloaded(page: Page, filled: World, tmp_path: Path) -> None:
    await page.downloads_to(tmp_path)
    await page.goto(at(filled, of_acme(last="7d")))
    await settled(page)
    await see(page, "#exports .empty", says="No export has been ordered yet.")
    await page.value("document.getElementById('export-order').focus()")
    await page.press("Enter")
    await see(page, "#exports tbody .badge", says="ready, provisional")
    await click(page, "#exports tbody button")
    file = await asyncio.to_thread(saved_file, tmp_path)
    job = rest(filled, f"orgs/{ACME}/exports")["items"][0]
    assert len(list(csv.reader(io.StringIO(file, newline="")))) == job["rowCount"] + 1


async def test_an_org_without_calls_in_range_says_so(page: Page, filled: World) -> None:
    view = {"last": "custom", "start": "2026-01-01T00:00", "end": "2026-01-02T00:00"}
    await page.goto(at(filled, f"#/orgs/{ORGS[5]}?" + "&".join(f"{k}={v}" for k, v in view.items())))
    await see(page, "#spend .empty", says="No calls in this range.")
    await see(page, "#errors .empty", says="No call in this range has failed.")


async def test_an_org_that_is_none_is_a_problem_with_the_id_of_the_request(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="custom", start="1999-01-01T00:00", end="2030-01-01T00:00")))
    await see(page, "#spend .failure", says="Request")
    assert await page.value("document.querySelector('#spend .failure code').innerText.length > 20")


# --- for everybody ---------------------------------------------------------------------------------


@pytest.fixture(params=["light", "dark"])
async def painted(page: Page, request: pytest.FixtureRequest) -> Page:
    await page.looks(dark=request.param == "dark")
    return page


@pytest.mark.parametrize("place", ["orgs", "org", "custom", "form"])
async def test_axe_finds_nothing(painted: Page, filled: World, place: str) -> None:
    fragment = {
        "orgs": "",
        "org": of_acme(last="7d", compare="1"),
        "custom": of_acme(last="custom", by="team"),
        "form": of_acme(last="24h"),
    }
    await painted.goto(at(filled, fragment[place]))
    if place == "orgs":
        await see(painted, "tr[data-org]")
        await painted.until("document.querySelectorAll('.spark').length === 6")
    else:
        await settled(painted)
        for id in ("spend", "latency"):
            await click(painted, f"#{id}-table")
        await click(painted, "#freshness")
        await see(painted, "#alerts-csv")
        await see(painted, ".deliveries li")
        if place == "form":
            await click(painted, "#budget-new")
            await see(painted, "#budget-save")
    assert not await faults_of(painted)


@pytest.mark.parametrize("width", [320, 390, 820, 1920])
async def test_no_window_is_too_narrow_or_too_wide(page: Page, filled: World, width: int) -> None:
    await page.looks(width=width)
    for fragment, there in (("", "tr[data-org]"), (of_acme(last="30d", compare="1"), "#top-models tbody")):
        await page.goto(at(filled, fragment))
        await see(page, there)
        assert await page.value("document.documentElement.scrollWidth <= innerWidth"), fragment
    assert not await faults_of(page)


async def test_tab_reaches_every_control(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="7d")))
    await settled(page)
    visited = await by_tab(page)
    wanted = await page.value(
        "[...document.querySelectorAll('a[id], button[id], select[id], input[id], summary[id]')]"
        ".filter((one) => one.checkVisibility() && !one.disabled).map((one) => one.id)"
    )
    assert set(wanted) <= set(visited)
    assert visited.index("last-1h") < visited.index("grain") < visited.index("export-order")
    first = await page.value("document.querySelector('.skip').innerText")
    assert first in visited[0]


async def test_colours_are_chosen_and_kept(page: Page, filled: World) -> None:
    await page.goto(at(filled))
    await see(page, "#theme", says="Auto")
    light = await page.value("getComputedStyle(document.body).backgroundColor")
    for name in ("Light", "Dark"):
        await click(page, "#theme")
        await see(page, "#theme", says=name)
    dark = await page.value("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    await page.goto("about:blank")
    await page.goto(at(filled))
    await see(page, "#theme", says="Dark")
    assert await page.value("getComputedStyle(document.body).backgroundColor") == dark
    for _ in range(1):
        await click(page, "#theme")


@pytest.mark.parametrize(("width", "last"), [(1360, "30d"), (1360, "24h"), (390, "7d")])
async def test_no_label_of_a_chart_is_cut(page: Page, filled: World, width: int, last: str) -> None:
    """A label that the edge cuts leaves ink in the last column of pixels of the drawing."""
    await page.looks(width=width)
    await page.goto(at(filled, of_acme(last=last)))
    await settled(page)
    for id in ("spend", "tokens", "latency"):
        await page.until(f"document.querySelector('#{id} canvas') !== null")
        edges = await page.value(
            f"{{const one = document.querySelector('#{id} canvas'); const pen = one.getContext('2d');"
            " JSON.stringify([0, one.width - 1].map((x) => pen.getImageData(x, 0, 1, one.height).data"
            ".some((value) => value > 0)))}"
        )
        assert json.loads(edges) == [False, False], id


async def test_a_year_by_day_is_drawn(page: Page, filled: World) -> None:
    await page.goto(at(filled, of_acme(last="12m", grain="day")))
    await settled(page)
    await page.until("document.querySelector('#spend canvas') !== null")
    label = await page.value("document.querySelector('#spend .canvas').getAttribute('aria-label')")
    assert "366 buckets by day" in label
    took_ms = float(await page.value("document.querySelector('#spend').dataset.drawnMs"))
    assert took_ms > 0
    print(f"a year by day: {took_ms:.1f} ms")  # how fast is a matter for people: a timing decides no test
