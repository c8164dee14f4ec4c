"""Free ports of the loopback address.

Taken below the range from which the kernel serves outgoing connections, so that no client's connection can
take a server's port while that server is down for a restart.
"""

import secrets
import socket
from collections.abc import Collection

FIRST, LAST = 20000, 31999


def free_port(taken: Collection[int] = ()) -> int:
    """A port nobody listens on, and not one of `taken`."""
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
