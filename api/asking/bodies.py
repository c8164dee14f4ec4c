"""Bodies: a JSON object is read field by field, and all faults are said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from api.asking import params
from api.asking.buckets import HOUR, UTC_ZONE
from pipeline.common import adjustments, ids
from pipeline.common.problems import Fault, invalid_parameters


def reason(body: bytes) -> str:
    """Why something is retracted: the one field of the body. Raises `Problem` 400."""
    reader = Body(body, ("reason",))
    given = reader.get("reason")
    if not adjustments.is_reason(given):
        reader.fault("reason", adjustments.REASON_RULE)
    reader.finish()
    return str(given)


class Body:
    """Reads a JSON object. Faults are collected, each with its field."""

    def __init__(self, body: bytes, known: Sequence[str]) -> None:
        self.faults: list[Fault] = []
        self._fields: dict[str, Any] = {}
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            given = None
        if not isinstance(given, dict):
            raise invalid_parameters([Fault("", "the body must be a JSON object")])
        self._fields = given
        for name in given:
            if name not in known:
                self.fault(name[:100], f"unknown field; the fields are {', '.join(known)}")

    def fault(self, name: str, message: str) -> None:
        self.faults.append(Fault(name, message))

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        return self._fields.get(name)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.fault(name, f"expected one of {', '.join(choices)}")
            return default
        return value

    def version(self, name: str) -> int | None:
        """A version of the price book."""
        if name not in self._fields:
            return None
        version = self._fields[name]
        if type(version) is not int or not 0 <= version <= params.VERSION_MAX:
            self.fault(name, "expected a version of the price book: a whole number, 0 or more")
            return None
        return version

    def uuids(self, name: str, count_max: int) -> tuple[UUID, ...]:
        """The distinct ids of a list."""
        value = self._fields.get(name, [])
        if not isinstance(value, list) or len(value) > count_max:
            self.fault(name, f"expected a list of at most {count_max} ids")
            return ()
        found = set()
        for entry in value:
            try:
                found.add(ids.uuid(entry))
            except (TypeError, ValueError):
                self.fault(name, "expected UUIDs")
                return ()
        return tuple(sorted(found))

    def group_by(self, name: str) -> frozenset[str] | None:
        """What rows are by, as the parameter ``groupBy`` of REST in one text. None: the body does not say."""
        if name not in self._fields:
            return None
        value = self._fields[name]
        try:
            return params.group_by([value if isinstance(value, str) else ""])
        except ValueError as error:
            self.fault(name, str(error))
            return frozenset((params.MODEL,))

    def dimensions(self, name: str, count_max: int) -> tuple[tuple[str, str], ...]:
        """The distinct values of a list, each with its dimension, as the parameter ``dimension`` of REST."""
        value = self._fields.get(name, [])
        if not isinstance(value, list) or len(value) > count_max:
            self.fault(name, f"expected a list of at most {count_max} texts such as team:search")
            return ()
        found = set()
        for place, entry in enumerate(value):
            try:
                found.add(params.dimension(entry if isinstance(entry, str) else ""))
            except ValueError as error:
                self.fault(f"{name}[{place}]", str(error))
        return tuple(sorted(found))

    def zone(self, name: str) -> ZoneInfo:
        """A time zone; UTC if there is none in the body."""
        value = self._fields.get(name, UTC_ZONE.key)
        try:
            return params.zone(value if isinstance(value, str) else "")
        except ValueError as error:
            self.fault(name, str(error))
            return UTC_ZONE

    def text(self, name: str, chars_max: int) -> str | None:
        """A text that rows can hold and lines can show; None if there is none or null."""
        value = self._fields.get(name)
        if value is None:
            return None
        fits = isinstance(value, str) and 0 < len(value) <= chars_max and value.isprintable()
        if not fits:
            self.fault(name, f"expected 1 to {chars_max} printable characters")
            return None
        return str(value)

    def instant(self, name: str, value: Any) -> int | None:
        """A time, in microseconds since 1970."""
        return self._time(name, value, params.instant)

    def minute(self, name: str, value: Any) -> int | None:
        """A whole minute, in minutes since 1970."""
        return self._time(name, value, params.whole_minute)

    def _time(self, name: str, value: Any, parse: Callable[[str], int]) -> int | None:
        try:
            return parse(value)
        except (TypeError, ValueError) as error:
            is_text = isinstance(value, str)
            self.fault(name, str(error) if is_text else "expected an RFC 3339 time with an offset")
            return None

    def hour(self, name: str, value: Any) -> int | None:
        """A whole hour, in minutes since 1970."""
        minute = self.minute(name, value)
        if minute is not None and minute % HOUR:
            self.fault(name, "must be a whole hour of UTC")
            return None
        return minute

    def finish(self) -> None:
        """Raises `Problem` 400 with every fault, if there are any."""
        if self.faults:
            raise invalid_parameters(self.faults)
