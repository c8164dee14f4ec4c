"""The accepted events of a batch, one by one, for the archive.

This module knows which names each event was counted under, and how late each event was. It holds events only
between two drains, and it knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.events import Columns, Names, Reader
from pipeline.core.watermark import DAY_US, HOUR_US, MINUTE_US
from pipeline.core.windows import CLIENT, CODE, MODEL, NameCap

IntArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedEvents:
    """Accepted events as arrays of one length, in stream order."""

    first_number: int
    """How many events the partition had accepted before these: the number of the first one of these."""
    complete_from_us: int | None
    """A bucket that begins later than this holds no event that was accepted before these.

    None: these are the first events of the partition. For example, the newest broker time before these events
    was 12:00. An accepted event lies at most 5 minutes after its broker time, so ``complete_from_us`` is
    12:05.
    """
    complete_to_us: int
    """A bucket that ends here or earlier gets no more events from the stream.

    For example, the newest broker time is now 12:10, and the dedupe window is 24 h. An event before 12:10 of
    yesterday is too late from now on, so ``complete_to_us`` is 12:10 of yesterday.
    """
    offset: IntArray
    broker_us: IntArray
    """int64 each"""
    event: IntArray
    org: IntArray
    model: IntArray
    counted_model: IntArray
    """uint64[n, 2] each, (high, low). ``model`` is the event's own; ``counted_model`` may be the overflow."""
    client: IntArray
    counted_client: IntArray
    """int32 each, places in ``clients``: the event's own client, and the client it was counted under."""
    clients: list[str]
    occurred_us: IntArray
    latency_ms: IntArray
    status: IntArray
    error_code: IntArray
    counted_error_code: IntArray
    """int32 each, places in ``error_codes``. An event that did not fail was counted under the code ''."""
    error_codes: list[str]
    input_tokens: IntArray
    output_tokens: IntArray
    cost_microcents: IntArray
    """int64 each"""
    details: IntArray
    """int64[n, 6]: see `events.DETAILS` and `events.TIER`."""
    rate_class: IntArray
    """int32: see `pipeline.core.rate_classes`."""
    provider: IntArray
    model_name: IntArray
    """int32 each, places in ``labels``."""
    labels: list[str]
    dimensions: Sequence[str]
    """The names of the d dimensions that the events were counted by."""
    value: IntArray
    counted_value: IntArray
    """int32[n, d] each, places in ``values``: the event's own value of each dimension, and the value under
    which it was counted."""
    values: list[str]
    late: IntArray
    """uint8: 0 in time, 1 late for its minute, 2 for its hour too, 3 for its day too."""
    in_quarter: IntArray
    """bool: the event was also counted in a row of a quarter."""

    def __len__(self) -> int:
        return len(self.offset)


class AcceptedLog:
    """Collects accepted events from one drain to the next."""

    def __init__(self, *, accepted: int, newest_broker_us: int) -> None:
        """Begin where ``accepted`` events have been accepted, with the newest broker time so far."""
        self._accepted = accepted
        self._newest_broker_us = newest_broker_us
        self._parts: list[tuple[Columns, IntArray, IntArray, IntArray]] = []

    @property
    def memory_bytes(self) -> int:
        return sum(len(part[0]) for part in self._parts) * _EVENT_BYTES

    def add(self, columns: Columns, offset: IntArray, broker_us: IntArray, met_us: IntArray) -> None:
        """Add accepted events, each with its offset, its broker time and the watermark it met (int64[n])."""
        self._parts.append((columns, offset, broker_us, met_us))

    def drain(
        self,
        reader: Reader,
        caps: Mapping[int, NameCap],
        value_caps: Sequence[NameCap],
        *,
        newest_broker_us: int,
        window_us: int,
        future_us: int,
        split_hours: Sequence[int] = (),
    ) -> AcceptedEvents | None:
        """Take out the events that were added since the last drain. None if there is no event.

        The caps must have been applied (`NameCap.apply`). ``caps`` has the caps of the key columns `MODEL`,
        `CLIENT` and `CODE`, and ``value_caps`` those of the dimensions. ``newest_broker_us`` is the newest
        broker time of any chunk so far. An accepted event lies at most ``window_us`` before and at most
        ``future_us`` after that time.
        """
        parts, self._parts = self._parts, []
        before_us, self._newest_broker_us = self._newest_broker_us, newest_broker_us
        if not parts:
            return None
        columns = Columns.join([part[0] for part in parts])
        offset, broker, met_us = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
        first, self._accepted = self._accepted, self._accepted + len(columns)
        hour = columns.occurred_us // HOUR_US
        counted_model = caps[MODEL].counted(columns.org, hour, columns.model)
        counted_client = caps[CLIENT].counted(columns.org, hour, columns.client)
        failed = columns.status > 0
        counted_code = np.zeros(len(columns), np.int32)
        counted_code[failed] = caps[CODE].counted(
            columns.org[failed], hour[failed], columns.error_code[failed]
        )
        (client, counted_client), clients = _texts(reader.clients, columns.client, counted_client)
        (code, counted_code), codes = _texts(reader.error_codes, columns.error_code, counted_code)
        (provider, model_name), labels = _texts(reader.labels, *columns.labels.T)
        counted_value = columns.values.copy()
        for place, cap in enumerate(value_caps):
            counted_value[:, place] = cap.counted(columns.org, hour, columns.values[:, place])
        (value, counted_value), values = _texts(
            reader.clients, columns.values.reshape(-1), counted_value.reshape(-1)
        )
        late = np.zeros(len(columns), np.uint8)
        for length_us in (MINUTE_US, HOUR_US, DAY_US):
            late += met_us >= (columns.occurred_us // length_us + 1) * length_us
        return AcceptedEvents(
            first_number=first,
            complete_from_us=before_us + future_us if first else None,
            complete_to_us=newest_broker_us - window_us,
            offset=offset,
            broker_us=broker,
            event=columns.event,
            org=reader.orgs.keys[columns.org],
            model=reader.models.keys[columns.model],
            counted_model=reader.models.keys[counted_model],
            client=client,
            counted_client=counted_client,
            clients=clients,
            occurred_us=columns.occurred_us,
            latency_ms=columns.latency_ms,
            status=columns.status,
            error_code=code,
            counted_error_code=counted_code,
            error_codes=codes,
            input_tokens=columns.input_tokens,
            output_tokens=columns.output_tokens,
            cost_microcents=columns.cost_microcents,
            details=columns.details,
            rate_class=columns.rate_class,
            provider=provider,
            model_name=model_name,
            labels=labels,
            dimensions=[one.name for one in reader.dimensions],
            value=value.reshape(columns.values.shape),
            counted_value=counted_value.reshape(columns.values.shape),
            values=values,
            late=late,
            in_quarter=np.isin(hour % 24, split_hours),
        )


_EVENT_BYTES = 16 + 7 * 4 + 4 * 4 + 16 * 8


def _texts(names: Names, *columns: IntArray) -> tuple[list[IntArray], list[str]]:
    """Replace the numbers of names by places in a list that has only the used names; returns both."""
    used, places = np.unique(np.concatenate(columns), return_inverse=True)
    split = np.split(places.reshape(-1).astype(np.int32), len(columns))
    return split, [names.texts[number] for number in used.tolist()]
