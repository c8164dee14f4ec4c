"""Free ports of the loopback address.

The ports lie below the range from which the kernel takes ports for outgoing connections. So no client's
connection can take the port of a server that is down for a restart.
"""

import secrets
import socket
from collections.abc import Collection

FIRST, LAST = 20000, 31999


def free_port(taken: Collection[int] = ()) -> int:
    """Find a port that nobody listens on and that is not in `taken`."""
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST + 1)  # not `random`, which tests seed
        if port not in taken and is_free(port):
            return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ignore TIME_WAIT
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
