"""Off, a process loads no tracing. With an endpoint and without the extra `otel`, it says so and ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.processes import child
from tests.support import processes

FAULT = (
    "OTEL_EXPORTER_OTLP_ENDPOINT is set, and what exports traces is not installed: pip install"
    " 'spendstream[otel]', or set OTEL_SDK_DISABLED=true"
)
SERVERS = {
    "DATABASE_URL": "postgresql://localhost:1/none",
    "RABBITMQ_URL": "rabbitmq-stream://localhost:1/",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
}


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which no package of OpenTelemetry is found."""
    (tmp_path / "opentelemetry.py").write_text("")
    return {**SERVERS, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("name", ["worker", "api", "exporter", "alerts", "collector"])
def test_a_process_that_would_send_spans_exits_with_2(without: dict[str, str], name: str) -> None:
    done = processes.command(name, env=without)
    assert (done.returncode, done.stderr.strip()) == (2, f"configuration: {FAULT}")


def test_a_command_that_sends_none_goes_on(without: dict[str, str], timescale: str) -> None:
    done = processes.command("config", env=without)
    assert done.returncode == 0, done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318" in done.stdout
    done = processes.command("migrate", env={**without, "DATABASE_URL": timescale})
    assert done.returncode == 0, done.stderr


def test_the_doctor_names_it_and_checks_the_rest(without: dict[str, str]) -> None:
    done = processes.command("doctor", "--for", "exporter", env=without)
    assert done.returncode == 1
    fault, _, remedy = FAULT.partition(": ")
    assert f"fail  traces         {fault}\n" in done.stdout
    assert remedy in done.stdout
    assert "fail  database" in done.stdout


def test_nothing_of_ours_loads_the_sdk_while_tracing_is_off() -> None:
    """redis-py loads opentelemetry's metrics where they are installed, whatever we do. The rest is ours."""
    code = """
import sys
from pipeline.common import traces
import api.__main__, pipeline.cli, pipeline.collector.service, pipeline.worker.service
from pipeline.common.settings import read
from pipeline.common.traces.config import traces_config
with traces.running(traces_config(read({})), "worker"):
    with traces.span("flush") as span:
        span.set(rows=1)
ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto", "grpc", "google.protobuf")
print(sorted(name for name in sys.modules if name.startswith(ours)))
"""
    command = [*child.command_line("x")[:1], "-c", code]
    done = subprocess.run(
        command, env=child.environment(os.environ), capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
