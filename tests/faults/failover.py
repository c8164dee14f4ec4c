"""Streaming replication from one stack's PostgreSQL to another's, and its promotion: a failover for tests.

The servers must run as processes. Inside Docker's containers there is no second folder to copy the data to.
"""

from __future__ import annotations

import shutil

import psycopg

from deploy.local import Stack
from deploy.local.ways.binaries import Processes

PROMOTE_S = 60


def possible(*stacks: Stack) -> bool:
    return all(isinstance(stack.way, Processes) for stack in stacks)


def follow(standby: Stack, primary: Stack) -> None:
    """Make ``standby`` a hot standby of ``primary``. Its old data go. Both must have been started before."""
    way, server = standby.way, standby.postgres
    assert isinstance(way, Processes)
    server.kill()
    shutil.rmtree(server.data / "pg")
    way.run(
        server,
        str(way.binaries.pg_bin / "pg_basebackup"),
        f"--pgdata={way.data_seen(server) / 'pg'}",
        f"--dbname={primary.postgres.database_url('postgres')}",
        "--write-recovery-conf",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--no-sync",
    )
    server.start()


def promote(standby: Stack) -> None:
    """Make a standby a primary of its own; returns when it accepts writes."""
    url = standby.postgres.database_url("postgres")
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        row = connection.execute("SELECT pg_promote(true, %s)", (PROMOTE_S,)).fetchone()
    assert row == (True,), "the standby was not promoted in time"
