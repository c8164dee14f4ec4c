"""The page beside a real worker: while traffic flows, its figures are those of REST at the same watermark."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support import browser, processes
from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE, Client
from tests.support.page_driver import APP, settled, shown

MATCHES = 4
"""How often the page and REST must be met at the same watermark, with figures that grow."""


async def test_figures_equal_rest_at_the_same_watermark_while_traffic_flows(
    chromium: str, migrated_url: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": migrated_url,
        "RABBITMQ_URL": f"embedded://{tmp_path}/stream",
        "FLUSH_INTERVAL": "2s",  # a question of the test often meets the flush that the page has shown
    }
    traffic = processes.Process(
        "pipeline.cli",
        ["simulate", "--rate", "60", "--orgs", "1"],
        env=env,
        log=tmp_path / "simulate.log",
        ready="",
    )
    with processes.worker(env, tmp_path) as worker, processes.Api(env, tmp_path) as api:
        server = Client(urlsplit(api.ready_url).port or 0)
        traffic.start(wait=False)
        try:
            processes.wait_for(lambda: bool(orgs(server)), 300, worker.log)
            (org,) = orgs(server)
            async with browser.page(chromium) as page:
                await page.looks()
                await page.goto(f"http://127.0.0.1:{server.port}{APP}#/orgs/{org}?last=today&by=none")
                await settled(page)
                met = set[int]()
                async with asyncio.timeout(600):
                    while len(met) < MATCHES:
                        found = json.loads(await page.value(_SHOWN))
                        usage = await asyncio.to_thread(today, server, org)
                        if usage["freshness"]["watermark"] != found["watermark"]:
                            await asyncio.sleep(0.1)
                            continue
                        assert found["range"] == shown(usage["totals"])
                        assert found["requests"] == f"{usage['totals']['invocations']:,}"
                        met.add(usage["totals"]["invocations"])
                assert not page.complaints
        finally:
            traffic.kill()
        assert worker.stop() == 0


_SHOWN = (
    "JSON.stringify({watermark: document.querySelector('.view').dataset.watermark,"
    " range: document.querySelector('[data-value=range]').innerText,"
    " requests: document.querySelector('[data-value=requests]').innerText})"
)
"""Script: the figures that stand on the page, and the watermark at which REST said them."""


def orgs(server: Client) -> list[str]:
    now = datetime.now(UTC)
    query = {"start": rfc3339(now - timedelta(days=1)), "end": rfc3339(now)}
    return [item["orgId"] for item in server.ok(f"{BASE}/orgs", query)["items"]]


def today(server: Client, org: str) -> Any:
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    query = {"start": rfc3339(start), "end": rfc3339(start + timedelta(days=1)), "groupBy": "none"}
    return server.ok(f"{BASE}/orgs/{org}/usage", query)
