"""Random questions about the figures of an org, and the right answers by a naive count of the events."""

import math
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.support.api_facts import (
    CLIENTS,
    FAILURES,
    MODELS,
    NOW,
    ORG,
    STRANGER,
    Event,
    bucket_of,
    expected,
    figures,
    floor,
    newest_label,
    random_events,
    rfc3339,
)

EVENTS = random_events(5000, seed=11)


def expected_usage(events: Sequence[Event]) -> dict[str, Any]:
    """The right figures of a usage point with these events, in the form of `shown_usage`."""
    *_, amount = right = expected(events)
    cents = None if amount is None else int((amount * 100).quantize(Decimal(1), ROUND_HALF_EVEN))
    return {
        "figures": right,
        "costEstimateCents": cents,
        "currency": "USD",
        "basis": "none" if amount is None else "estimate",
    }


def shown_usage(point: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a point, with the cost as a number."""
    return {
        "figures": figures(point),
        "costEstimateCents": point["costEstimateCents"],
        "currency": point["cost"]["currency"],
        "basis": point["cost"]["basis"],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about `ORG`: a range of time, and how it is cut, grouped and filtered."""

    start: datetime
    end: datetime
    granularity: str
    zone: str
    groups: tuple[str, ...]
    models: tuple[uuid.UUID, ...]
    clients: tuple[str, ...]

    def query(self) -> dict[str, Any]:
        """The parameters of a request."""
        return {
            "start": rfc3339(self.start),
            "end": rfc3339(self.end),
            "granularity": self.granularity,
            "timeZone": self.zone,
            "groupBy": list(self.groups) or ["none"],
            "modelId": [str(model) for model in self.models],
            "clientId": list(self.clients),
        }

    def chosen(self, events: Sequence[Event]) -> list[Event]:
        """The events that the answer counts."""
        return [
            e
            for e in events
            if e.org == ORG
            and self.start <= e.at < self.end
            and (not self.models or e.model in self.models)
            and (not self.clients or e.client in self.clients)
        ]

    def series(self, events: Sequence[Event]) -> list[tuple[tuple[str, str | None, str | None], list[Event]]]:
        """The events of each point, by (bucket, model, client), in the order of the answer."""
        groups: dict[Any, list[Event]] = defaultdict(list)
        for e in self.chosen(events):
            model = e.model if "model" in self.groups else None
            client = e.client if "client" in self.groups else None
            groups[bucket_of(e.at, self.granularity, self.zone), model, client].append(e)
        found = sorted(
            groups.items(), key=lambda item: (item[0][0], str(item[0][1]), str(item[0][2]).encode())
        )
        return [
            ((rfc3339(bucket), str(model) if model else None, client or None), group)
            for (bucket, model, client), group in found
        ]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any question that the rows of `EVENTS` can answer exactly."""
    granularity = draw(st.sampled_from(("minute", "hour", "day", "week", "month")))
    by_client = granularity != "minute" and draw(st.booleans())
    odd_zone = draw(st.booleans()) and not by_client
    zone = draw(
        st.sampled_from(
            ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
            if odd_zone
            else ("UTC", "America/Los_Angeles", "Europe/London", "Pacific/Auckland", "Pacific/Kiritimati")
        )
    )
    recent = odd_zone or granularity == "minute"
    end = floor(NOW, "minute") - timedelta(minutes=draw(st.integers(-2000, 5000)))
    longest = {"minute": 1440, "hour": 12000, "day": 12000}.get(granularity, 9 * 1440)
    length = draw(st.integers(1, longest))
    if not recent and granularity in ("day", "week", "month") and draw(st.booleans()):
        length = draw(st.integers(1, 380 * 1440))
    start = end - timedelta(minutes=length)
    if granularity == "month" and odd_zone:
        start = max(
            start, datetime(2026, 11, 1, 12, tzinfo=UTC)
        )  # minute rows at the edge of October are gone
        end = max(end, start + timedelta(minutes=1))
    if by_client or start < NOW - timedelta(days=13):
        start, end = floor(start, "hour"), floor(end, "hour") + timedelta(hours=1)
    if granularity == "minute":
        end = min(end, start + timedelta(minutes=1440))
    groups = draw(st.sampled_from(((), ("model",), ("client",), ("model", "client"))))
    return Question(
        start=start,
        end=end,
        granularity=granularity,
        zone=zone,
        groups=groups if by_client else tuple(g for g in groups if g == "model"),
        models=tuple(draw(st.sets(st.sampled_from((*MODELS, STRANGER)), max_size=2))),
        clients=tuple(draw(st.sets(st.sampled_from((*CLIENTS, "nobody")), max_size=2))) if by_client else (),
    )


def label_of(model_id: str | None) -> tuple[str | None, str | None]:
    """The right provider and name of a model of `ORG`."""
    mine = [e for e in EVENTS if e.org == ORG and str(e.model) == model_id]
    _, provider, name = newest_label(mine)
    return provider or None, name or None


_LABELS = {model_id: label_of(model_id) for model_id in (None, *map(str, MODELS))}


def key_of(point: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """(bucket, model, client) of a point, whose labels must be right."""
    assert (point["provider"], point["modelName"]) == _LABELS[point["modelId"]]
    return point["bucketStart"], point["modelId"], point["clientId"]


def check_reliability(shown: Mapping[str, Any], events: Sequence[Event]) -> None:
    """Check a reliability point against a count of its events. Quantiles may be 1 % off."""
    failures = {name: sum(e.status == status for e in events) for status, name in FAILURES.items()}
    assert shown["invocations"] == len(events)
    assert shown["errors"] == failures
    latencies = sorted(e.latency_ms for e in events)
    shown_ms = shown["latencyMs"]
    if not events:
        assert shown["errorRate"] is None
        assert set(shown_ms.values()) == {None}
        return
    assert shown["errorRate"] == pytest.approx(sum(failures.values()) / len(events))
    assert shown_ms["max"] == latencies[-1]
    assert shown_ms["mean"] == pytest.approx(sum(latencies) / len(events))
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = latencies[max(1, math.ceil(q * len(latencies) - 1e-9)) - 1]
        assert shown_ms[name] == pytest.approx(exact, rel=0.01, abs=0.5)
