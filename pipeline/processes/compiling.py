"""Compiled loops without the memory of their compiler: a child process compiles what the cache does not have.

The compiler keeps much memory in a process that has compiled our loops, for as long as the process lives: 70
MiB with the collector's loops, and 120 MiB with the worker's. So the process that is to work only loads the
loops. The first start on a machine, or the first one after an
upgrade, has a child process compile the loops into numba's cache, and loads the loops when the child has
ended. If the child fails, the process compiles the loops itself.

    start 1: the cache is empty -> the child compiles for a while, and ends -> load
    start 2: load
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from pipeline.common import heap
from pipeline.core.kernels.compile import NotCompiled, from_cache_only
from pipeline.processes import child

log = logging.getLogger(__name__)

WarmUp = Callable[[], None]
"""A function of a module that calls each of some compiled loops once."""

COMPILE_S: Final = 900.0
"""How long the child may compile. A slow machine needs a minute."""
_COMPILER: Final = "libllvmlite.so"
"""LLVM. It links the loops that the cache has, and of its 80 MiB of code none is called afterwards."""
_SAID_BYTES: Final = 600
"""So many of the last bytes that a failed child has written are said in the log."""


async def warm_up(*warm_ups: WarmUp) -> None:
    """Have all loops of these functions in this process, so that no event waits for a compiler.

    Afterwards the compiler's own code leaves the memory. Cancelled, it ends the child. Raises whatever the
    functions raise in this process.
    """
    try:
        await _warm_up(warm_ups)
    finally:
        heap.give_code_back(_COMPILER)


async def _warm_up(warm_ups: Sequence[WarmUp]) -> None:
    if await asyncio.to_thread(_load, warm_ups):
        return
    began = time.monotonic()
    fault = await _compile_apart(warm_ups)
    if fault is None and await asyncio.to_thread(_load, warm_ups):
        log.info("loops_compiled", extra={"took_s": round(time.monotonic() - began, 1)})
        return
    facts = {
        "error": fault or "the cache does not have the loops that the child compiled",
        "effect": "this process compiles the loops itself, and needs up to 120 MiB more until it ends",
        "remedy": "let the processes write into numba's cache (NUMBA_CACHE_DIR)",
    }
    log.error("loops_not_compiled_apart", extra=facts)
    await asyncio.to_thread(_run, warm_ups)


def _load(warm_ups: Sequence[WarmUp]) -> bool:
    """Load the loops. False: the cache does not have all of them."""
    try:
        with from_cache_only():
            _run(warm_ups)
    except NotCompiled:
        return False
    return True


def _run(warm_ups: Sequence[WarmUp]) -> None:
    for each in warm_ups:
        each()


async def _compile_apart(warm_ups: Sequence[WarmUp]) -> str | None:
    """Have a child compile the loops into the cache. The reason if it fails."""
    names = [f"{each.__module__}:{each.__qualname__}" for each in warm_ups]
    try:
        compiling = await asyncio.create_subprocess_exec(
            *child.command_line(__name__, *names),
            env=child.environment(os.environ),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            start_new_session=True,
            preexec_fn=child.dies_with_parent(signal.SIGKILL),
        )
    except OSError as error:
        return f"the child cannot be started: {error}"
    try:
        async with asyncio.timeout(COMPILE_S):
            _, said = await compiling.communicate()
    except TimeoutError:
        return f"the child has not ended after {COMPILE_S:g} s"
    finally:
        if compiling.returncode is None:
            compiling.kill()
            await compiling.wait()
    if compiling.returncode == 0:
        return None
    text = said[-_SAID_BYTES:].decode("utf-8", "replace").strip()
    return f"the child ended with {compiling.returncode}: {text}"


def main(names: Sequence[str]) -> None:
    """Call the functions with these names, as ``module:function``."""
    for name in names:
        module, _, function = name.partition(":")
        getattr(import_module(module), function)()


if __name__ == "__main__":
    main(sys.argv[1:])
