"""The four servers: the configuration, the command, the readiness check and the address of each."""

from .postgres import Postgres
from .rabbitmq import RabbitMQ
from .redis import Redis
from .s3 import S3

__all__ = ["S3", "Postgres", "RabbitMQ", "Redis"]
