"""Connections to a server, to see whether it answers."""

import socket


def connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=2)


def receive(connection: socket.socket, length: int) -> bytes:
    """Receive exactly `length` bytes.  Raises ConnectionError if the peer closes before."""
    got = b""
    while len(got) < length:
        if not (more := connection.recv(length - len(got))):
            raise ConnectionError("closed before it answered")
        got += more
    return got
