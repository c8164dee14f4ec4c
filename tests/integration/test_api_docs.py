"""The docs page in a real browser: every operation is there, and nothing but this server is asked."""

from urllib.parse import urlsplit

from api.contract.operations import OPERATIONS
from tests.support import browser
from tests.support.api_facts import NOW
from tests.support.api_server import BASE, served


async def test_a_browser_shows_every_operation_and_asks_nobody_else(chromium: str) -> None:
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}  # the page needs no database
    with served(nowhere, NOW) as server:
        async with browser.page(chromium) as page:
            await page.goto(f"http://127.0.0.1:{server.port}{BASE}/docs#getUsage")
            await page.until("document.querySelectorAll('#types details').length > 0")
            shown = await page.value(
                "[...document.querySelectorAll('#operations details')].map((box) =>"
                " [box.id, box.querySelector('b').innerText, box.querySelector('code').innerText,"
                " box.querySelectorAll('tr').length])"
            )
            text = await page.value("document.body.innerText")
            opened = await page.value("[...document.querySelectorAll('details[open]')].map((box) => box.id)")
            margin = await page.value("getComputedStyle(document.querySelector('details')).borderRadius")
        assert {tuple(row[:3]) for row in shown} == {
            (operation.name, operation.method, operation.path) for operation in OPERATIONS
        }
        assert all(rows >= 2 for *_, rows in shown), shown  # a table of answers each, at least
        assert opened == ["getUsage"]
        assert (
            "costEstimateCents" not in text.partition("Types")[0]
        )  # types are folded until they are asked for
        assert "First instant of the range" in text
        assert margin == "6px", "its style was refused"
        assert not page.complaints
        assert {urlsplit(url).netloc for url in page.requests} == {f"127.0.0.1:{server.port}"}
        assert {urlsplit(url).path for url in page.requests} == {f"{BASE}/docs", f"{BASE}/openapi.json"}


async def test_what_a_page_should_not_do_would_be_noticed(chromium: str) -> None:
    async with browser.page(chromium) as page:
        await page.goto("data:text/html,<img src='http://tracker.example/x.png'><script>oops()</script>")
        await page.until("document.readyState === 'complete'")
        await page.until("performance.getEntriesByType('navigation').length > 0")
    assert "http://tracker.example/x.png" in page.requests
    assert any("oops" in complaint for complaint in page.complaints)
    assert any("NAME_NOT_RESOLVED" in complaint for complaint in page.complaints)
