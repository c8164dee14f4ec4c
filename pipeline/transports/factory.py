"""Choosing the transport for the URL of a stream."""

from __future__ import annotations

from pipeline.common import urls
from pipeline.config import StreamConfig
from pipeline.transports import Transport
from pipeline.transports.embedded.transport import EmbeddedTransport


def open_transport(config: StreamConfig) -> Transport:
    """The transport for ``config.url``. The transport is not connected yet: await its `open`.

    Raises ValueError if the URL's scheme is not ``rabbitmq-stream``, ``rabbitmq-stream+tls`` or ``embedded``,
    or if the transport cannot use the rest of the URL.
    """
    scheme = urls.split(config.url).scheme
    if scheme == "embedded":
        return EmbeddedTransport(config)
    if scheme in ("rabbitmq-stream", "rabbitmq-stream+tls"):
        # Imported here, so that the demo on the embedded log starts without loading rstream.
        from pipeline.transports.rabbitmq.transport import RabbitMQTransport

        return RabbitMQTransport(config)
    raise ValueError(f"no transport for a URL with {scheme}://")
