"""Which transport a stream's URL asks for."""

from __future__ import annotations

from urllib.parse import urlsplit

from pipeline.config import StreamConfig
from pipeline.transports import Transport
from pipeline.transports.embedded.transport import EmbeddedTransport


def open_transport(config: StreamConfig) -> Transport:
    """The transport for ``config.url``; not connected yet: await its `open`.

    Raises ValueError if the URL's scheme is none of ``rabbitmq-stream``, ``rabbitmq-stream+tls`` and
    ``embedded``, or the rest of it is not what its transport needs.
    """
    scheme = urlsplit(config.url).scheme
    if scheme == "embedded":
        return EmbeddedTransport(config)
    if scheme in ("rabbitmq-stream", "rabbitmq-stream+tls"):
        # Here, so that the demo on the embedded log starts without loading rstream.
        from pipeline.transports.rabbitmq.transport import RabbitMQTransport

        return RabbitMQTransport(config)
    raise ValueError(f"no transport for a URL with {scheme}://")
