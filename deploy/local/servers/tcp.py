"""Connections to a port of this machine, to see whether a server answers."""

import socket


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=2)


def receive(connection: socket.socket, length: int) -> bytes:
    """Receive exactly `length` bytes.  Raises ConnectionError if the peer closes before."""
    got = b""
    while len(got) < length:
        if not (more := connection.recv(length - len(got))):
            raise ConnectionError("closed before it answered")
        got += more
    return got
