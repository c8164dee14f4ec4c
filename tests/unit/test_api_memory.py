"""What an API process remembers of its callers has a bound, and those who prove nothing leave nothing."""

from __future__ import annotations

import secrets
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from api.reading.database import Database
from pipeline.common.access import audit, keys, limits
from pipeline.common.access.audit import Audit, Decision
from pipeline.common.access.config import TokenConfig
from pipeline.common.access.keys import Keys
from pipeline.common.access.limits import RateLimiter, Unknown
from pipeline.common.access.tokens import Tokens
from pipeline.common.correlation import Correlation
from pipeline.common.keys import new_key
from pipeline.common.problems import Problem
from tests.support.tokens import OTHER_RSA, SET, token

NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)
KEY_SECRET = b"k" * 32


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


class NoRows:
    """A database in which nothing is found. It counts how often it is asked."""

    def __init__(self) -> None:
        self.reads = self.writes = 0

    async def read(self, work: Any) -> Any:
        self.reads += 1
        return []

    async def write(self, work: Any) -> None:
        self.writes += 1


def held(thing: object, seen: set[int] | None = None) -> int:
    """The entries of all containers that a part of the API holds, at any depth."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, Mapping):
        return len(thing) + sum(held(value, seen) for value in thing.values())
    if isinstance(thing, (list, set, frozenset, tuple, deque)):
        return len(thing) + sum(held(value, seen) for value in thing)
    if type(thing).__module__.startswith("api."):
        return sum(held(value, seen) for value in getattr(thing, "__dict__", {}).values())
    return 0


def keys_of(database: NoRows, clock: Clock) -> Keys:
    return Keys(KEY_SECRET, database=cast(Database, database), cache_s=30, clock=clock)


async def test_made_up_api_keys_leave_nothing_behind() -> None:
    database, clock = NoRows(), Clock()
    known = keys_of(database, clock)
    before = held(known)
    for number in range(2000):
        tagged = new_key(b"another secret")[1]
        untagged = f"ssk_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
        for key in (tagged, untagged, "ssk_", f"{number}"):
            with pytest.raises(Problem):
                await known.caller(key)
    assert held(known) == before
    assert database.reads <= 1, "the keys of 0.1.0 are read all together"


async def test_keys_that_were_deleted_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_CACHED_MAX", 50)
    known = keys_of(NoRows(), Clock())
    for _ in range(200):
        with pytest.raises(Problem):
            await known.caller(new_key(KEY_SECRET)[1])
        assert held(known) <= 3 * 50, "an entry holds a pair"


@pytest.mark.parametrize("shared", [True, False])
async def test_forged_tokens_leave_nothing_behind(shared: bool, tmp_path: Any) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(SET)
    config = TokenConfig(
        issuer="https://issuer.test", audience="spendstream", secret="the secret of the issuer, 32 characters"
    )
    clock = Clock()
    tokens = Tokens(config if shared else replace(config, secret=None, jwks_file=str(path)), clock)

    async def forge(number: int) -> None:
        clock.now += timedelta(seconds=1)
        forged = token(OTHER_RSA, "RS256", f"kid {number}", sub=f"caller {number}")
        with pytest.raises(Problem):
            await tokens.caller(forged)

    await forge(0)
    before = held(tokens)
    for number in range(1, 300):
        await forge(number)
    assert held(tokens) == before
    await tokens.close()


async def test_callers_without_credentials_are_counted_up_to_a_bound() -> None:
    unknown = Unknown(20, Clock())
    refused = 0
    for number in range(1000):
        try:
            unknown.take(f"address {number}")
        except Problem:
            refused += 1
        assert held(unknown) <= 20 * Unknown.PROCESS
    assert refused == 1000 - 20 * Unknown.PROCESS


async def test_callers_are_counted_up_to_a_bound_where_redis_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "_CALLERS_MAX", 50)
    limiter = RateLimiter(3, None, Clock())
    for number in range(200):
        await limiter.take(f"caller {number}")
        assert held(limiter) <= 50


async def test_denied_callers_and_attempts_are_remembered_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "CALLERS_MAX", 20)
    clock = Clock()
    log = Audit(cast(Database, NoRows()), clock)
    for number in range(1000):
        actor = f"caller {number % 100}"
        decision = Decision(
            actor=actor,
            action="usage",
            org_id=uuid.uuid4(),
            status=403,
            asked="",
            correlation=Correlation("gateway/17", None, uuid.uuid4()),
        )
        await log.denied(decision)
        assert len(log._denied) <= 21
        assert all(len(one.attempts) <= audit.ATTEMPTS_MAX for one in log._denied.values())
    clock.now += 2 * audit.WINDOW
    await log.settle()
    clock.now += 2 * audit.WINDOW
    await log.settle()
    assert not log._denied, "who was silent for a minute is forgotten"
