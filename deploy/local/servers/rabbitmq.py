"""RabbitMQ 4 with streams."""

import base64
import json
import struct
import urllib.request
from typing import Any

from ..server import BinariesWay, Server, ServerFailed
from . import tcp


class RabbitMQ(Server):
    """RabbitMQ with streams; `url` is the stream listener's."""

    name = "rabbitmq"
    user = "rabbitmq"
    port_names = ("stream", "amqp", "management", "prometheus", "epmd", "distribution")
    more_conf = ""
    """Lines for rabbitmq.conf, which count from the next start on."""
    plugins = ("rabbitmq_stream", "rabbitmq_stream_management", "rabbitmq_management", "rabbitmq_prometheus")

    @property
    def node(self) -> str:
        """The name of the Erlang node. It has an address, so that no name has to be resolved."""
        return f"{self.stack_name}@{self.host}"

    @property
    def url(self) -> str:
        return f"rabbitmq-stream://guest:guest@{self.host}:{self.ports['stream']}/%2F"

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.ports['amqp']}/%2F"

    @property
    def management_url(self) -> str:
        return f"http://guest:guest@{self.host}:{self.ports['management']}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "RABBITMQ_URL": self.url,
            "AMQP_URL": self.amqp_url,
            "RABBITMQ_MANAGEMENT_URL": self.management_url,
        }

    def prepare(self, way: BinariesWay) -> None:
        (self.data / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        (self.data / "rabbitmq.conf").write_text(
            f"""\
listeners.tcp.1 = {self.host}:{self.ports["amqp"]}
stream.listeners.tcp.1 = {self.host}:{self.ports["stream"]}
stream.advertised_host = {self.host}
stream.advertised_port = {self.ports["stream"]}
management.tcp.ip = {self.host}
management.tcp.port = {self.ports["management"]}
prometheus.tcp.ip = {self.host}
prometheus.tcp.port = {self.ports["prometheus"]}
disk_free_limit.absolute = 50MB
{self.more_conf}
"""
        )

    def command(self, way: BinariesWay) -> tuple[list[str], dict[str, str]]:
        data, numbers = way.data_seen(self), self.host.replace(".", ",")
        env = {
            "HOME": str(data),
            "ERL_EPMD_ADDRESS": self.host,
            "ERL_EPMD_PORT": str(self.ports["epmd"]),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_DIST_PORT": str(self.ports["distribution"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {{{numbers}}}",
            "RABBITMQ_CONF_ENV_FILE": str(data / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_LOGS": "-",
        }
        return [str(way.binaries.rabbitmq_server)], env

    def probe(self) -> None:
        """Check that the stream and AMQP listeners greet and that the management API answers."""
        with tcp.connect(self.host, self.ports["stream"]) as stream:
            stream.sendall(struct.pack(">IHHII", 12, 0x0011, 1, 1, 0))  # PeerProperties, none
            _, key = struct.unpack(">IH", tcp.receive(stream, 6))
            if key != 0x8011:
                raise ServerFailed(f"the stream listener answered {key:#x} to PeerProperties")
        with tcp.connect(self.host, self.ports["amqp"]) as amqp:
            amqp.sendall(b"AMQP\x00\x00\x09\x01")
            if tcp.receive(amqp, 1) != b"\x01":
                raise ServerFailed("the AMQP listener did not greet")
        self.management("/api/overview", patience_s=2)

    def management(self, path: str, *, patience_s: float = 30) -> Any:
        """The answer of the management API at `path`."""
        request = urllib.request.Request(f"http://{self.host}:{self.ports['management']}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        with urllib.request.urlopen(request, timeout=patience_s) as answer:
            return json.load(answer)
