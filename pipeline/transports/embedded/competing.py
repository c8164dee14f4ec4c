"""Reading a partition of the embedded log alone: a file lock decides who reads.

The lock is free as soon as the process that holds it ends, whether by its own will or by a kill. The next
process finds the lock free within ``_POLL_S``. No broker asks the holder to step down, so `Owner.deactivated`
is never called. If somebody deletes the lock file, two processes may read. Then the database decides, as with
a broker: the claim of the second one makes the flushes of the first one fail whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from pipeline.common.private import FILE_MODE
from pipeline.transports import Chunk, Owner, TransportError
from pipeline.transports.embedded.subscription import EmbeddedSubscription, translated

_POLL_S = 0.05


class CompetingEmbeddedSubscription(EmbeddedSubscription):
    """See `pipeline.transports.Transport.compete`. Needs a running event loop from the start."""

    def __init__(
        self, stream: str, folder: Path, *, group: str, partition: int, owner: Owner, credit: int
    ) -> None:
        super().__init__(stream, folder, partition=partition, offset=0, credit=credit)
        self._owner = owner
        with translated(stream):
            lock = folder / f"owner-{quote(group, safe='')}.lock"
            self._lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        self._decided = asyncio.Event()
        """Set when the partition is ours and can be read, and also when the subscription is dead."""
        self._competing = asyncio.create_task(self._compete())

    async def receive(self) -> Chunk:
        await self._decided.wait()
        return await super().receive()

    async def close(self) -> None:
        await super().close()
        self._decided.set()
        if self._competing is not asyncio.current_task():
            self._competing.cancel()
            await asyncio.wait((self._competing,))
        self._let_go()

    async def _compete(self) -> None:
        try:
            while not self._takes_lock():
                await self._pause(_POLL_S)
                if self.closed:
                    return
            place = await self._owner.activated()
            self._wanted_offset, self._before_us = place.offset, place.before_us
        except Exception as error:
            self._dead = self._dead or TransportError(
                f"the owner of partition {self.partition} failed: {error!r}"
            )
            self._dead.__cause__ = error
            self._let_go()
        self._decided.set()

    def _takes_lock(self) -> bool:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _let_go(self) -> None:
        """Release the lock by closing its descriptor."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
