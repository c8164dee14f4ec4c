"""Redis."""

from ..server import BinariesWay, Server, ServerFailed
from . import tcp


class Redis(Server):
    """Redis, in memory only. It is empty after each start."""

    name = "redis"
    user = "redis"
    port_names = ("redis",)

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.ports['redis']}/0"

    @property
    def env(self) -> dict[str, str]:
        return {"REDIS_URL": self.url}

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        where = ["--bind", self.host, "--port", str(self.ports["redis"]), "--dir", str(way.data_seen(self))]
        return [str(way.binaries.redis_server), *where, "--save", "", "--appendonly", "no"], {}

    def probe(self) -> None:
        if (answer := self.ask("PING")) != b"+PONG":
            raise ServerFailed(f"Redis answered {answer!r} to PING")

    def flush(self) -> None:
        self.ask("FLUSHALL")

    def ask(self, command: str) -> bytes:
        """Send an inline command; returns the first line of the answer."""
        with tcp.connect(self.host, self.ports["redis"]) as connection:
            connection.sendall(command.encode() + b"\r\n")
            with connection.makefile("rb") as answer:
                return answer.readline().rstrip()
