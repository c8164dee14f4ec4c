"""Loops come from the cache, or a child compiles them into it: the compiler stays out of this process."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.core.kernels.compile import NotCompiled, from_cache_only
from pipeline.processes import compiling

LOOPS = """
import os

from pipeline.core.kernels.compile import compiled

@compiled
def twice(number):
    return 2 * number

@compiled
def thrice(number):
    return number + twice(number)

def first():
    assert twice(2) == 4

def second():
    {second}
    assert thrice(2) == 6
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules this process and its children can import; nothing in it was ever compiled."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("loops_")]:
        del sys.modules[name]


def loops(folder: Path, second: str = "pass") -> ModuleType:
    name = f"loops_{uuid.uuid4().hex}"
    (folder / f"{name}.py").write_text(LOOPS.format(second=second))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def compiled_here(module: Any) -> int:
    """How many loops this process has compiled."""
    return sum(
        len(loop.signatures) - sum(loop.stats.cache_hits.values()) for loop in (module.twice, module.thrice)
    )


def compilers_code_mib() -> float:
    """How much of the compiler's code this process holds."""
    kib, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            counts = rest[0] == "r-xp" and line.endswith("/libllvmlite.so")
        elif counts and first == "Rss:":
            kib += int(rest[0])
    return kib / 1024


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == compiling.__name__]


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, compiling.__name__)


async def test_the_first_start_loads_what_a_child_has_compiled_and_the_next_one_needs_no_child(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = loops(folder)
    await compiling.warm_up(module.first, module.second)
    assert (len(module.twice.signatures), len(module.thrice.signatures)) == (1, 1)
    assert compiled_here(module) == 0
    assert said(caplog) == ["loops_compiled"]

    del sys.modules[module.__name__]
    module = importlib.import_module(module.__name__)
    caplog.clear()
    await compiling.warm_up(module.first, module.second)
    assert (len(module.thrice.signatures), compiled_here(module)) == (1, 0)
    assert said(caplog) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="another system than Linux")
async def test_the_compilers_code_leaves_the_memory_and_comes_again_when_it_is_called(folder: Path) -> None:
    module = loops(folder)
    await compiling.warm_up(module.first)
    assert compilers_code_mib() < 4
    module.second()
    assert compiled_here(module) == 1, "nobody had compiled the loop of `second`"
    assert compilers_code_mib() > 8


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (f"assert os.getpid() == {os.getpid()}, 'not this process'", "ended with 1: .*not this process"),
        (f"os.getpid() == {os.getpid()} or os.kill(os.getpid(), 9)", "ended with -9"),
    ],
    ids=["fails", "killed"],
)
async def test_a_child_that_fails_is_said_and_the_process_compiles_its_loops_itself(
    folder: Path, caplog: pytest.LogCaptureFixture, second: str, reason: str
) -> None:
    module = loops(folder, second)
    await compiling.warm_up(module.first, module.second)
    assert compiled_here(module) == 1, "the loop of `first` is in the cache; that of `second` is not"
    assert said(caplog) == ["loops_not_compiled_apart"]
    (record,) = (one for one in caplog.records if one.name == compiling.__name__)
    assert re.search(reason, record.__dict__["error"], re.DOTALL)


async def test_a_child_that_hangs_is_ended(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "COMPILE_S", 2.0)
    module = loops(folder, f"os.getpid() == {os.getpid()} or __import__('time').sleep(10_000)")
    await compiling.warm_up(module.second)
    (record,) = (one for one in caplog.records if one.name == compiling.__name__)
    assert record.__dict__["error"] == "the child has not ended after 2 s"
    assert len(module.thrice.signatures) == 1


async def test_whoever_is_stopped_meanwhile_leaves_no_child(folder: Path) -> None:
    beats = folder / "pid"
    write = f"__import__('pathlib').Path({str(beats)!r}).write_text(str(os.getpid()))"
    module = loops(folder, f"os.getpid() == {os.getpid()} or ({write}, __import__('time').sleep(10_000))")
    warming = asyncio.create_task(compiling.warm_up(module.second))
    async with asyncio.timeout(120):
        while not beats.exists() or not beats.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    with pytest.raises(ProcessLookupError):
        os.kill(int(beats.read_text()), 0)


def test_a_loop_that_is_not_in_the_cache_is_not_compiled_and_can_be_compiled_afterwards(folder: Path) -> None:
    module = loops(folder)
    with pytest.raises(NotCompiled, match="thrice"), from_cache_only():
        module.thrice(2)
    assert not module.thrice.signatures
    assert module.thrice(2) == 6
