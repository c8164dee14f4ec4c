"""Every event that was answered 200 counts once, whatever dies meanwhile: real broker and worker."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.local.servers import RabbitMQ
from tests.support import collectors, processes
from tests.support.collectors import Collector
from tests.support.processes import wait_for
from tests.support.senders import Sender, check_counted_once, counted
from tests.support.tcp_proxy import TcpProxy
from tests.support.usage_events import EventMill


@pytest.fixture
def spool(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "spool"
    folder.mkdir()
    return {"COLLECTOR_SPOOL": str(folder)}


def url_of(collector: Callable[[], Collector]) -> Callable[[], str]:
    return lambda: f"http://127.0.0.1:{collector().port}"


def test_events_of_a_healthy_broker_count_once_though_they_are_sent_twice(
    env: dict[str, str], tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    mill, again = EventMill(seed=1, at=now), EventMill(seed=1, at=now)
    with processes.worker(env, tmp_path) as worker, collectors.collector(env, tmp_path) as collector:
        senders = [Sender(url_of(lambda: collector), one, size=50) for one in (mill, again)]
        for sender in senders:
            asyncio.run(sender.send(rate=20, seconds=2))
            assert sender.statuses == {200: 40}
        wait_for(lambda: sum(counted(env["DATABASE_URL"])) == 4000, 120, worker.log)
        assert counted(env["DATABASE_URL"]) == (2000, 2000, 0)


def test_without_a_spool_a_broker_that_is_away_is_a_503_within_a_second_and_a_retry_counts_once(
    env: dict[str, str], tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    mill = EventMill(seed=2)
    settings = env | {"COLLECTOR_CONFIRM_TIMEOUT": "750ms"}
    with processes.worker(env, tmp_path) as worker, collectors.collector(settings, tmp_path) as collector:
        sender = Sender(url_of(lambda: collector), mill)
        asyncio.run(sender.send(rate=20, seconds=1))
        rabbitmq.stop()
        took, statuses = [], []
        for _ in range(5):
            started = time.monotonic()
            status, headers, _ = collector.request(
                "POST", "/v1/events", mill.events(1)[0], Content_Type="application/json"
            )
            took.append(time.monotonic() - started)
            statuses.append((status, headers.get("Retry-After")))
        assert statuses == [(503, "2")] * 5
        assert max(took) < 1.0
        assert collector.status() == 503
        mill.made -= 5  # nobody sends these again
        asyncio.run(sender.send(rate=50, seconds=2))
        assert set(sender.statuses) == {200, 503}
        assert sender.slowest_s < 1.5
        rabbitmq.start()
        asyncio.run(sender.send_again())
        check_counted_once(env, sender, mill, worker)
        collector.wait_ready()


async def test_a_frozen_broker_is_a_503_within_a_second_too(
    env: dict[str, str], tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    mill = EventMill(seed=3)
    async with TcpProxy("127.0.0.1", rabbitmq.ports["stream"]) as proxy:
        settings = env | {
            "RABBITMQ_URL": f"rabbitmq-stream://guest:guest@127.0.0.1:{proxy.port}/%2F",
            "RABBITMQ_ADDRESS": "given",
            "COLLECTOR_CONFIRM_TIMEOUT": "750ms",
        }
        worker, collector = processes.worker(env, tmp_path), collectors.collector(settings, tmp_path)
        try:
            await asyncio.gather(*(asyncio.to_thread(one.start) for one in (worker, collector)))
            sender = Sender(url_of(lambda: collector), mill)
            await sender.send(rate=20, seconds=1)
            proxy.freeze()
            await sender.send(rate=20, seconds=3)
            proxy.thaw()
            assert sender.statuses[503] >= 50
            assert sender.slowest_s < 1.5
            await sender.send_again()
            await asyncio.to_thread(check_counted_once, env, sender, mill, worker)
        finally:
            collector.kill()
            worker.kill()


def test_with_a_spool_a_broker_that_restarts_and_stays_away_for_a_while_costs_nobody_an_answer(
    env: dict[str, str], spool: dict[str, str], tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    mill = EventMill(seed=4)
    with (
        processes.worker(env, tmp_path) as worker,
        collectors.collector(env | spool, tmp_path, cold=True) as collector,
    ):
        sender = Sender(url_of(lambda: collector), mill, size=2)

        async def disturbed() -> None:
            sending = asyncio.create_task(sender.send(rate=200, seconds=16))
            await asyncio.sleep(2)
            await asyncio.to_thread(rabbitmq.kill)
            await asyncio.sleep(6)
            assert await asyncio.to_thread(collector.status) == 200
            found = await asyncio.to_thread(processes.get, collector.ready_url)
            assert found[1]["components"]["stream"] == {
                "status": "unavailable",
                "detail": "away; the log says why",
            }
            assert found[1]["components"]["spool"]["records"] > 1000
            assert found[1]["components"]["spool"]["oldestSeconds"] > 3
            await asyncio.to_thread(rabbitmq.start)
            await sending

        asyncio.run(disturbed())
        assert sender.statuses == {200: 3200}
        check_counted_once(env, sender, mill, worker)
        wait_for(lambda: collector.metric("analytics_collector_spool_records") == 0, 60)
        assert collector.metric('analytics_collector_events_total{dialect="events",outcome="spool"}') > 1000
        assert collector.peak_mib() < 300
        assert collector.stop() == 0
    assert [path.name for path in Path(spool["COLLECTOR_SPOOL"]).iterdir()] == ["lock"]


@pytest.mark.parametrize("away", [False, True], ids=["broker there", "broker away now and then"])
def test_a_collector_killed_ten_times_under_load_loses_nothing_that_was_answered(
    env: dict[str, str], spool: dict[str, str], tmp_path: Path, rabbitmq: RabbitMQ, away: bool
) -> None:
    mill = EventMill(seed=5 + away)
    settings = env | spool
    with processes.worker(env, tmp_path) as worker, collectors.collector(settings, tmp_path) as collector:
        sender = Sender(url_of(lambda: collector), mill, size=3, attempt_s=5)

        async def killed() -> None:
            sending = asyncio.create_task(sender.send(rate=100, seconds=40))
            for round_ in range(10):
                await asyncio.sleep(1.5)
                await asyncio.to_thread(collector.kill)
                if away and round_ % 3 == 0:
                    await asyncio.to_thread(rabbitmq.kill)
                if away and round_ % 3 == 2:
                    await asyncio.to_thread(rabbitmq.start)
                await asyncio.to_thread(collector.start)
            await asyncio.to_thread(rabbitmq.start)
            await sending

        asyncio.run(killed())
        assert sender.answered > 1000
        assert sender.statuses[0] > 0, "no request was cut off"
        asyncio.run(sender.send_again())
        check_counted_once(env, sender, mill, worker)


async def test_a_collector_killed_while_the_broker_is_silent_has_answered_for_nothing_that_is_lost(
    env: dict[str, str], spool: dict[str, str], tmp_path: Path, rabbitmq: RabbitMQ
) -> None:
    mill = EventMill(seed=8)
    async with TcpProxy("127.0.0.1", rabbitmq.ports["stream"]) as proxy:
        through = {
            "RABBITMQ_URL": f"rabbitmq-stream://guest:guest@127.0.0.1:{proxy.port}/%2F",
            "RABBITMQ_ADDRESS": "given",
        }
        worker = processes.worker(env, tmp_path)
        collector = collectors.collector(env | spool | through, tmp_path)
        try:
            await asyncio.gather(*(asyncio.to_thread(one.start) for one in (worker, collector)))
            sender = Sender(url_of(lambda: collector), mill, size=3, attempt_s=5)
            for _ in range(4):
                sending = asyncio.create_task(sender.send(rate=100, seconds=3))
                await asyncio.sleep(1)
                proxy.freeze()
                await asyncio.sleep(1)
                collector.kill()
                proxy.cut()
                proxy.thaw()
                await asyncio.to_thread(collector.start)
                await sending
            assert sender.answered > 1000
            await sender.send_again()
            await asyncio.to_thread(check_counted_once, env, sender, mill, worker)
        finally:
            collector.kill()
            worker.kill()


def test_a_collector_that_stops_in_good_order_answers_what_is_in_work(
    env: dict[str, str], tmp_path: Path
) -> None:
    mill = EventMill(seed=7)
    with processes.worker(env, tmp_path) as worker, collectors.collector(env, tmp_path) as collector:
        sender = Sender(url_of(lambda: collector), mill, size=5)

        async def stopped() -> int:
            sending = asyncio.create_task(sender.send(rate=100, seconds=4))
            await asyncio.sleep(2)
            started = time.monotonic()
            code = await asyncio.to_thread(collector.stop)
            assert time.monotonic() - started < 12
            await sending
            return code

        assert asyncio.run(stopped()) == 0
        assert sender.answered > 500
        events = [line["event"] for line in collector.events()]
        assert events.index("collector_stopping") < events.index("collector_stopped")
        assert "request_failed" not in events
        collector.start()
        asyncio.run(sender.send_again())
        check_counted_once(env, sender, mill, worker)
