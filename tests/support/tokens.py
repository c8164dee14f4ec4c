"""Bearer tokens as an issuer signs them, the keys that an issuer publishes, and the check of a token."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pipeline.common.access.caller import Caller
from pipeline.common.access.config import TokenConfig
from pipeline.common.access.tokens import Tokens
from pipeline.common.problems import Problem

NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)
ORG = uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001")
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ISSUER, AUDIENCE = "https://issuer.test", "spendstream"
CLAIMS = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "ana",
    "exp": int(NOW.timestamp()) + 600,
    "orgs": [str(ORG)],
    "roles": ["analytics:usage:read"],
}
ANA = Caller(subject="ana", roles=frozenset(("analytics:usage:read",)), orgs=frozenset((ORG,)))
"""The caller of a token with `CLAIMS`."""
SECRET = "a shared secret of more than 32 characters"
HS = TokenConfig(issuer=ISSUER, audience=AUDIENCE, secret=SECRET)
"""A configuration under which tokens are signed with `SECRET`."""


def jwk(key: Any, kid: str | None, **more: str) -> dict[str, Any]:
    """The public half of a key, as an issuer publishes it."""
    kind = {"RSAPublicKey": jwt.algorithms.RSAAlgorithm, "EllipticCurvePublicKey": jwt.algorithms.ECAlgorithm}
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        algorithm: Any = kind["RSAPublicKey"]
    elif isinstance(public, ec.EllipticCurvePublicKey):
        algorithm = kind["EllipticCurvePublicKey"]
    else:
        algorithm = jwt.algorithms.OKPAlgorithm
    return {**algorithm.to_jwk(public, as_dict=True), **({"kid": kid} if kid else {}), **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    """The document of an issuer that publishes these keys."""
    return json.dumps({"keys": keys}).encode()


SET = jwks(jwk(RSA, "r"), jwk(EC, "e", use="sig"), jwk(ED, "d"))


def token(key: Any, algorithm: str, kid: str | None = None, **claims: Any) -> str:
    """A signed token with `CLAIMS`. A given claim replaces the claim of the same name; None leaves it out."""
    payload = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None)


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def tokens_of(config: TokenConfig, clock: Clock | None = None) -> Tokens:
    """A checker of tokens that reads the time from the clock."""
    return Tokens(config, clock or Clock())


async def refused(tokens: Tokens, text: str) -> str:
    """Check that a token is refused as invalid; returns the reason."""
    with pytest.raises(Problem) as caught:
        await tokens.caller(text)
    assert caught.value.status == 401
    assert "invalid_token" in caught.value.headers["WWW-Authenticate"]
    return caught.value.detail
