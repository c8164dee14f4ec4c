"""What the tests of super streams share: transports, and an owner of the partition that moves."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from pipeline.transports import Chunk, ReadFrom, Subscription
from pipeline.transports.rabbitmq.transport import RabbitMQTransport

PATIENCE_S = 120
Make = Callable[..., Awaitable[RabbitMQTransport]]


def of_orgs(first: int, after: int) -> list[bytes]:
    return [
        b'{"orgId": "%s", "n": %d}' % (str(uuid.UUID(int=n % 97)).encode(), n) for n in range(first, after)
    ]


async def receive(subscription: Subscription) -> Chunk:
    async with asyncio.timeout(PATIENCE_S):
        return await subscription.receive()


# Of two consumers of partition 1, the broker makes the second active: partition number modulo consumers. So a
# partition is taken away by joining the group, and given back by leaving it.
MOVING, KEY = 1, "hello0"


class Turn:
    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.calls: list[str] = []
        self.changed = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.failure: Exception | None = None

    async def activated(self) -> ReadFrom:
        await self._called("activated")
        return ReadFrom(self.offset)

    async def deactivated(self) -> None:
        await self._called("deactivated")

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        self.changed.set()
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            self.changed.set()
            raise
        if self.failure is not None:
            raise self.failure
        self.calls.append("done")
        self.changed.set()

    async def until(self, *calls: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.calls != list(calls):
                self.changed.clear()
                await self.changed.wait()


ON, OFF = ("activated", "done"), ("deactivated", "done")
