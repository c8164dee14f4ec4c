"""`python -m deploy.local run --cluster`: real nodes, a standby that follows, and nothing left outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import cluster, network, ways

ROOT = Path(__file__).parents[2]
LOOK = """
import asyncio, os, psycopg
from pipeline.transports.rabbitmq.transport import RabbitMQTransport, addresses
from tests.support import streams

async def publish():
    transport = RabbitMQTransport(streams.config(os.environ["RABBITMQ_URL"], "events"))
    await transport.create_super_stream(partitions=3)
    publisher = await transport.publisher()
    await publisher.publish([b"{}"] * 30, keys=[str(number) for number in range(30)])
    print("records", sum(extent.end_offset for extent in await transport.extents()))
    await transport.close()

print("nodes", len(addresses(os.environ["RABBITMQ_URL"])))
asyncio.run(publish())
with psycopg.connect(os.environ["DATABASE_URL"]) as primary:
    print(*primary.execute("SELECT pg_is_in_recovery(), current_database()").fetchone())
    print(*primary.execute("SELECT state, sync_state FROM pg_stat_replication").fetchone())
"""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "deploy.local", "run", *options)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.skipif(network.impossible() is not None, reason=f"{network.impossible()}")
def test_a_command_runs_with_a_cluster_that_is_gone_when_it_ends() -> None:
    before = set(os.listdir("/sys/class/net")), _names()
    done = run("--cluster", "--synchronous", "--not-durable", "--", sys.executable, "-c", LOOK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["nodes 3", "records 30", "False spendstream", "streaming sync"]
    assert (set(os.listdir("/sys/class/net")), _names()) == before


def _names() -> list[Path]:
    """The names of network namespaces on this host."""
    return sorted(network.NETWORKS.glob("*"))


def test_a_cluster_is_whole_and_a_standby_needs_one() -> None:
    for options, fault in (
        (("--cluster", "--services", "redis"), "a cluster is whole"),
        (("--synchronous",), "add --cluster"),
    ):
        refused = run(*options, "--", "true")
        assert (refused.returncode, fault in refused.stderr) == (2, True), refused


def test_the_binaries_are_fetched_where_the_registries_can_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fresh machine has no root folder yet, and nothing can be fetched from the namespaces."""
    done: list[str] = []
    monkeypatch.setattr(ways, "first_possible", lambda _: done.append("fetched"))
    monkeypatch.setattr(network, "enter", lambda _: done.append("entered"))
    cluster.enter(("true",))
    assert done == ["fetched", "entered"]
