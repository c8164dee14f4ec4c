"""What a test does with the page, and what it reads there: figures as REST has them, faults by axe."""

from __future__ import annotations

import gzip
import json
import time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.support.api_server import BASE, Client
from tests.support.browser import Page
from tests.support.page_world import ACME, World

_AXE: Final = Path(__file__).parents[1] / "data" / "axe" / "axe.min.js.gz"
APP: Final = "/analytics/v1/app/"


def at(world: World, fragment: str = "") -> str:
    return f"http://127.0.0.1:{world.port}{APP}{fragment}"


def of_acme(**view: str) -> str:
    return f"#/orgs/{ACME}?" + "&".join(f"{name}={value}" for name, value in view.items())


async def settled(page: Page) -> None:
    """Wait until the view of an org has its first figures."""
    await page.until("document.querySelector('.view')?.dataset.view === location.hash")
    await see(page, "#card-range .value", says="$")
    await see(page, "#top-models tbody")
    await page.until("!document.querySelector('.view').hasAttribute('aria-busy')")


def rest(world: World, path: str, **query: Any) -> Any:
    return Client(world.port).ok(f"{BASE}/{path}", query)


@cache
def _axe() -> str:
    return gzip.decompress(_AXE.read_bytes()).decode()


async def faults_of(page: Page) -> list[str]:
    """What axe-core, with all its rules of WCAG 2.2 AA and of good practice, finds wrong with the page."""
    await page.value(_axe() + ";0")
    await page.value(
        "window.axeDone = null; axe.run(document, {resultTypes: ['violations']}).then((found) => {"
        " window.axeDone = JSON.stringify(found.violations.flatMap((one) => one.nodes.map((node) =>"
        " one.id + ': ' + node.html.slice(0, 150) + ' ' + (node.any[0]?.message ?? ''))))});0"
    )
    await page.until("window.axeDone !== null")
    found: list[str] = json.loads(await page.value("window.axeDone"))
    return found


async def text(page: Page, selector: str) -> str:
    """The text of the first element, as it stands on the screen."""
    found: str = await page.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
    return found.strip()


async def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = await page.value(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText.trim())"
    )
    return found


async def see(page: Page, selector: str, *, says: str = "") -> None:
    """Wait until the element is there, and has this text in it."""
    await page.until(
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        f".some((one) => one.checkVisibility() && one.innerText.includes({json.dumps(says)}))"
    )


async def click(page: Page, selector: str) -> None:
    await see(page, selector)
    await page.value(f"document.querySelector({json.dumps(selector)}).click()")


async def choose(page: Page, selector: str, value: str) -> None:
    """Choose an option of a select."""
    await page.value(
        f"{{const one = document.querySelector({json.dumps(selector)}); one.value = {json.dumps(value)};"
        " one.dispatchEvent(new Event('change', {bubbles: true}))}"
    )


async def by_tab(page: Page, most: int = 120) -> list[str]:
    """The controls that Tab visits from the top of the page: the id of each, or its tag and text."""
    await page.value("document.body.focus(); scrollTo(0, 0)")
    visited: list[str] = []
    for _ in range(most):
        await page.press("Tab")
        here = await page.value(
            "{const one = document.activeElement; one === document.body ? '' : one.id ||"
            " one.tagName + ' ' + (one.getAttribute('aria-label') ?? one.innerText.slice(0, 30))}"
        )
        if not here or here in visited:
            break
        visited.append(here)
    return visited


def saved_file(folder: Path) -> str:
    """The text of the one file that the browser saves there, once it is whole."""
    deadline = time.monotonic() + 120
    while not (found := [path for path in folder.iterdir() if path.suffix == ".csv"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (file,) = found
    return file.read_bytes().decode("utf-8-sig")


def dollars(amount: str | None) -> str:
    """An amount as the page shows it: cents, and four digits below a dollar."""
    if amount is None:
        return "unknown"
    value = Decimal(amount)
    places = Decimal("0.0001") if value and abs(value) < 1 else Decimal("0.01")
    rounded = value.quantize(places, ROUND_HALF_EVEN)
    return f"{'-' if value < 0 else ''}${abs(rounded):,}"


def shown(totals: Any) -> str:
    """The totals of an answer of REST as a card shows their amount."""
    return "$0.00" if totals["invocations"] == 0 else dollars(totals["cost"]["amount"])
