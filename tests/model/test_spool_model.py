"""The spool under random appends, drains and accidents, against a list of what it has promised.

Hypothesis appends, takes, publishes and puts back. It fails calls of the disk, closes, kills at any byte of a
write, and ends the power at any call. A record that was answered is given until it is published, in order; a
record that was not answered may be given or not; nothing else is ever given.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.collector.spool import Spool, SpoolFailed, SpoolFull, Taken
from pipeline.collector.spool_files import SEAL_BYTES, SegmentReader, SegmentWriter
from tests.support.failing_disk import FailingDisk

T = TypeVar("T")
BYTES_MAX, SEGMENT_BYTES = 100_000, 9_000
LARGE = st.lists(st.sampled_from((8, 300, 2000, 4000)), min_size=1, max_size=10)
SIZES = st.lists(st.sampled_from((8, 30, 300, 5000)), min_size=1, max_size=4)
SETTINGS = settings(max_examples=200, stateful_step_count=30)


@dataclass(eq=False)
class Entry:
    """A record that was offered to the spool."""

    key: str
    body: bytes
    answered: bool
    published: bool = False
    ended: bool = False
    """Published by the process that runs, which must not give it again."""


class SpoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="spendstream-spool-"))
        self.lives = 0
        self.entries: list[Entry] = []
        """In the order of the appends."""
        self.in_hand: list[tuple[Taken, list[Entry]]] = []
        self.last = -1
        """The place in ``entries`` of what was given last."""
        self.now_s = 1_790_000_000.0
        self.bound_holds = True
        self.folder = self.root / "0"
        self.folder.mkdir()
        self.open()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(60):
                return await call

        return self.loop.run_until_complete(limited())

    def open(self) -> None:
        self.disk = FailingDisk(self.folder)
        self.spool = self.run(
            Spool.open(
                self.folder,
                bytes_max=BYTES_MAX,
                segment_bytes=SEGMENT_BYTES,
                files=self.disk,
                clock=lambda: self.now_s,
            )
        )
        self.in_hand.clear()
        self.last = -1
        for entry in self.entries:
            entry.ended = False

    def next_folder(self) -> Path:
        self.lives += 1
        folder = self.root / str(self.lives)
        folder.mkdir()
        return folder

    def made(self, sizes: list[int]) -> list[Entry]:
        first = len(self.entries)
        return [
            Entry(f"org {n % 3}", b"%d" % n + b"\xff" * (size - len(b"%d" % n)), answered=False)
            for n, size in enumerate(sizes, first)
        ]

    def append(self, appends: list[list[int]]) -> list[list[Entry]]:
        """Append at once; what was taken in is answered. Returns the entries of each append."""
        if self.spool._leaving and len(appends) > 1:
            # A deletion that is tried again would race with the others, and no example could be repeated.
            return [self.append([sizes])[0] for sizes in appends]
        self.now_s += 1
        offered = []
        for sizes in appends:
            entries = self.made(sizes)
            self.entries += entries
            offered.append(entries)

        async def all_of_them() -> list[BaseException | None]:
            calls = (self.spool.append([(e.key, e.body) for e in entries]) for entries in offered)
            return await asyncio.gather(*calls, return_exceptions=True)

        for entries, outcome in zip(offered, self.run(all_of_them()), strict=True):
            if isinstance(outcome, SpoolFull | SpoolFailed):
                continue
            assert outcome is None, outcome
            for entry in entries:
                entry.answered = True
        self.settle()
        return offered

    # --- what the collector does ------------------------------------------------------------------

    @rule(appends=st.lists(SIZES, min_size=1, max_size=3))
    def appends(self, appends: list[list[int]]) -> None:
        self.append(appends)

    @precondition(lambda self: self.untaken())
    @rule(bytes_max=st.sampled_from((1, 400, 100_000)), records_max=st.sampled_from((1, 2, 100)))
    def takes(self, bytes_max: int, records_max: int) -> None:
        taken = self.run(self.spool.oldest(bytes_max=bytes_max, records_max=records_max))
        assert 1 <= len(taken.bodies) == len(taken.keys) <= records_max
        assert len(taken.bodies) == 1 or sum(map(len, taken.bodies)) <= bytes_max
        given = []
        for key, body in zip(taken.keys, taken.bodies, strict=True):
            number = int(body.rstrip(b"\xff"))
            entry = self.entries[number]
            assert (entry.key, entry.body) == (key, body), "torn, or of another"
            assert number > self.last, "out of order, or twice"
            assert not entry.ended, "published before"
            for passed in self.entries[self.last + 1 : number]:
                assert passed.published or not passed.answered, "lost"
            self.last = number
            given.append(entry)
        self.in_hand.append((taken, given))

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def publishes(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.in_hand) - 1))
        taken, given = self.in_hand.pop(place)
        self.run(self.published(taken))
        for entry in given:
            entry.published = entry.ended = True

    async def published(self, taken: Taken) -> None:
        """In the loop, which the deletion of a file needs."""
        self.spool.published(taken)

    @precondition(lambda self: self.in_hand)
    @rule()
    def puts_back(self) -> None:
        for taken, _ in self.in_hand:
            self.spool.put_back(taken)
        self.in_hand.clear()
        self.last = -1

    # --- accidents --------------------------------------------------------------------------------

    @rule(
        sizes=SIZES,
        operation=st.sampled_from(("write", "sync", "sync", "create", "sync_folder")),
        works=st.integers(0, 1),
        error=st.sampled_from((errno.ENOSPC, errno.EIO)),
        repair=st.booleans(),
        chance=st.none() | st.integers(0, 2**32),
    )
    def an_append_fails(
        self, sizes: list[int], operation: str, works: int, error: int, repair: bool, chance: int | None
    ) -> None:
        self.disk.fail(operation, *[None] * works, error)
        if not repair:
            self.disk.fail("truncate", error)
            self.bound_holds = False
        self.append([sizes])
        self.disk.works_again()
        if not repair:
            # The disk may have spoiled what was answered before. Only power that ends would show it.
            self.dies()
        elif chance is not None:
            self.power_ends(chance)

    @rule(sizes=SIZES, room_bytes=st.integers(0, 6000), write_bytes_max=st.integers(1, 3000))
    def the_disk_is_full(self, sizes: list[int], room_bytes: int, write_bytes_max: int) -> None:
        self.disk.room_bytes, self.disk.write_bytes_max = room_bytes, write_bytes_max
        self.append([sizes])
        self.disk.works_again()

    @rule(fails=st.integers(1, 3))
    def deleting_fails(self, fails: int) -> None:
        self.disk.fail("delete", *[errno.EIO] * fails)

    @rule()
    def closes(self) -> None:
        self.run(self.spool.close())
        self.disk.works_again()
        self.open()

    @rule()
    def dies(self) -> None:
        """As by kill -9: the kernel keeps what was written."""
        self.let_go()
        self.open()

    @rule(sizes=SIZES, cut=st.integers(0, 2**16))
    def dies_in_an_append(self, sizes: list[int], cut: int) -> None:
        """The write is cut at any byte."""
        before = {path.name: path.stat().st_size for path in self.folder.glob("*.spool")}
        for entry in self.append([sizes])[0]:
            entry.answered = False
        folder = self.next_folder()
        for path in self.folder.glob("*.spool"):
            old, new = before.get(path.name, 0), path.stat().st_size
            (folder / path.name).write_bytes(path.read_bytes()[: old + cut % (new - old + 1)])
        self.let_go()
        self.folder = folder
        self.open()

    @rule(chance=st.integers(0, 2**32))
    def power_ends(self, chance: int) -> None:
        folder = self.next_folder()
        self.disk.lose_power(folder, random.Random(chance))
        self.let_go()
        self.folder = folder
        self.open()

    @rule(
        sizes=LARGE,
        operation=st.sampled_from(("create", "write", "sync", "sync", "sync_folder")),
        chance=st.integers(0, 2**32),
        write_bytes_max=st.sampled_from((100, 4096, 2**20)),
        nth=st.integers(0, 2),
    )
    def power_ends_in_an_append(
        self, sizes: list[int], operation: str, chance: int, write_bytes_max: int, nth: int
    ) -> None:
        folder = self.next_folder()
        self.disk.write_bytes_max = write_bytes_max
        self.disk.lose_power_at(operation, nth, into=folder, chance=random.Random(chance))
        entries = self.append([sizes])[0]
        self.disk.works_again()
        if not self.disk.lost_power:
            return
        for entry in entries:
            entry.answered = False
        self.let_go()
        self.folder = folder
        self.open()

    def let_go(self) -> None:
        """End the process without a word."""
        self.settle()
        self.disk.works_again()
        self.spool._write_thread.shutdown()
        self.spool._read_thread.shutdown()
        os.close(self.spool._lock_fd)

    # --- what holds after each step ---------------------------------------------------------------

    def untaken(self) -> bool:
        """Would `Spool.oldest` return at once?"""
        return bool(self.spool._put_back) or self.spool._first_unread() is not None

    def settle(self) -> None:
        while self.spool._removing is not None:
            self.run(asyncio.wait([self.spool._removing]))

    @invariant()
    def figures_are_right(self) -> None:
        self.settle()
        stored = sum(path.stat().st_size for path in self.folder.glob("*.spool*"))
        assert self.spool.bytes == stored
        assert stored <= BYTES_MAX or not self.bound_holds
        promised = sum(entry.answered and not entry.published for entry in self.entries)
        assert self.spool.records >= promised
        assert (self.spool.oldest_at is None) is (self.spool.records == 0)
        assert (self.spool.records_lost, self.spool.files_set_aside) == (0, 0), "no accident here is damage"

    def teardown(self) -> None:
        try:
            self.disk.works_again()
            self.dies()
            while self.untaken():
                self.takes(100_000, 7)
            for entry in self.entries[self.last + 1 :]:
                assert entry.published or not entry.answered, "lost"
            for taken, _ in self.in_hand:
                self.run(self.published(taken))
            self.run(self.spool.close())
            assert list(self.folder.glob("*.spool*")) == []
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.root)


def test_what_was_answered_is_given_until_it_is_published() -> None:
    run_state_machine_as_test(SpoolMachine, settings=SETTINGS)


# --- planted bugs ---------------------------------------------------------------------------------


def answers_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def write(self: SegmentWriter, data: bytes, position: int) -> None:
        self._files.write(self._fd, memoryview(data), position)

    patch.setattr(SegmentWriter, "_write", write)


def forgets_the_name_of_a_new_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FailingDisk, "sync_folder", lambda self, folder: None)


def trusts_a_page_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    def cut_back(self: SegmentWriter) -> None:
        self._files.truncate(self._fd, self.end)
        self._files.sync(self._fd)

    patch.setattr(SegmentWriter, "_cut_back", cut_back)


def leaves_a_torn_record_in_the_middle(patch: pytest.MonkeyPatch) -> None:
    """The failed append is not cut off, and the segment goes on."""
    patch.setattr(SegmentWriter, "abandon", lambda self: self.close())


def deletes_a_segment_too_early(patch: pytest.MonkeyPatch) -> None:
    end = Spool._end
    patch.setattr(Spool, "_end", lambda self, segment, records: end(self, segment, segment.left))


def forgets_what_is_put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "put_back", lambda self, taken: self._let_go(taken))


def loses_the_last_record_of_a_killed_process(patch: pytest.MonkeyPatch) -> None:
    next_record = SegmentReader.next_record

    def not_the_last(self: SegmentReader, position: int, index: int) -> Any:
        found = next_record(self, position, index)
        return None if found is not None and index and found.end > self.end - SEAL_BYTES else found

    patch.setattr(SegmentReader, "next_record", not_the_last)


@pytest.mark.parametrize(
    "plant",
    [
        answers_before_the_sync,
        forgets_the_name_of_a_new_file,
        trusts_a_page_after_a_failed_sync,
        leaves_a_torn_record_in_the_middle,
        deletes_a_segment_too_early,
        forgets_what_is_put_back,
        loses_the_last_record_of_a_killed_process,
    ],
    ids=lambda plant: plant.__name__,
)
def test_the_model_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        _search()


def _search() -> None:
    """Try examples until one fails, those of more seeds if need be."""
    for number in range(5):
        run_state_machine_as_test(
            seed(number)(SpoolMachine),
            settings=settings(
                SETTINGS,
                max_examples=500,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
            ),
        )
