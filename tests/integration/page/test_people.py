"""Who may see what in the page: signing in, other people's orgs. And what it shows when something is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.support.access import ENV, new_key
from tests.support.api_faults import eventually_equal
from tests.support.api_server import BASE, served
from tests.support.browser import Page
from tests.support.live import Events
from tests.support.page_driver import at, click, dollars, faults_of, of_acme, rest, see, settled, shown, text
from tests.support.page_world import ACME, MARKUP, NAMES, ORGS, World, tick
from tests.support.postgres_proxy import PostgresProxy


@pytest.fixture(scope="module")
def guarded(filled: World) -> Iterator[World]:
    """The same figures behind keys."""
    with served({"DATABASE_URL": filled.url, **ENV}) as api:
        yield replace(filled, port=api.port)


async def enter(page: Page, credential: str) -> None:
    await see(page, "#credential")
    assert await page.value("document.activeElement.id") == "credential"
    await page.write(credential)
    await page.press("Enter")


async def test_a_key_signs_in_and_shows_its_own_org_and_nothing_of_others(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await see(page, "h1", says="Sign in")
    assert not await faults_of(page)
    await enter(page, guarded.key)
    await settled(page)
    await see(page, "h1", says="Acme Ltd.")
    whole = await page.value("document.documentElement.outerHTML")
    for org, name in zip(ORGS[1:], NAMES[1:], strict=True):
        assert str(org) not in whole
        assert name is None or json.dumps(name)[1:-1] not in whole
    assert MARKUP not in await page.value("document.body.innerText")
    assert "All orgs" not in await text(page, "#top")
    assert not page.complaints or all("401" in said for said in page.complaints)


async def test_the_address_of_anothers_org_shows_nothing_of_it(page: Page, guarded: World) -> None:
    await page.goto(at(guarded, f"#/orgs/{ORGS[1]}"))
    await enter(page, guarded.key)
    await see(page, "#spend .failure", says="This org is not yours to read.")
    assert "Borealis" not in await page.value("document.documentElement.outerHTML")


async def test_a_credential_stays_in_its_tab_and_goes_with_sign_out(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await enter(page, guarded.key)
    await settled(page)
    assert guarded.key not in await page.value(
        "JSON.stringify(localStorage) + document.cookie + location.href"
    )
    await page.value("location.reload()")
    await settled(page)
    await click(page, "#sign-out")
    await see(page, "h1", says="Sign in")
    assert await page.value("JSON.stringify(sessionStorage)") == "{}"
    assert "Acme" not in await page.value("document.body.innerText")
    assert not any(guarded.key in url for url in page.requests)


async def test_a_credential_that_is_not_good_is_refused_with_the_reason(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await enter(page, "no-such-key")
    await see(page, "#credential-fault")
    assert await page.value("document.getElementById('credential').getAttribute('aria-invalid')") == "true"
    assert not await faults_of(page)


async def test_a_key_without_a_role_sees_the_rest(page: Page, guarded: World) -> None:
    await page.goto(at(guarded))
    await enter(page, new_key(guarded.url, ACME, "analytics:usage:read"))
    await settled(page)
    await see(page, "#card-errors", says="needs analytics:reliability:read")
    assert not await page.value("document.querySelector('#errors').checkVisibility()")
    assert await page.value("document.querySelector('#exports')") is None


async def test_while_the_database_is_away_the_last_figures_stay_and_say_their_age(
    page: Page, filled: World
) -> None:
    proxy = PostgresProxy(filled.url)
    with served({"DATABASE_URL": proxy.url}) as api:
        world = replace(filled, port=api.port)
        await page.goto(at(world, of_acme(last="today")))
        await settled(page)
        before = await text(page, "[data-value=range]")
        proxy.shut()
        await see(page, "#part-notices .banner.warn", says="These figures are old.")
        await see(page, "#part-notices .banner.warn", says=" ago: ")
        assert len(await text(page, "#part-notices .banner.warn code")) >= 32
        assert await text(page, "[data-value=range]") == before
        assert not await faults_of(page)
        proxy.open()
        tick(filled.url, ACME)
        await page.until("document.querySelector('#part-notices .banner.warn') === null")
        await page.until(f"document.querySelector('[data-value=range]').innerText !== {json.dumps(before)}")
        start = filled.now.replace(hour=0, minute=0, second=0, microsecond=0).isoformat()
        usage = rest(
            world, f"orgs/{ACME}/usage", start=start, end=filled.now.replace(hour=23, minute=59).isoformat()
        )
        await see(page, "[data-value=range]", says=dollars(usage["totals"]["cost"]["amount"]))
    proxy.shut()


async def test_a_server_that_is_away_from_the_start_is_asked_again(page: Page, filled: World) -> None:
    proxy = PostgresProxy(filled.url)
    proxy.shut()
    with served({"DATABASE_URL": proxy.url}) as api:
        await page.goto(at(replace(filled, port=api.port), of_acme(last="24h")))
        await see(page, "#spend .failure", says="A dependency of the server is away")
        assert not await faults_of(page)
        proxy.open()
        await click(page, "#spend .failure button")
        await settled(page)
    proxy.shut()


async def test_where_live_connections_are_full_the_page_asks_by_itself(page: Page, filled: World) -> None:
    with served({"DATABASE_URL": filled.url, "LIVE_MAX": "1"}) as api, closing(Events(api, ORGS[1])):
        await page.goto(at(replace(filled, port=api.port), of_acme(last="today")))
        await settled(page)
        await see(page, ".live", says="every 10 s")
        before = await text(page, "[data-value=today]")
        tick(filled.url, ACME)
        await page.until(f"document.querySelector('[data-value=today]').innerText !== {json.dumps(before)}")


async def test_a_caller_of_several_orgs_without_the_list_has_links(page: Page, filled: World) -> None:
    with served({"DATABASE_URL": filled.url, "AUTH_MODE": "gateway"}) as api:
        await page.sends(
            {
                "X-Actor-Subject": "ana",
                "X-Actor-Roles": "analytics:usage:read",
                "X-Actor-Orgs": f"{ORGS[0]},{ORGS[1]}",
            }
        )
        world = replace(filled, port=api.port)
        await page.goto(at(world))
        await see(page, ".links a", says=str(ORGS[1]))
        assert not await faults_of(page)
        await click(page, f'.links a[href="#/orgs/{ORGS[1]}"]')
        await settled(page)
        await see(page, "h1", says="Borealis Health")


async def test_a_tab_that_nobody_sees_gives_its_connection_back(page: Page, filled: World) -> None:
    with served({"DATABASE_URL": filled.url}) as api:
        await page.goto(at(replace(filled, port=api.port), of_acme(last="today")))
        await settled(page)
        await see(page, ".live", says="live")
        for state, count in (("hidden", 0), ("visible", 1)):
            await page.value(
                "Object.defineProperty(document, 'visibilityState',"
                f" {{value: '{state}', configurable: true}});"
                " document.dispatchEvent(new Event('visibilitychange'));0"
            )
            wanted = f"analytics_live_clients {count}.0"
            await asyncio.to_thread(eventually_equal, lambda w=wanted: w in api.ok("/metrics"), True)
        before = await text(page, "[data-value=today]")
        tick(filled.url, ACME)
        await page.until(f"document.querySelector('[data-value=today]').innerText !== {json.dumps(before)}")


async def test_a_zone_whose_month_is_not_kept_says_so_and_shows_the_rest(page: Page, filled: World) -> None:
    """The month of a zone off the whole hour takes minute rows, so REST refuses it late in the month."""
    with served({"DATABASE_URL": filled.url, "RETENTION_MINUTE": "1d"}) as api:
        await page.goto(at(replace(filled, port=api.port), of_acme(last="24h", tz="Asia/Kolkata")))
        await settled(page)
        status, answer = api.get(
            f"{BASE}/orgs/{ACME}/usage",
            {"last": "mtd", "timeZone": "Asia/Kolkata", "groupBy": "none", "granularity": "month"},
        )
        if status == 200:
            await see(page, "[data-value=month]", says=shown(answer["totals"]))
        else:
            assert await text(page, "[data-value=month]") == "–"
            await see(page, "#card-month .sub", says=answer["errors"][0]["message"])
        await see(page, "#top-clients tbody th")
