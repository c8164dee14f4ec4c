"""A TCP proxy for a PostgreSQL server that listens on a socket file, for an API that runs in a thread."""

import socket
import threading
from contextlib import closing, suppress

import psycopg


class PostgresProxy:
    """Listens on a free port of 127.0.0.1; a test can shut, cut and freeze it."""

    def __init__(self, url: str) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        self._upstream = f"{parts['host']}/.s.PGSQL.5432"
        self._url = f"postgresql://postgres@127.0.0.1:{{port}}/{parts['dbname']}"
        self._running = threading.Event()
        self._running.set()
        self._pairs: list[socket.socket] = []
        self._door: socket.socket | None = None
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        return self._url.format(port=self._port)

    def open(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self._port))
        self._port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def shut(self) -> None:
        """Behave as if the server has gone: stop listening, and cut every connection."""
        assert self._door is not None
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()

    def cut(self) -> None:
        for end in self._pairs:
            with closing(end), suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def freeze(self) -> None:
        """Behave as if the server hangs: accept connections, and pass on no byte."""
        self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._upstream)
            self._pairs += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._running.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
