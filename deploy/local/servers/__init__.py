"""The four servers: how each is configured, started, asked whether it is ready, and reached."""

from .postgres import Postgres
from .rabbitmq import RabbitMQ
from .redis import Redis
from .s3 import S3

__all__ = ["S3", "Postgres", "RabbitMQ", "Redis"]
