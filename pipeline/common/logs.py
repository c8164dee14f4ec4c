"""Logs: every process writes one JSON object a line to standard error, in the same form.

A line has ``time``, ``level``, ``event``, ``logger`` and ``service``, then the facts of the event, and a
``traceback`` if there is one. A fact never replaces one of the first five. A line that is written while a
request is in work has the facts of the request, too (`within`). While tracing is on, a line has the ids of
the trace and span in which it is written.

No secret is written. The values of the secret settings are masked everywhere in a line. A message of a
library is cut to its first line. When aiohttp cannot read a request, the text of its exception holds bytes of
the request, perhaps a credential. For this exception only the name of its type is written.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from pipeline.common import traces

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OURS: Final = frozenset(("api", "pipeline", "sql", "deploy", "root", "__main__"))
_MASK: Final = "…"
_WITHIN: Final[ContextVar[Mapping[str, str] | None]] = ContextVar("within", default=None)
_NO_LINE_BREAKS: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Characters that end a line or command a terminal, and that JSON does not escape."""


class JsonFormatter(logging.Formatter):
    """``log.info("pool_ready", extra={"size": 10})`` becomes {"time", "level", "event", …, "size": 10}."""

    def __init__(self, service: str, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._service = service
        # The longest secret comes first, because a password is a part of its URL.
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
        for name, value in {**(_WITHIN.get() or {}), **traces.facts()}.items():
            line.setdefault(name, value)
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


@contextmanager
def within(facts: Mapping[str, str]) -> Iterator[None]:
    """Add these facts to every line that this task and its threads write meanwhile.

    So a warning of the driver's or of a cache has the id of the request that met it.
    """
    token = _WITHIN.set(facts)
    try:
        yield
    finally:
        _WITHIN.reset(token)


def shown(value: str) -> str:
    """A text as it appears inside a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def is_ours(record: logging.LogRecord) -> bool:
    """Did our own code write this record? Our code logs facts, and a library may log anything."""
    return record.name.partition(".")[0] in _OURS


def configure(level: str, service: str, *, secrets: Iterable[str] = ()) -> None:
    """Send our records from ``level`` on to standard error, and the warnings and errors of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, secrets))
    handler.addFilter(lambda record: is_ours(record) or record.levelno >= logging.WARNING)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("faust", "mode", "aiokafka", "rstream", "numba", "aiohttp", "asyncio", "botocore", "s3fs"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    # SQLAlchemy reports a cancelled connection as an error with a traceback. Our code logs it in one line.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def is_unread(error: BaseException) -> bool:
    """Is the error about an unreadable head or body of a request? Its text may hold bytes of the request."""
    return isinstance(error, HttpProcessingError | RequestPayloadError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and the errors that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
