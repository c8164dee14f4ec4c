"""Bearer tokens as an issuer signs them, and the set of keys that it publishes."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

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
    """A signed token with `CLAIMS`; a claim that is given replaces its own, None leaves it out."""
    payload = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None)
