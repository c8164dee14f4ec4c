"""Turns at the database: who waits for whom, who is turned away, and that no turn is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access import turns
from api.access.turns import WAITING_MAX, Turns
from pipeline.common.errors import TooSlow, Unavailable
from pipeline.common.problems import Problem


class Asked:
    """Questions that stay in the database until they are let go."""

    def __init__(self, held: Turns) -> None:
        self.turns = held
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._go = asyncio.Event()

    async def ask(self, *keys: str) -> None:
        async with self.turns.turn(keys):
            for key in (*keys, ""):
                self.inside[key] += 1
                self.most[key] = max(self.most[key], self.inside[key])
            await self._go.wait()
            for key in (*keys, ""):
                self.inside[key] -= 1

    def go(self) -> None:
        self._go.set()


@asynccontextmanager
async def asking(each: int, pool_size: int) -> AsyncIterator[Asked]:
    asked = Asked(Turns(each=each, pool_size=pool_size))
    yield asked
    asked.go()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_org_has_its_few_turns_and_others_have_theirs_at_once() -> None:
    async with asking(4, 10) as asked:
        heavy = [asyncio.create_task(asked.ask("org a", f"caller {n}")) for n in range(12)]
        await settle()
        other = asyncio.create_task(asked.ask("org b", "caller b"))
        await settle()
        assert (asked.inside["org a"], asked.inside["org b"]) == (4, 1)
        asked.go()
        await asyncio.gather(*heavy, other)
        assert asked.most["org a"] == 4


async def test_a_caller_of_many_orgs_has_no_more_than_one_org() -> None:
    async with asking(4, 10) as asked:
        tasks = [asyncio.create_task(asked.ask(f"org {n}", "caller admin")) for n in range(12)]
        await settle()
        assert asked.inside["caller admin"] == 4
        asked.go()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("pool_size", "all_at_once", "each"), [(1, 1, 1), (2, 1, 1), (4, 2, 1), (10, 8, 4), (100, 98, 4)]
)
async def test_the_pool_keeps_connections_for_what_is_no_question(
    pool_size: int, all_at_once: int, each: int
) -> None:
    async with asking(4, pool_size) as asked:
        tasks = [asyncio.create_task(asked.ask(f"org {n % 40}", f"caller {n}")) for n in range(160)]
        await settle()
        assert asked.inside[""] == all_at_once
        asked.go()
        await asyncio.gather(*tasks)
        assert max(count for key, count in asked.most.items() if key.startswith("org")) <= each


async def test_who_waits_too_long_or_behind_too_many_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asking(1, 10) as asked:
        monkeypatch.setattr(turns, "WAIT_S", 0.05)
        first = asyncio.create_task(asked.ask("org a"))
        await settle()
        with pytest.raises(Problem) as caught:
            await asked.ask("org a")
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
        monkeypatch.setattr(turns, "WAIT_S", 600)
        waiting = [asyncio.create_task(asked.ask("org a")) for _ in range(WAITING_MAX)]
        await settle()
        with pytest.raises(Problem):
            await asyncio.wait_for(asked.ask("org a"), 60)  # at once, and not when it has waited
        asked.go()
        await asyncio.gather(first, *waiting)


async def test_who_waits_for_a_database_that_fails_hears_it_at_once() -> None:
    held = Turns(each=1, pool_size=10)
    began, fail = asyncio.Event(), asyncio.Event()

    async def failing(error: Exception) -> None:
        async with held.turn(("org a",)):
            began.set()
            await fail.wait()
            raise error

    async def plain() -> None:
        async with held.turn(("org a",)):
            pass

    first = asyncio.create_task(failing(Unavailable("away")))
    await began.wait()
    behind = [asyncio.create_task(plain()) for _ in range(3)]
    await settle()
    fail.set()
    for task in (first, *behind):
        with pytest.raises(Unavailable, match="away"):
            await task
    # A question that is too slow says nothing of those behind it.
    began.clear()
    fail.clear()
    slow = asyncio.create_task(failing(TooSlow("slow")))
    await began.wait()
    behind = [asyncio.create_task(plain()) for _ in range(3)]
    await settle()
    fail.set()
    with pytest.raises(TooSlow):
        await slow
    await asyncio.gather(*behind)


@given(
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=40),
    each=st.integers(1, 3),
    pool_size=st.integers(1, 8),
)
async def test_no_turn_is_lost_whoever_gives_up(
    asked: list[tuple[int, int, int]], each: int, pool_size: int
) -> None:
    held = Turns(each=each, pool_size=pool_size)

    async def ask(org: int, caller: int, steps: int) -> None:
        async with held.turn((f"org {org}", f"caller {caller}")):
            for _ in range(steps):
                await asyncio.sleep(0)

    tasks = []
    for org, caller, steps in asked:
        tasks.append(asyncio.create_task(ask(org, caller, steps)))
        if steps == 3:  # some give up, waiting or asking
            await asyncio.sleep(0)
            tasks[len(tasks) // 2].cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    assert not held._lines


async def test_a_line_goes_though_its_last_turn_came_to_one_who_gave_up_in_the_same_moment() -> None:
    held = Turns(each=1, pool_size=10)
    first_may_end = asyncio.Event()

    async def first() -> None:
        async with held.turn(("org",)):
            await first_may_end.wait()
        two.cancel()  # it has been given the turn, and has not run since

    async def second() -> None:
        async with held.turn(("org",)):
            pytest.fail("it gave up")

    one = asyncio.create_task(first())
    await asyncio.sleep(0)
    two = asyncio.create_task(second())
    await asyncio.sleep(0)
    first_may_end.set()
    await one
    with suppress(asyncio.CancelledError):
        await two
    assert not held._lines


async def test_the_lines_say_how_many_questions_wait() -> None:
    async with asking(2, 10) as asked:
        tasks = [asyncio.create_task(asked.ask("org a", f"caller {n}")) for n in range(5)]
        await settle()
        assert asked.turns.waiting == 3
        tasks[4].cancel()
        await settle()
        assert asked.turns.waiting == 2
        asked.go()
        await asyncio.gather(*tasks[:4])
        assert asked.turns.waiting == 0
