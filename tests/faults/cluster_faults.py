"""The faults of a cluster, each with its takeover and the way back to a whole cluster.

Each function strikes, waits until the figures of every partition go on, and brings back what it took away. So
the next fault meets a whole cluster. ``docs/howto/cluster.md`` says what each of them costs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from tests.faults.cluster_world import ClusterWorld

FROZEN_S: Final = (3.0, 45.0)
"""How long a node is frozen: shorter and longer than the others need to take it for down."""
Strike = Callable[[ClusterWorld, random.Random], Awaitable[None]]
CLUSTER_FAULTS: Final[dict[str, Strike]] = {}


def _fault(run: Strike) -> Strike:
    CLUSTER_FAULTS[run.__name__] = run
    return run


# --- the broker -------------------------------------------------------------------------------------------


@_fault
async def leader_killed(world: ClusterWorld, luck: random.Random) -> None:
    node = await world.leader(luck)
    await asyncio.to_thread(node.kill)
    await world.taken_over()
    await asyncio.sleep(luck.uniform(0, 5))
    await asyncio.to_thread(node.start)


@_fault
async def leader_frozen(world: ClusterWorld, luck: random.Random) -> None:
    """SIGSTOP: the connections stay open, and nothing answers."""
    node = await world.leader(luck)
    await asyncio.to_thread(node.pause)
    takeover = asyncio.create_task(world.taken_over())
    try:
        await asyncio.wait((takeover,), timeout=luck.choice(FROZEN_S))
    finally:
        await asyncio.to_thread(node.resume)
    await takeover


@_fault
async def two_nodes_killed_in_turn(world: ClusterWorld, luck: random.Random) -> None:
    """The second one dies before the first one is back: no stream has a majority until one is back."""
    first = await world.leader(luck)
    second = luck.choice(world.others(first))
    await asyncio.to_thread(first.kill)
    await asyncio.sleep(luck.uniform(0, 5))
    await asyncio.to_thread(second.kill)
    takeover = asyncio.create_task(world.taken_over())
    await asyncio.sleep(luck.uniform(0, 5))
    await asyncio.gather(asyncio.to_thread(first.start), asyncio.to_thread(second.start))
    await takeover


@_fault
async def two_nodes_frozen_in_turn(world: ClusterWorld, luck: random.Random) -> None:
    first = await world.leader(luck)
    second = luck.choice(world.others(first))
    for node in (first, second):
        await asyncio.to_thread(node.pause)
        takeover = asyncio.create_task(world.taken_over())
        try:
            await asyncio.wait((takeover,), timeout=luck.choice(FROZEN_S))
        finally:
            await asyncio.to_thread(node.resume)
        await takeover
        await world.whole()


@_fault
async def node_came_back_empty(world: ClusterWorld, luck: random.Random) -> None:
    """Its disk is lost: the others forget the node, and a new one with its name joins."""
    node = await world.leader(luck)
    replaced = asyncio.create_task(asyncio.to_thread(world.cluster.replace_empty, node, world.streams))
    while node.is_running():  # noqa: ASYNC110 - a process that is being killed has no events
        await asyncio.sleep(0.05)
    await world.taken_over()
    await replaced


@_fault
async def network_split(world: ClusterWorld, luck: random.Random) -> None:
    """A leader's node loses the other nodes. Sometimes its clients still reach it, sometimes nobody does."""
    node = await world.leader(luck)
    network, names = world.cluster.network, [one.namespace or "" for one in world.others(node)]
    assert node.namespace is not None
    if luck.random() < 0.5:
        await asyncio.to_thread(network.keep_apart, [node.namespace], names)
    else:
        await asyncio.to_thread(network.cut_off, node.namespace)
    takeover = asyncio.create_task(world.taken_over())
    try:
        await asyncio.sleep(luck.choice(FROZEN_S))
    finally:
        await asyncio.to_thread(network.mend)
    await takeover


@_fault
async def leader_moved(world: ClusterWorld, luck: random.Random) -> None:
    stream = luck.choice(world.streams)
    node = await asyncio.to_thread(world.cluster.leader, stream)
    target = luck.choice(world.others(node))
    await asyncio.to_thread(world.cluster.move_leader, stream, target)
    await world.taken_over()


@_fault
async def nodes_restarted_in_turn(world: ClusterWorld, luck: random.Random) -> None:
    """A rolling restart, as an upgrade makes: the next node only when the last one is whole."""
    for node in world.cluster.brokers:
        await asyncio.to_thread(node.stop)
        await world.taken_over()
        await asyncio.to_thread(node.start)
        await world.whole()


# --- the database -----------------------------------------------------------------------------------------


@_fault
async def primary_killed_asynchronous(world: ClusterWorld, luck: random.Random) -> None:
    """The standby lacks the last commits, and takes over without them."""
    await world.kill_primary(lose_s=luck.choice((0.0, 0.5, 3.0)))


@_fault
async def primary_killed_synchronous(world: ClusterWorld, luck: random.Random) -> None:
    """Every commit has waited for the standby, which takes over with all of them."""
    await world.make_synchronous(True)
    try:
        await asyncio.sleep(luck.uniform(1, 4))
        await world.kill_primary()
    finally:
        await world.make_synchronous(False)


@_fault
async def primary_frozen_past_a_promotion(world: ClusterWorld, luck: random.Random) -> None:
    """The old primary wakes up beside the new one, and takes commits of workers that still know it."""
    old = world.cluster.postgres
    await asyncio.to_thread(old.pause)
    takeover = asyncio.create_task(world.taken_over())
    await asyncio.to_thread(world.cluster.promote_standby)
    await asyncio.sleep(luck.uniform(0, 3))
    await asyncio.to_thread(old.resume)
    await asyncio.sleep(luck.uniform(1, 4))
    await asyncio.to_thread(world.cluster.build_standby)  # the old primary's data go
    await takeover
