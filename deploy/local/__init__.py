"""A local stack of real servers for tests and development: RabbitMQ, TimescaleDB, Redis, S3.

`python -m deploy.local up|down|status|run` for people, `Stack` for tests.  Each server is found in
one of three ways, tried in this order (`ways/`): Docker compose, binaries of the host, a Debian 13
root folder built once in the cache (`rootfs.py`).  Everything listens on 127.0.0.1, on free ports.
"""

from .server import Unavailable
from .stack import SERVICES, Stack

__all__ = ["SERVICES", "Stack", "Unavailable"]
