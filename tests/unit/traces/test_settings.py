"""OpenTelemetry's settings: their forms, their defaults, and that no header is ever shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.common import logs, settings
from pipeline.common.traces import forms
from pipeline.common.traces.config import traces_config

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318/"}


def test_without_an_endpoint_or_disabled_tracing_is_off() -> None:
    assert traces_config(settings.read({})) is None
    assert (
        traces_config(settings.read({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"})) is None
    )
    assert traces_config(settings.read({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"})) is None


def test_the_defaults_are_those_of_the_specification() -> None:
    config = traces_config(settings.read(ENDPOINT))
    assert config is not None
    assert config.endpoint == "http://localhost:4318"
    assert (config.protocol, config.timeout_s) == ("http/protobuf", 10.0)
    assert (config.sampler, config.ratio) == ("parentbased_always_on", 1.0)
    assert (config.queue_spans_max, config.delay_s) == (2048, 5.0)
    assert (config.headers, config.certificate, config.service_name, config.resource) == (None,) * 4


def test_headers_and_attributes_are_lists_with_percent_encoding() -> None:
    given = {
        **ENDPOINT,
        "OTEL_EXPORTER_OTLP_HEADERS": "X-Api-Key=a%2Cb%3D , authorization=Bearer%20hush=,",
        "OTEL_RESOURCE_ATTRIBUTES": "team=%C3%A9quipe,empty=",
    }
    config = traces_config(settings.read(given))
    assert config is not None
    assert config.headers == (("x-api-key", "a,b="), ("authorization", "Bearer hush="))
    assert config.resource == (("team", "équipe"), ("empty", ""))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hush@host"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host/?key=1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hush"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "=hush"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hush"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hush%0Ab"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hush%FF"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hush\u00e9"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nothing/there.pem"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", json.__file__),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_RESOURCE_ATTRIBUTES", ",".join(f"a{number}=1" for number in range(129))),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_TRACES_SAMPLER_ARG", "-1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100001"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0.5"),
        ("OTEL_SDK_DISABLED", "yes"),
    ],
)
def test_a_wrong_value_is_one_fault_that_shows_no_secret(name: str, text: str) -> None:
    with pytest.raises(settings.ConfigError) as caught:
        settings.read({name: text})
    (fault,) = caught.value.faults
    assert fault.startswith(f"{name}=")
    if name == "OTEL_EXPORTER_OTLP_HEADERS":
        assert "hush" not in fault


def test_headers_are_shown_by_no_command_and_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x-home=https://hush.example/hush,authorization=Bearer%20hush%2Chush"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    for arguments in (["config"], ["config", "--json"]):
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == 0, done.output
        assert "hush" not in done.output
    values = settings.read({**ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS": text})
    assert "hush" not in repr(values)
    assert "hush" not in repr(traces_config(values))
    record = logging.makeLogRecord(
        {"name": "api", "msg": "x", "a": text, "b": "Bearer hush,hush", "c": "hush,hush", "d": "kept"}
    )
    line = json.loads(logs.JsonFormatter("api", values.secrets()).format(record))
    assert {line[name] for name in "abc"} <= {"…", "Bearer …"}
    assert line["d"] == "kept"


def test_headers_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("x-api-key=hush\n")
    values = settings.read({**ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS_FILE": str(tmp_path / "headers")})
    config = traces_config(values)
    assert config is not None
    assert config.headers == (("x-api-key", "hush"),)


def test_a_certificate_is_a_file_in_pem_form(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    given = {**ENDPOINT, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem")}
    config = traces_config(settings.read(given))
    assert config is not None
    assert config.certificate == tmp_path / "ca.pem"


@pytest.mark.parametrize("lacking", ["opentelemetry.sdk.trace", *forms.PROTOCOLS.values()])
def test_what_is_not_installed_is_a_fault_where_it_is_needed(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "is_installed", lambda module: module != lacking)
    settings.read({}, sends_traces=True)
    settings.read({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, sends_traces=True)
    for protocol, module in forms.PROTOCOLS.items():
        given = {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        if lacking in (module, "opentelemetry.sdk.trace"):
            with pytest.raises(settings.ConfigError, match=r"pip install 'spendstream\[otel\]'"):
                settings.read(given, sends_traces=True)
        else:
            settings.read(given, sends_traces=True)
        settings.read(given)  # a command that sends no span needs nothing of it
