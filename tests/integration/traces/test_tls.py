"""Traces over TLS, to a receiver whose certificate is of an authority that nobody else knows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from pipeline.common import settings, traces
from pipeline.common.traces.config import traces_config
from tests.conftest import missing
from tests.support import otlp_receiver

EC: Final = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ``ours`` and ``other``, and a certificate of ours for 127.0.0.1."""
    if shutil.which("openssl") is None:
        missing("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        *(
            f"req -x509 {EC} -days 1 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            for name in ("ours", "other")
        ),
        f"req {EC} -subj /CN=receiver -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ours.pem -CAkey ours.key -CAcreateserial -days 1 -extfile server.ext"
        " -out server.pem",
    ):
        done = subprocess.run(("openssl", *command.split()), cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("authority", ["ours", "other", None])
def test_spans_go_to_a_receiver_of_the_authority_that_is_named_and_to_no_other(
    folder: Path, protocol: str, authority: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "other.pem"))  # many hosts have it set
    identity = (folder / "server.pem", folder / "server.key")
    receiving = (
        otlp_receiver.over_grpc(identity=identity)
        if protocol == "grpc"
        else otlp_receiver.over_http(identity=identity)
    )
    with receiving as receiver:
        given = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=hush",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "10000" if authority == "ours" else "1000",
        }
        if authority is not None:
            given["OTEL_EXPORTER_OTLP_CERTIFICATE"] = str(folder / f"{authority}.pem")
        with traces.running(traces_config(settings.read(given)), "tests"):
            with traces.span("flush", rows=1):
                pass
            tracer = traces._tracer
        assert tracer is not None
        taken = authority == "ours"
        assert tracer.counts()["exported"] == taken
        assert tracer.counts()["not_taken"] == (not taken)
        assert [span.name for span in receiver.spans] == ["flush"] * taken
        assert [headers["x-api-key"] for headers in receiver.headers] == ["hush"] * taken
