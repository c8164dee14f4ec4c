"""The scheduler: decides by one seed which fault comes when, and which faults overlap.

    report = await storm(world, faults=200, seed=7)

The seed decides kinds, targets, pauses and overlap. The machine decides how far each process has come when a
fault strikes. So two runs of a seed are similar, but not equal.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from tests.faults.faults import FAULTS, Fault
from tests.faults.world import Report, World

AT_ONCE = 3
PAUSE_S = (0.2, 1.8)


@dataclass(slots=True)
class Storm:
    """The faults that were injected, by kind, and the report afterwards."""

    injected: Counter[str] = field(default_factory=Counter)
    report: Report | None = None

    def closing_line(self) -> str:
        assert self.report is not None
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.injected.items()))
        return (
            f"faults injected: {self.injected.total()} ({kinds}), events: {self.report.events},"
            f" mismatches: {len(self.report.mismatches)}"
        )


def deck(
    count: int, luck: random.Random, kinds: Sequence[str] | None = None, able: Container[str] = ()
) -> list[Fault]:
    """Draw ``count`` faults in rounds. Each round has every kind as often as its weight says, in a new order.

    A kind that needs an ability which the world does not have (``able``) is left out.
    """
    possible = [fault for fault in FAULTS.values() if fault.needs is None or fault.needs in able]
    if kinds is not None:
        return [fault for kind in kinds if (fault := FAULTS[kind]) in possible]
    cards: list[Fault] = []
    while len(cards) < count:
        a_round = [fault for fault in possible for _ in range(fault.weight)]
        luck.shuffle(a_round)
        cards += a_round
    return cards[:count]


async def storm(
    world: World, *, faults: int, seed: int, kinds: Sequence[str] | None = None, workers: int = 3
) -> Storm:
    """Inject faults (of these ``kinds``, if given) under load, heal, drain, and compare the books."""
    luck = random.Random(seed)
    result = Storm()
    for slot in world.slots[:workers]:
        world.start(slot)
    await world.ready()
    for slot in world.slots[workers:]:
        world.start(slot)
    world.start_load()
    cards = deck(faults, luck, kinds, world.able)
    busy: set[str] = set()
    running: set[asyncio.Task[None]] = set()
    misses = 0

    async def inject(fault: Fault, target: str, own_luck: random.Random) -> None:
        nonlocal misses
        world.say(f"{fault.name} {target}")
        slot = next((slot for slot in world.slots if f"worker {slot.number}" == target), None)
        if slot is not None:
            slot.busy = True
        try:
            if fault.on_worker is not None:
                assert slot is not None
                struck = await fault.on_worker(world, slot, own_luck)
            else:
                assert fault.on_server is not None
                struck = await fault.on_server(world, own_luck)
        finally:
            busy.discard(target)
            if slot is not None:
                slot.busy = False
        if struck:
            result.injected[fault.name] += 1
        else:
            misses += 1
            assert misses <= 3 * faults, "most faults do not strike"
            cards.append(fault)

    try:
        while cards or running:
            while cards and len(running) < AT_ONCE and (chosen := _choose(world, cards, busy, luck)):
                fault, target = chosen
                busy.add(target)
                running.add(asyncio.create_task(inject(fault, target, random.Random(luck.getrandbits(64)))))
                await asyncio.sleep(luck.uniform(*PAUSE_S))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await world.heal()
    world.say("healed; draining")
    result.report = await world.settle()
    return result


def _choose(
    world: World, cards: list[Fault], busy: set[str], luck: random.Random
) -> tuple[Fault, str] | None:
    """Take the first fault whose target is free. One worker always stays unhurt."""
    for place, fault in enumerate(cards):
        targets = [fault.target]
        if fault.target == "worker":
            if sum(name.startswith("worker") for name in busy) >= len(world.slots) - 1:
                continue
            targets = [f"worker {slot.number}" for slot in world.slots if slot.running()]
            luck.shuffle(targets)
        for target in targets:
            if target not in busy:
                del cards[place]
                return fault, target
    return None
