"""Logs: one JSON object a line on standard error, the same of every process.

A line has ``time``, ``level``, ``event``, ``logger`` and ``service``, then the facts of the event, and a
``traceback`` where there is one. A fact never replaces one of the first five.

Nothing secret is written: the values of the secret settings are masked wherever they turn up, and what a
library says is cut to its first line. A request that could not be read as HTTP is in the text of aiohttp's
exception with its bytes, credentials among them: such an exception is its type's name and no more.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OURS: Final = frozenset(("api", "pipeline", "sql", "deploy", "root", "__main__"))
_MASK: Final = "…"
_NO_LINE_BREAKS: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
"""What ends a line, or commands a terminal, and JSON lets stand."""


class JsonFormatter(logging.Formatter):
    """``log.info("pool_ready", extra={"size": 10})`` becomes {"time", "level", "event", …, "size": 10}."""

    def __init__(self, service: str, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._service = service
        # The longest first: a password is part of its URL.
        self._secrets = sorted(filter(None, {shown(secret) for secret in secrets}), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event if is_ours(record) else event.partition("\n")[0],
            "logger": record.name,
            "service": self._service,
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and name not in line:
                line[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            unread = next(filter(is_unread, _chain(record.exc_info[1])), None)
            if unread is None:
                line["traceback"] = self.formatException(record.exc_info)
            else:
                line["fault"] = type(unread).__name__
        text = json.dumps(line, default=str, ensure_ascii=False)
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text.translate(_NO_LINE_BREAKS).encode("utf-8", "backslashreplace").decode()


def shown(value: str) -> str:
    """A text as it stands inside of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def is_ours(record: logging.LogRecord) -> bool:
    """Did our own code write this, which says facts, and not a library, which may say anything?"""
    return record.name.partition(".")[0] in _OURS


def configure(level: str, service: str, *, secrets: Iterable[str] = ()) -> None:
    """Send our records at or above ``level`` to standard error, and those of libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, secrets))
    handler.addFilter(lambda record: is_ours(record) or record.levelno >= logging.WARNING)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("faust", "mode", "aiokafka", "rstream", "numba", "aiohttp", "asyncio", "botocore", "s3fs"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    # SQLAlchemy reports a cancelled connection as an error with a traceback; ours says it in one line.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def is_unread(error: BaseException) -> bool:
    """Is this about a request that was not read, head or body? Its text may have the request's bytes."""
    return isinstance(error, HttpProcessingError | RequestPayloadError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
