"""A disk for a spool that fails when it is told to, and that forgets what was not synced.

The files are real ones. They are what the running process sees, as if from the kernel's page cache. Beside
them the fake keeps an image of each file as it is on the disk: only `sync` brings pages there, and only
`sync_folder` names. A page whose sync fails is spoiled on the disk, and a later sync does not mend it.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.collector.spool_files import Files

PAGE_BYTES = 4096


@dataclass(eq=False)
class Image:
    """A file as it is on the disk, and the pages that are only in memory."""

    data: bytes = b""
    dirty: set[int] = field(default_factory=set)


class FailingDisk(Files):
    """``fails`` has what the next calls of an operation do: an errno, or None for a call that works."""

    def __init__(self, folder: Path) -> None:
        self.fails: dict[str, deque[int | None]] = {}
        self.write_bytes_max: int | None = None
        """A write takes no more than this at once."""
        self.room_bytes: int | None = None
        """What still fits on the disk; None: all."""
        self.bad_pages: set[tuple[Path, int]] = set()
        """Pages that cannot be read."""
        self.calls: Counter[str] = Counter()
        self.read_bytes = 0
        self._power_ends: tuple[str, int, Path, random.Random] | None = None
        self._folder = folder
        self._seen: dict[Path, Image] = {}
        """The images by the names that the process sees."""
        self._named: dict[Path, Image] = {}
        """The images by the names that are on the disk."""
        self._open: dict[int, Path] = {}
        for path in folder.glob("*.spool*"):
            self._seen[path] = Image(path.read_bytes())
        self._named = dict(self._seen)

    def lose_power_at(self, operation: str, nth: int, *, into: Path, chance: random.Random) -> None:
        """Write into another folder what a power failure leaves just before a coming call (0: the next)."""
        self._power_ends = (operation, self.calls[operation] + nth, into, chance)

    def fail(self, operation: str, *errors: int | None) -> None:
        self.fails[operation] = deque(errors)

    def works_again(self) -> None:
        self.fails.clear()
        self.room_bytes = self.write_bytes_max = None

    # --- the calls --------------------------------------------------------------------------------

    def create(self, path: Path) -> int:
        self._call("create")
        fd = super().create(path)
        self._open[fd] = path
        self._seen[path] = Image()
        return fd

    def open(self, path: Path, *, write: bool = False) -> int:
        self._call("open")
        fd = super().open(path, write=write)
        self._open[fd] = path
        return fd

    def read(self, fd: int, size: int, position: int) -> bytes:
        self._call("read")
        for page in range(position // PAGE_BYTES, (position + size - 1) // PAGE_BYTES + 1):
            if (self._open[fd], page) in self.bad_pages:
                raise OSError(errno.EIO, "Input/output error")
        self.read_bytes += size
        return super().read(fd, size, position)

    def write(self, fd: int, data: memoryview, position: int) -> int:
        self._call("write")
        data = data[: self.write_bytes_max]
        if self.room_bytes is not None:
            data = data[: self.room_bytes]
            if not data:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room_bytes -= len(data)
        written = super().write(fd, data, position)
        first, last = position // PAGE_BYTES, (position + written - 1) // PAGE_BYTES
        self._image(fd).dirty.update(range(first, last + 1))
        return written

    def try_room(self, folder: Path, size: int) -> None:
        self._call("try_room")
        if self.room_bytes is not None and self.room_bytes < size:
            raise OSError(errno.ENOSPC, "No space left on device")

    def truncate(self, fd: int, size: int) -> None:
        self._call("truncate")
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        image = self._image(fd)
        try:
            self._call("sync")
        except OSError:
            # The kernel calls the pages clean, and the disk holds anything in their place.
            image.data = _with_pages(image.data, dict.fromkeys(image.dirty, b"?" * PAGE_BYTES))
            image.dirty.clear()
            raise
        now = self._open[fd].read_bytes()
        image.data = _with_pages(image.data, {page: _page(now, page) for page in image.dirty})[: len(now)]
        image.dirty.clear()

    def sync_folder(self, folder: Path) -> None:
        self._call("sync_folder")
        self._named = dict(self._seen)

    def close(self, fd: int) -> None:
        del self._open[fd]
        super().close(fd)

    def delete(self, path: Path) -> None:
        self._call("delete")
        super().delete(path)
        self._seen.pop(path, None)

    def rename(self, path: Path, new: Path) -> None:
        self._call("rename")
        super().rename(path, new)
        self._seen[new] = self._seen.pop(path)

    def _call(self, operation: str) -> None:
        if self._power_ends is not None and self._power_ends[:2] == (operation, self.calls[operation]):
            self.lose_power(*self._power_ends[2:])
            self._power_ends = None
        self.calls[operation] += 1
        planned = self.fails.get(operation)
        error = planned.popleft() if planned else None
        if error is not None:
            raise OSError(error, os.strerror(error))

    def _image(self, fd: int) -> Image:
        return self._seen[self._open[fd]]

    @property
    def lost_power(self) -> bool:
        """Has the call come that `lose_power_at` named?"""
        return self._power_ends is None

    # --- without power ----------------------------------------------------------------------------

    def durable(self, path: Path) -> bytes | None:
        """What certainly is on the disk of a file; None if its name is not there."""
        image = self._named.get(path)
        return None if image is None else image.data

    def lose_power(self, into: Path, chance: random.Random) -> None:
        """Write what a power failure leaves into another folder: of what was not synced, any part."""
        for path in sorted(self._seen.keys() | self._named.keys()):
            image = self._named.get(path)
            if image is None or (path not in self._seen and chance.random() < 0.5):
                if path not in self._seen or chance.random() < 0.5:
                    continue  # its name was not synced, or its deletion was done
                image = self._seen[path]
            data = image.data
            if path in self._seen and self._seen[path] is image and image.dirty:
                now = path.read_bytes()
                kept = {page: _page(now, page) for page in sorted(image.dirty) if chance.random() < 0.7}
                data = _with_pages(data, kept)
                data = data[: max(len(image.data), chance.randint(0, len(now)))]
            (into / path.name).write_bytes(data)


def _page(data: bytes, page: int) -> bytes:
    return data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


def _with_pages(data: bytes, pages: dict[int, bytes]) -> bytes:
    """The data with some pages replaced; what lies between the end and a later page is zeros."""
    new = bytearray(data)
    for page, contents in pages.items():
        begin = page * PAGE_BYTES
        if len(new) < begin:
            new.extend(bytes(begin - len(new)))
        new[begin : begin + len(contents)] = contents
    return bytes(new)
