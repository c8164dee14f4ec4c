"""A receiver that is away, slow or refuses stops no request, flush or shutdown. Lost spans are counted."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

import pytest

from deploy.local.ports import free_port
from tests.support import otlp_receiver, processes, streams
from tests.support.processes import Process, wait_for
from tests.support.usage_events import ORG, EventMill

REQUESTS = 30
QUEUE = 8


@contextmanager
def silent() -> Iterator[str]:
    """A receiver that takes a request and answers nothing until the end of the test."""
    over = threading.Event()

    def never() -> int:
        over.wait(600)
        return 503

    with otlp_receiver.over_http() as receiver:
        receiver.answer = never
        try:
            yield receiver.url
        finally:
            over.set()


@contextmanager
def refusing(status: int) -> Iterator[str]:
    with otlp_receiver.over_http() as receiver:
        receiver.answer = lambda: status
        yield receiver.url


@contextmanager
def away() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


FAULTS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "away": away,
    "silent": silent,
    "401": lambda: refusing(401),
    "503": lambda: refusing(503),
}


def has_lost(process: Process, *, silent: bool) -> bool:
    """Does the process say that it has lost spans, for the right reason? None may be exported."""
    _, text = processes.get(urljoin(process.ready_url, "/metrics"))
    spans = dict(re.findall(r'analytics_trace_spans_total\{outcome="(\w+)"\} (\S+)', text))
    assert float(spans["exported"]) == 0
    assert not silent or float(spans["not_taken"]) == 0, "the first export has not ended yet"
    return float(spans["queue_full" if silent else "not_taken"]) > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_flushes_and_the_end_go_on(fault: str, env: dict[str, str], tmp_path: Path) -> None:
    with ExitStack() as running:
        url = running.enter_context(FAULTS[fault]())
        env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE)}
        # A receiver that is silent holds the exporter for longer than the whole test takes.
        env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "600000" if fault == "silent" else "300"
        worker = running.enter_context(processes.worker(env, tmp_path))
        api = running.enter_context(processes.Api(env, tmp_path))
        events = EventMill(orgs=1).events(500)
        asyncio.run(streams.publish(env["RABBITMQ_URL"], env["RABBITMQ_STREAM"], events, "amqp", amqp_url=""))
        streams.wait_committed(env["DATABASE_URL"], 500, worker)
        for _ in range(REQUESTS):
            assert api.ask(f"/orgs/{ORG}/models")[0] == 200
        for process in (worker, api):
            wait_for(partial(has_lost, process, silent=fault == "silent"), 60, process.log)
        assert (worker.stop(), api.stop()) == (0, 0)
        ends = [line for line in (*worker.events(), *api.events()) if line["event"] == "spans_lost"]
        assert {line["service"] for line in ends} == {"spendstream", "spendstream-api"}
        assert all(line["exported"] == 0 for line in ends)
        said = [line for line in (*worker.events(), *api.events()) if line["event"] == "spans_not_taken"]
        if fault == "silent":
            assert all(line["at_the_end"] > 0 for line in ends), "the export was left behind, not awaited"
            assert not said
        else:
            assert len(said) == 2, "once a minute, however many exports fail"
