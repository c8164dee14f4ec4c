"""A real Prometheus that scrapes our processes, as `deploy/prometheus/prometheus.yml` tells it to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local.ports import free_port
from tests.support import packages, watch
from tests.support.processes import wait_until_answering


def promtool() -> str:
    """The path of promtool. Raises `deploy.local.Unavailable`."""
    return packages.unpacked("prometheus", "promtool")


def amtool() -> str:
    """The path of amtool. Raises `deploy.local.Unavailable`."""
    return packages.unpacked("prometheus-alertmanager", "amtool")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Questions to a Prometheus that runs."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """The ``data`` of an answer below ``/api/v1``."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
            return json.load(answer)["data"]

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of every series that a selector finds."""
        found: list[dict[str, str]] = self.ask("series", **{"match[]": selector})
        return found

    def value(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now: a list of series, each with ``metric`` and ``value``."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found


def configure(targets: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Write our own configuration and rules with other targets by job, quicker, and without an Alertmanager.

    The jobs must be those of the configuration: a rule that names another job finds nothing.
    """
    rules = yaml.safe_load(watch.RULES.read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules, sort_keys=False))
    told: dict[str, Any] = yaml.safe_load((watch.PROMETHEUS / "prometheus.yml").read_text())
    assert {job["job_name"] for job in told["scrape_configs"]} == set(targets)
    for job in told["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    told["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    told["rule_files"] = ["rules.yml"]
    del told["alerting"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(told))


@contextmanager
def running(targets: Mapping[str, Sequence[str]], folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ``targets`` (host:port, by job), with its data in ``folder``.

    Raises `deploy.local.Unavailable` if there is no Prometheus and none can be fetched.
    """
    program = packages.unpacked("prometheus", "prometheus")
    port = free_port()
    configure(targets, folder)
    command = (
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"}) as it,
    ):
        try:
            wait_until_answering(it, lambda: _ask(port), folder / "prometheus.log")
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            it.send_signal(signal.SIGKILL)


def _ask(port: int) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10).close()
