"""A broker that is killed and away for minutes, under load: python -m tests.bench.soak_collector.

On servers of its own it runs a worker, and a collector with a spool. It sends single events at a fixed rate,
kills the broker, starts the broker again after some time, and goes on sending for a while. It fails if a
request is not answered 200, if an event does not count exactly once, or if the collector has had 300 MiB or
more. The suite has the same in short (tests/integration/collector/test_durability.py).
"""

from __future__ import annotations

import argparse
import asyncio
import time

from deploy.local.servers import RabbitMQ
from tests.bench import collector_servers
from tests.support import collectors, processes
from tests.support.collectors import Collector
from tests.support.senders import Sender, check_counted_once
from tests.support.usage_events import EventMill

PEAK_MIB_MAX = 300
BEFORE_S, AFTER_S = 10.0, 20.0


async def disturbed(
    sender: Sender, collector: Collector, rabbitmq: RabbitMQ, *, rate: float, away_s: float
) -> float:
    """Send at a rate; the broker goes after `BEFORE_S`, for ``away_s``. Returns when the broker was back."""
    sending = asyncio.create_task(sender.send(rate=rate, seconds=BEFORE_S + away_s + AFTER_S))
    await asyncio.sleep(BEFORE_S)
    await asyncio.to_thread(rabbitmq.kill)
    print(f"the broker is killed, for {away_s:g} s", flush=True)
    await asyncio.sleep(away_s)
    records = await asyncio.to_thread(collector.metric, "analytics_collector_spool_records")
    size = await asyncio.to_thread(collector.metric, "analytics_collector_spool_bytes")
    print(f"the spool has {records:,.0f} events in {size / 1e6:,.0f} MB", flush=True)
    await asyncio.to_thread(rabbitmq.start)
    back = time.monotonic()
    await sending
    return back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500, help="requests a second, of one event each")
    parser.add_argument("--away", type=float, default=120, help="seconds without a broker")
    given = parser.parse_args()
    with collector_servers.running() as (stack, env, folder):
        env["COLLECTOR_SPOOL"] = str(folder / "spool")
        mill = EventMill(seed=int(time.time()))
        with processes.worker(env, folder) as worker, collectors.collector(env, folder) as collector:
            sender = Sender(lambda: f"http://127.0.0.1:{collector.port}", mill, attempt_s=30)
            back = asyncio.run(
                disturbed(sender, collector, stack.rabbitmq, rate=given.rate, away_s=given.away)
            )
            processes.wait_for(
                lambda: collector.metric("analytics_collector_spool_records") == 0, 600, collector.log
            )
            print(f"the spool was empty within {time.monotonic() - back:.0f} s after the broker was back")
            print(f"answers by status {dict(sender.statuses)}, the slowest after {sender.slowest_s:.2f} s")
            assert set(sender.statuses) == {200}, sender.statuses
            check_counted_once(env, sender, mill, worker)
            print(f"{mill.made:,} events were sent, and each counts once")
            peak_mib = collector.peak_mib()
            print(f"the collector had {peak_mib:.0f} MiB at most")
            assert peak_mib < PEAK_MIB_MAX


if __name__ == "__main__":
    main()
