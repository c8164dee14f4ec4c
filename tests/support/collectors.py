"""The collector as the process it is, and requests to it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from multidict import CIMultiDict

from deploy.local.ports import free_port
from tests.support.processes import Process, get

SLOW_MACHINE = {"COLLECTOR_CONFIRM_TIMEOUT": "10s", "API_DATABASE_TIMEOUT": "5s"}
"""Settings of a collector under test: a busy machine may pause for half a second."""


class Collector(Process):
    """The collector process."""

    def __init__(
        self, env: Mapping[str, str], folder: Path, *, name: str = "collector", cold: bool = False
    ) -> None:
        self.port = free_port()
        super().__init__(
            "pipeline.cli",
            ["collector"],
            env={**SLOW_MACHINE, **env, "COLLECTOR_PORT": str(self.port)},
            log=folder / f"{name}.log",
            ready=f"http://127.0.0.1:{self.port}/status/readyz",
            cold=cold,
        )

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request. An underscore in the name of a header stands for a hyphen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            answer = connection.getresponse()
            return answer.status, CIMultiDict(answer.headers.items()), answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        """Post a body, as JSON unless a header says otherwise; status and answer."""
        headers = {"Content_Type": "application/json", **headers}
        status, _, answer = self.request("POST", path, body, **headers)
        return status, json.loads(answer)

    def metric(self, name: str) -> float:
        """A value of the page of metrics, by its name and labels."""
        _, text = get(urljoin(self.ready_url, "/metrics"))
        lines = (line for line in text.splitlines() if line.startswith(f"{name} "))
        return float(next(lines).rpartition(" ")[2])

    def get_component(self, name: str) -> Any:
        """What readiness says of one component."""
        return get(self.ready_url)[1]["components"][name]


def collector(
    env: Mapping[str, str], folder: Path, *, name: str = "collector", cold: bool = False
) -> Collector:
    return Collector(env, folder, name=name, cold=cold)
