"""An issuer with a URL of keys: when the keys are read again, and which stay good while it is away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.common.access import tokens as access_tokens
from pipeline.common.access.tokens import REFETCH_S, Tokens
from pipeline.common.errors import Unavailable
from tests.support.tokens import (
    ANA,
    EC,
    HS,
    NOW,
    OTHER_RSA,
    RSA,
    Clock,
    jwk,
    jwks,
    refused,
    token,
    tokens_of,
)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API waits for its issuer on a slow machine, too."""
    monkeypatch.setattr(access_tokens, "_FETCH_TIMEOUT_S", 60)


class Issuer:
    def __init__(self) -> None:
        self.document = jwks(jwk(RSA, "r"))
        self.status = 200
        self.reads = 0

    async def answer(self, _: web.Request) -> web.Response:
        self.reads += 1
        return web.Response(status=self.status, body=self.document, content_type="application/json")


@asynccontextmanager
async def issuing() -> AsyncIterator[tuple[Issuer, Tokens, Clock]]:
    issuer, clock = Issuer(), Clock()
    app = web.Application()
    app.router.add_get("/jwks", issuer.answer)
    async with TestServer(app) as server:
        tokens = tokens_of(replace(HS, secret=None, jwks_url=str(server.make_url("/jwks"))), clock)
        yield issuer, tokens, clock
        await tokens.close()


async def test_keys_are_read_once_and_again_when_they_are_old() -> None:
    async with issuing() as (issuer, tokens, clock):
        good = token(RSA, "RS256", "r", exp=int(NOW.timestamp()) + 9999)
        for _ in range(3):
            assert await tokens.caller(good) == ANA
        assert issuer.reads == 1
        clock.pass_s(600)
        assert await tokens.caller(good) == ANA
        assert issuer.reads == 2
        issuer.document = jwks(jwk(EC, "e"))  # a key that was withdrawn is good no longer
        clock.pass_s(600)
        await refused(tokens, good)


async def test_an_unknown_key_id_fetches_the_new_keys_but_not_in_a_flood() -> None:
    async with issuing() as (issuer, tokens, clock):
        await tokens.caller(token(RSA, "RS256", "r"))
        issuer.document = jwks(jwk(RSA, "r"), jwk(OTHER_RSA, "new"))
        clock.pass_s(REFETCH_S)
        assert await tokens.caller(token(OTHER_RSA, "RS256", "new")) == ANA
        assert issuer.reads == 2
        for number in range(50):
            await refused(tokens, token(RSA, "RS256", f"made-up-{number}"))
        assert issuer.reads == 2
        clock.pass_s(REFETCH_S)
        await refused(tokens, token(RSA, "RS256", "made-up"))
        assert issuer.reads == 3


async def test_while_the_issuer_is_away_known_keys_stay_good() -> None:
    async with issuing() as (issuer, tokens, clock):
        issuer.status = 500
        for _ in range(2):
            with pytest.raises(Unavailable):
                await tokens.caller(token(RSA, "RS256", "r"))
        assert issuer.reads == 1
        issuer.status = 200
        clock.pass_s(5)
        assert await tokens.caller(token(RSA, "RS256", "r")) == ANA
        issuer.status = 302
        clock.pass_s(590 - 5)
        issuer.document = b"<html>"
        clock.pass_s(10)
        assert await tokens.caller(token(RSA, "RS256", "r")) == ANA
        assert issuer.reads >= 2
