"""Realistic usage events from a seed, encoded as the producers in the field encode them.

This module decides how traffic looks. A `World` has orgs, models with list prices, and clients. `Traffic` is
an endless sequence of events in a world, and the same seed gives the same sequence. The module reads no clock
(the caller gives the times) and knows no stream. Events are drawn as columns, in blocks. They are kept as
JSON text with a gap for the time, so that a batch costs little more than joining strings (170,000 to 270,000
events/s on one core).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

BLOCK: Final = 4096
"""Events drawn at once. With another block size, the same seed would give other events."""

STATUSES: Final = ("success", "error", "timeout", "throttled")
_STATUS_SHARES: Final = (0.97, 0.012, 0.006, 0.012)
_ERROR_CODES: Final = (
    ("null",),
    ('"internal_error"', '"upstream_error"', '"context_length_exceeded"', '"content_filter"', "null"),
    ('"deadline_exceeded"', '"upstream_timeout"'),
    ('"rate_limit_exceeded"', '"quota_exceeded"'),
)
_TIMEOUT_MS: Final = 60_000
_MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, with list prices in cents for a million tokens: a token then costs whole microcents."""

    model_id: str
    provider: str
    name: str
    input_cents_per_million: int
    output_cents_per_million: int
    first_token_ms: float
    token_ms: float


_MODELS: Final = (
    ("openai", "gpt-4o-2024-08-06", 250, 1000, 350, 14.0),
    ("openai", "gpt-4o-mini-2024-07-18", 15, 60, 180, 6.0),
    ("anthropic", "claude-opus-4-5", 500, 2500, 900, 32.0),
    ("openai", "o4-mini-2025-04-16", 110, 440, 1500, 11.0),
    ("google", "gemini-2.5-flash-lite", 10, 40, 90, 3.5),
    ("anthropic", "claude-sonnet-4-5", 300, 1500, 700, 16.0),
    ("anthropic", "claude-haiku-4-5", 100, 500, 260, 8.0),
    ("groq", "llama-3.3-70b-versatile", 59, 79, 220, 4.5),
)
_REASONING_MODELS: Final = ("o4-mini-2025-04-16",)
_CACHE_WRITERS: Final = ("anthropic",)
"""Providers that charge for writing to the cache."""
SERVICE_TIERS: Final = ("standard", "batch", "flex", "priority", "fast")
_TIER_SHARES: Final = (0.9, 0.05, 0.02, 0.02, 0.01)


def stable_uuid(*parts: object) -> str:
    """A version 4 shaped UUID that is always the same for the same parts."""
    return _uuid_text(hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest())


def _uuid_text(h: str) -> str:
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:32]}"


class World:
    """The orgs that send, their models and their clients. The same arguments give the same world everywhere.

    A few orgs make most of the traffic, and a few models make most of the traffic of an org (Zipf). Every org
    has its own favourite models, and up to ``clients_per_org`` clients. A client is an API key of one
    application, so all its calls have one service tier: a nightly job calls in batches, a chat does not.
    """

    def __init__(self, *, seed: int = 0, orgs: int = 50, models: int = 8, clients_per_org: int = 12) -> None:
        if min(orgs, models, clients_per_org) < 1:
            raise ValueError("a world needs at least one org, model and client")
        self.org_ids: Final = [stable_uuid("org", seed, i) for i in range(orgs)]
        self.models: Final = [_model(i) for i in range(models)]
        self.clients_per_org: Final = clients_per_org
        self._org_of = _zipf(orgs, 1.1)
        self._model_of = _zipf(models, 1.2)
        self._client_of = _zipf(clients_per_org, 0.9)
        self._tier_of: Final = np.random.default_rng([seed & (2**64 - 1), 0x71E5]).choice(
            len(SERVICE_TIERS), (orgs, clients_per_org), p=_TIER_SHARES
        )

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints, Ints]:
        """Draw the indices of org, model and client of ``n`` events: int64[n] each."""
        org, model_rank, client = (
            np.searchsorted(cumulated, rng.random(n))
            for cumulated in (self._org_of, self._model_of, self._client_of)
        )
        return org, (model_rank + org * 3) % len(self.models), client

    def tier(self, org: Ints, client: Ints) -> Ints:
        """The service tiers of clients: places in `SERVICE_TIERS`, int64[n]."""
        tiers: Ints = self._tier_of[org, client]
        return tiers

    def latency_ms(self, rng: np.random.Generator, model: Ints, output_tokens: Ints) -> Ints:
        """Draw latencies, int64[n]: log-normal around the time that a model needs for its tokens."""
        first_ms = np.array([each.first_token_ms for each in self.models])[model]
        token_ms = np.array([each.token_ms for each in self.models])[model]
        middle_ms = first_ms + token_ms * output_tokens
        return np.minimum(middle_ms * rng.lognormal(0.0, 0.3, len(model)), 600_000).astype(np.int64)

    def cost_microcents(self, model: Ints, input_tokens: Ints, output_tokens: Ints) -> Ints:
        """Compute the exact cost by list price, int64[n]: a cent a million tokens is a microcent a token.

        A cost is at most the highest that the contract allows for one event (10^8 cents).
        """
        input_price = np.array([each.input_cents_per_million for each in self.models])[model]
        output_price = np.array([each.output_cents_per_million for each in self.models])[model]
        cost: Ints = np.minimum(input_tokens * input_price + output_tokens * output_price, 10**14)
        return cost

    def client_id(self, org: int, client: int) -> str:
        return f"key-{self.org_ids[org][:4]}-{client:02d}"

    def actor_id(self, org: int, client: int) -> str:
        return stable_uuid("actor", self.org_ids[org], client % 5)


def _model(i: int) -> Model:
    provider, name, input_price, output_price, first_ms, token_ms = _MODELS[i % len(_MODELS)]
    if i >= len(_MODELS):
        name = f"{name}-{i // len(_MODELS) + 1}"
    return Model(
        model_id=stable_uuid("model", provider, name),
        provider=provider,
        name=name,
        input_cents_per_million=input_price,
        output_cents_per_million=output_price,
        first_token_ms=first_ms,
        token_ms=token_ms,
    )


def _zipf(n: int, exponent: float) -> npt.NDArray[np.float64]:
    weights = 1.0 / np.arange(1, n + 1) ** exponent
    cumulated = np.cumsum(weights / weights.sum())
    cumulated[-1] = 1.0
    return cumulated


def daily_shape(at_us: int) -> float:
    """The rate at this time of day relative to the day's mean: 0.45 at 03:00 UTC, 1.55 at 15:00."""
    hours = at_us / (60 * _MINUTE_US) % 24
    return 1.0 + 0.55 * math.sin((hours - 9.0) / 24 * 2 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Shares of the traffic, each 0..1.

    An event is a duplicate, late, bad, or none of these. Neither the variant of its encoding nor its facts
    depend on that.
    """

    duplicates: float = 0.0
    late: float = 0.0
    bad: float = 0.0
    snake_case: float = 0.1
    cloudevents: float = 0.1
    facts: float = 0.9
    """Events that carry provider, name of the model, service tier, kinds of tokens, team and feature."""

    def __post_init__(self) -> None:
        shares = (getattr(self, field.name) for field in fields(self))
        if min(shares) < 0:
            raise ValueError("a share must not be negative")
        if self.facts > 1:
            raise ValueError("a share must not be more than 1")
        if self.duplicates + self.late + self.bad > 1 or self.snake_case + self.cloudevents > 1:
            raise ValueError("shares must not add up to more than 1")


# --- encoding: a head and a tail around the time ------------------------------------------------

CAMEL, SNAKE, CLOUDEVENT = range(3)

_HEADS: Final = (
    '{"eventId":"%s","orgId":"%s","modelId":"%s","actorId":%s,"clientId":"%s","occurredAt":"',
    '{"event_id":"%s","org_id":"%s","model_id":"%s","actor_id":%s,"client_id":"%s","occurred_at":"',
)
_TAILS: Final = (
    'Z","latencyMs":%d,"status":"%s","errorCode":%s,"inputTokens":%d,"outputTokens":%d,"costEstimateCents":%s,'
    '%s"metadata":{"region":"eu-central-1"%s}}',
    'Z","latency_ms":%d,"status":"%s","error_code":%s,"input_tokens":%d,"output_tokens":%d,"cost_estimate":%s,'
    '%s"metadata":{"region":"eu-central-1"%s}}',
)
_FACTS: Final = (
    '"provider":"%s","modelName":"%s","serviceTier":"%s","cacheReadTokens":%d,"cacheWriteTokens":%d,'
    '"cacheWrite1hTokens":%d,"reasoningTokens":%d,',
    '"provider":"%s","model_name":"%s","service_tier":"%s","cache_read_tokens":%d,"cache_write_tokens":%d,'
    '"cache_write_1h_tokens":%d,"reasoning_tokens":%d,',
)


_PURPOSE: Final = ',"team":"%s","feature":"%s"'
_TEAMS: Final = ("search", "support", "growth", "platform")
_FEATURES: Final = ("chat", "summary", "tagging", "translation", "agent")
"""The metadata of events with facts: a client belongs to a team, and calls a model for one feature."""

FACTS: Final = (
    "tier",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
"""The last fields of `Columns`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """``n`` events without their times: int64[n] each; ``ids`` are UUID texts."""

    ids: Sequence[str]
    org: Ints
    model: Ints
    client: Ints
    status: Ints
    code: Ints
    latency_ms: Ints
    input_tokens: Ints
    output_tokens: Ints
    cost_microcents: Ints
    variant: Ints
    has_facts: Ints
    """1 for an event that carries the fields below, and the labels of its model."""
    tier: Ints
    cache_read_tokens: Ints
    cache_write_tokens: Ints
    cache_write_1h_tokens: Ints
    reasoning_tokens: Ints

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The events one by one, each with the values in the order of the fields."""
        numbers = (getattr(self, field.name).tolist() for field in fields(self)[1:])
        return zip(self.ids, *numbers, strict=True)


def draw_statuses(rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
    """Draw statuses (97 % success), and numbers that pick an error code of the status: int64[n] each."""
    cumulated = np.cumsum(_STATUS_SHARES)
    cumulated[-1] = 1.0
    return np.searchsorted(cumulated, rng.random(n)), rng.integers(0, 60, n)


def draw_variants(rng: np.random.Generator, n: int, shares: Shares) -> Ints:
    edges = (1 - shares.snake_case - shares.cloudevents, 1 - shares.cloudevents)
    return np.searchsorted(edges, rng.random(n), side="right")


def encode(world: World, columns: Columns) -> tuple[list[str], list[str]]:
    """Encode events as JSON; returns the text before and the text after the time of each event.

    The time between the two is ``YYYY-MM-DDThh:mm:ss.ffffff``. Costs are exact decimals. Every other org
    writes its costs as strings, and the others write numbers.
    """
    heads, tails = [], []
    actors: dict[tuple[int, int], str] = {}
    models = world.models
    for (
        event_id,
        org,
        model,
        client,
        status,
        code,
        latency,
        tokens_in,
        tokens_out,
        microcents,
        variant,
        has_facts,
        tier,
        *kinds,
    ) in columns.rows():
        actor = actors.get((org, client))
        if actor is None:
            actor = "null" if client % 3 == 2 else f'"{world.actor_id(org, client)}"'
            actors[org, client] = actor
        codes = _ERROR_CODES[status]
        cents, rest = divmod(microcents, 1_000_000)
        cost = f'"{cents}.{rest:06d}"' if org & 1 else f"{cents}.{rest:06d}"
        names = variant == SNAKE
        head = _HEADS[names] % (
            event_id,
            world.org_ids[org],
            models[model].model_id,
            actor,
            world.client_id(org, client),
        )
        facts = purpose = ""
        if has_facts:
            labels = models[model].provider, models[model].name, SERVICE_TIERS[tier]
            facts = _FACTS[names] % (*labels, *kinds)
            feature = _FEATURES[(model + client) % len(_FEATURES)]
            purpose = _PURPOSE % (_TEAMS[client % len(_TEAMS)], feature)
        tail = _TAILS[names] % (
            latency,
            STATUSES[status],
            codes[code % len(codes)],
            tokens_in,
            tokens_out,
            cost,
            facts,
            purpose,
        )
        if variant == CLOUDEVENT:
            head = (
                '{"specversion":"1.0","type":"analytics.usage.v1","source":"/inference-router","id":"'
                + event_id
                + '","datacontenttype":"application/json","data":'
                + head
            )
            tail += "}"
        heads.append(head)
        tails.append(tail)
    return heads, tails


def time_texts(times_us: Ints) -> list[str]:
    """Write UTC microseconds as RFC 3339, to the microsecond and without the zone."""
    texts: list[str] = np.datetime_as_string(times_us.astype("datetime64[us]"), unit="us").tolist()
    return texts


def draw_kinds(
    rng: np.random.Generator, world: World, model: Ints, input_tokens: Ints, output_tokens: Ints
) -> dict[str, Ints]:
    """Draw the kinds of tokens of n events: the last fields of `Columns`, int64[n] each.

    Half of the longer calls read most of their input from a cache. Models of some providers also write to the
    cache, and some models reason.
    """
    n = len(model)
    writes = np.array([each.provider in _CACHE_WRITERS for each in world.models])[model]
    reasons = np.array([each.name in _REASONING_MODELS for each in world.models])[model]
    caches = (input_tokens >= 1024) & (rng.random(n) < 0.5)
    read = np.where(caches, input_tokens * rng.uniform(0.3, 0.95, n), 0).astype(np.int64)
    written = np.where(caches & writes, (input_tokens - read) * rng.uniform(0, 0.8, n), 0).astype(np.int64)
    for_an_hour = rng.random(n) < 0.2
    return {
        "cache_read_tokens": read,
        "cache_write_tokens": np.where(for_an_hour, 0, written),
        "cache_write_1h_tokens": np.where(for_an_hour, written, 0),
        "reasoning_tokens": np.where(reasons, output_tokens * rng.uniform(0.3, 0.9, n), 0).astype(np.int64),
    }


# --- traffic ------------------------------------------------------------------------------------


class Traffic:
    """An endless sequence of events. The arguments decide the events, and the caller gives their times.

    The sequence is the same in few large calls of `take` and in many small ones.
    """

    def __init__(self, world: World, *, seed: int, shares: Shares | None = None) -> None:
        self._world = world
        self._shares = shares or Shares()
        self._rng = np.random.default_rng([seed & (2**64 - 1), 0x5BE9D])
        # Facts have a luck of their own, so that the rest of the events is the same with and without facts.
        self._luck_of_facts = np.random.default_rng([seed & (2**64 - 1), 0xFAC75])
        self._recent: deque[bytes] = deque(maxlen=1024)
        self._at = BLOCK

    def take(self, times_us: Ints) -> list[bytes]:
        """The next events, one for each time (UTC microseconds, int64[n]), encoded as JSON.

        A late event occurred 15 s to 2 h before its time. A duplicate repeats one of the last 1024 good
        bodies. A bad event breaks one rule of the contract.
        """
        bodies: list[bytes] = []
        while len(bodies) < len(times_us):
            if self._at == BLOCK:
                self._draw_block()
            n = min(BLOCK - self._at, len(times_us) - len(bodies))
            bodies.extend(self._encoded(times_us[len(bodies) : len(bodies) + n]))
            self._at += n
        return bodies

    def _draw_block(self) -> None:
        rng, world = self._rng, self._world
        hexes = rng.bytes(16 * BLOCK).hex()
        org, model, client = world.draw(rng, BLOCK)
        status, code = draw_statuses(rng, BLOCK)
        input_tokens = np.clip(rng.lognormal(6.8, 1.1, BLOCK), 1, 128_000).astype(np.int64)
        output_tokens = np.clip(rng.lognormal(5.2, 1.0, BLOCK), 1, 8_192).astype(np.int64)
        output_tokens[status != 0] //= 8
        output_tokens[status == STATUSES.index("throttled")] = 0
        input_tokens[status == STATUSES.index("throttled")] = 0
        latency_ms = world.latency_ms(rng, model, output_tokens)
        latency_ms[status == STATUSES.index("timeout")] = _TIMEOUT_MS
        columns = Columns(
            ids=[_uuid_text(hexes[i : i + 32]) for i in range(0, 32 * BLOCK, 32)],
            org=org,
            model=model,
            client=client,
            status=status,
            code=code,
            latency_ms=latency_ms,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_microcents=world.cost_microcents(model, input_tokens, output_tokens),
            variant=draw_variants(rng, BLOCK, self._shares),
            has_facts=(self._luck_of_facts.random(BLOCK) < self._shares.facts).astype(np.int64),
            tier=world.tier(org, client),
            **draw_kinds(self._luck_of_facts, world, model, input_tokens, output_tokens),
        )
        self._heads, self._tails = encode(world, columns)
        luck, shares = rng.random(BLOCK), self._shares
        self._late_us = np.where(
            luck < shares.late, np.clip(rng.lognormal(4.5, 1.2, BLOCK), 15, 7200) * 1e6, 0
        ).astype(np.int64)
        odd = (luck >= shares.late) & (luck < shares.late + shares.duplicates + shares.bad)
        self._is_odd = odd
        self._is_duplicate = odd & (luck < shares.late + shares.duplicates)
        self._pick = rng.integers(0, 2**31, BLOCK)
        self._at = 0

    def _encoded(self, times_us: Ints) -> list[bytes]:
        rows = slice(self._at, self._at + len(times_us))
        texts = time_texts(times_us - self._late_us[rows])
        triples = zip(self._heads[rows], texts, self._tails[rows], strict=True)
        # One call of encode for all events is twice as fast as a call for each. No event has a newline in it.
        bodies = "\n".join([head + at + tail for head, at, tail in triples]).encode().split(b"\n")
        kept_from = 0
        for i in np.flatnonzero(self._is_odd[rows]).tolist():
            self._recent.extend(bodies[max(kept_from, i - 1024) : i])
            kept_from = i + 1
            pick = int(self._pick[self._at + i])
            if not self._is_duplicate[self._at + i]:
                bodies[i] = BAD_KINDS[pick % len(BAD_KINDS)](bodies[i])
            elif self._recent:
                bodies[i] = self._recent[-1 - pick % len(self._recent)]
        self._recent.extend(bodies[max(kept_from, len(bodies) - 1024) :])
        return bodies


# --- bad events: each breaks one rule -----------------------------------------------------------


def _set(name: str, value: Any) -> Callable[[bytes], bytes]:
    """A function that sets one field of a body, in any variant. The value ``...`` removes the field."""
    snake_name = "".join("_" + c.lower() if c.isupper() else c for c in name)

    def change(body: bytes) -> bytes:
        whole: dict[str, Any] = json.loads(body)
        event = whole.get("data", whole)
        wire_name = name if name in event else snake_name
        if value is ...:
            event.pop(wire_name, None)
        else:
            event[wire_name] = value
        return json.dumps(whole, separators=(",", ":")).encode()

    return change


BAD_KINDS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    lambda body: body[: len(body) // 2],
    lambda body: b"[" + body + b"]",
    lambda body: b"GET / HTTP/1.1",
    lambda body: body[:-1] + b',"padding":"' + b"x" * 65_536 + b'"}',
    _set("orgId", ...),
    _set("eventId", str(UUID(int=0))[:-1]),
    _set("latencyMs", "120"),
    _set("latencyMs", -1),
    _set("inputTokens", 1.5),
    _set("outputTokens", 10**12 + 1),
    _set("status", "ok"),
    _set("clientId", "x" * 129),
    _set("errorCode", "x" * 65),
    _set("metadata", {"attempt": 1}),
    _set("occurredAt", "2026-02-30T00:00:00Z"),
    _set("occurredAt", "1999-12-31T23:59:59Z"),
    _set("occurredAt", "9999-01-01T00:00:00Z"),
)
