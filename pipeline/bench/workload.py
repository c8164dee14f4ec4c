"""The events of a bench, and their exact totals by a recount that shares no code with the pipeline.

A `Workload` is one minute of traffic in camelCase, with about 430 bytes an event. 2 % of the events are
duplicates of an event far back, and a tenth of these have another payload. Some ids are used by two orgs,
which makes no duplicate. 0.5 % of the bodies are cut off in a string. A longer stream repeats the minute.
Each copy is a minute later and has new ids, so the truth of a copy follows from the truth of the first
minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.bench.answers import HOUR_US, Answer, Key, Sums
from pipeline.traffic.generator import Shares, Traffic, World

MINUTE_US: Final = 60_000_000
DUPLICATES: Final = 0.02
CONFLICTS: Final = 0.1
"""Share of the duplicates whose payload differs. Of such events the first in the stream counts."""
OTHER_ORGS: Final = 0.002
MALFORMED: Final = 0.005

_ID = slice(12, 48)
_ORG = slice(59, 95)
_CUT_AT: Final = 80
"""A bad body ends after this many bytes, in the middle of the org id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size and the kind of the traffic."""

    events: int = 300_000
    orgs: int = 500
    models: int = 20
    clients: int = 1
    late: float = 0.0
    """Share of the events that occurred 15 s to 2 h before the minute. If above 0, there are no copies."""
    facts: float = 0.0
    """Share of the events that carry labels, a service tier and kinds of tokens."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """One minute of events in stream order, and their exact totals."""

    minute_us: int
    bodies: Sequence[bytes]
    truth: Answer
    has_late: bool = False

    def copy(self, number: int) -> Sequence[bytes]:
        """The same minute, ``number`` minutes later and with ids of its own. Copy 0 is `bodies`."""
        if number == 0:
            return self.bodies
        assert not self.has_late, "a late event is not of the minute that a copy moves"
        old = _minute_text(self.minute_us)
        new = _minute_text(self.minute_us + number * MINUTE_US)
        prefix = b"%08x" % number
        return [body[:12] + prefix + body[20:].replace(old, new, 1) for body in self.bodies]

    def truth_of(self, copies: int) -> Answer:
        """The exact totals of copies 0 to ``copies`` - 1."""
        sums: dict[Key, list[int]] = {}
        for number in range(copies):
            hour = (self.minute_us + number * MINUTE_US) // HOUR_US
            for (org, model, _), one in self.truth.sums.items():
                total = sums.setdefault((org, model, hour), [0] * len(one))
                for i, value in enumerate(one):
                    total[i] += value
        return Answer(
            sums={key: _sums(total) for key, total in sums.items()},
            accepted=copies * self.truth.accepted,
            duplicate=copies * (self.truth.duplicate or 0),
            conflict=copies * (self.truth.conflict or 0),
            rejected=copies * (self.truth.rejected or 0),
        )

    def head(self, events: int) -> Workload:
        """The first events only, for contenders that would take too long over all of them."""
        if events >= len(self.bodies):
            return self
        bodies = self.bodies[:events]
        return Workload(self.minute_us, bodies, recount(bodies))

    def save(self, file: Path) -> None:
        """Write one body a line (no body holds a newline)."""
        file.write_bytes(b"\n".join(self.bodies) + b"\n")


def load_bodies(file: Path) -> list[bytes]:
    return file.read_bytes()[:-1].split(b"\n")


def make(shape: Shape, *, end_us: int) -> Workload:
    """Make the workload of the minute that holds ``end_us``. The seed decides the events."""
    minute_us = end_us // MINUTE_US * MINUTE_US
    world = World(orgs=shape.orgs, models=shape.models, clients_per_org=shape.clients)
    traffic = Traffic(
        world, seed=shape.seed, shares=Shares(late=shape.late, snake_case=0, cloudevents=0, facts=shape.facts)
    )
    rng = np.random.default_rng(shape.seed)
    times_us = minute_us + np.sort(rng.integers(0, MINUTE_US, shape.events))
    bodies = traffic.take(times_us)
    luck, picks = rng.random(shape.events), rng.random(shape.events)
    for i in np.flatnonzero(luck < MALFORMED + DUPLICATES + OTHER_ORGS).tolist():
        if luck[i] < MALFORMED:
            bodies[i] = bodies[i][:_CUT_AT]
            continue
        earlier = bodies[int(picks[i] * i)]
        if len(earlier) == _CUT_AT:
            continue
        if luck[i] >= MALFORMED + DUPLICATES:
            if earlier[_ORG] != bodies[i][_ORG]:
                bodies[i] = bodies[i][:12] + earlier[_ID] + bodies[i][48:]
        elif luck[i] < MALFORMED + DUPLICATES * CONFLICTS:
            bodies[i] = earlier.replace(b'"latencyMs":', b'"latencyMs":1', 1)
        else:
            bodies[i] = earlier
    return Workload(minute_us, bodies, recount(bodies), has_late=shape.late > 0)


def recount(bodies: Sequence[bytes]) -> Answer:
    """Count the exact totals event by event, with nothing but the standard library."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    sums: dict[Key, list[int]] = {}
    duplicate = conflict = rejected = 0
    for body in bodies:
        try:
            event: dict[str, Any] = json.loads(body, parse_float=str)
        except ValueError:
            rejected += 1
            continue
        identity = event["orgId"], event["eventId"]
        if identity in seen:
            duplicate += 1
            conflict += event != seen[identity]
            continue
        seen[identity] = event
        at = datetime.fromisoformat(event["occurredAt"])
        total = sums.setdefault((event["orgId"], event["modelId"], int(at.timestamp()) // 3600), [0] * 6)
        total[0] += 1
        total[1] += event["status"] != "success"
        total[2] += event["inputTokens"]
        total[3] += event["outputTokens"]
        total[4] += int(Decimal(event["costEstimateCents"]).scaleb(6))
        total[5] += event["latencyMs"]
    return Answer(
        sums={key: _sums(total) for key, total in sums.items()},
        accepted=len(seen),
        duplicate=duplicate,
        conflict=conflict,
        rejected=rejected,
    )


def chunks(bodies: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(bodies), size):
        yield bodies[at : at + size]


def _sums(total: Sequence[int]) -> Sums:
    events, failed, tokens_in, tokens_out, microcents, latency_ms = total
    return events, failed, tokens_in, tokens_out, microcents, latency_ms


def _minute_text(at_us: int) -> bytes:
    at = datetime.fromtimestamp(at_us // 1_000_000, UTC)
    return at.strftime('"occurredAt":"%Y-%m-%dT%H:%M:').encode()
