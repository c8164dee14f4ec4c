"""A unit test starts no process and no server; whoever tries is told where such a test belongs."""

from __future__ import annotations

import multiprocessing.process
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

STARTS = (
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    (os, "fork"),
    (os, "posix_spawn"),
    (socket.socket, "listen"),
)


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a unit test starts no process and no server: this one belongs in tests/integration")


@contextmanager
def nothing_started() -> Iterator[None]:
    """While this holds, whatever starts a process or listens on a socket fails."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STARTS:
            patch.setattr(owner, name, refuse)
        yield


# The teardown is left alone: there the servers of other tests may be stopped.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with nothing_started():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with nothing_started():
        return (yield)
