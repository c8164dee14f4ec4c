"""Bearer tokens: JWTs signed by an issuer's keys (JWKS), or with one shared secret.

A token's ``sub`` names the caller. The settings say which claims have its roles and its orgs, because
providers put them in different places.

The token does not choose how it is checked. Each key is good for one algorithm only: the shared secret for
HS256, a key of the set for the algorithm of its type. So a token with ``alg=none`` is refused, and so is an
HS256 signature made with a public key. Times are compared with our clock.

The key set is read again when it is old. It is also read again when a token names a key that is not in it,
but then at most once in `REFETCH_S`, so that made-up key ids cannot make us flood the issuer. While the
issuer is away, the keys that we have stay good.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import msgspec

from pipeline.common import ids, problems
from pipeline.common.access.caller import SUBJECT_FORM, Caller, is_subject
from pipeline.common.access.config import TokenConfig
from pipeline.common.errors import Unavailable
from pipeline.common.parsers import written_claim

log = logging.getLogger(__name__)

REFETCH_S: Final = 30.0
_RETRY_S: Final = 5.0
_FETCH_TIMEOUT_S: Final = 0.6
_JWKS_BYTES_MAX: Final = 1 << 20
_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
_RSA_BITS_MIN: Final = 2048


class Tokens:
    """Turns tokens into callers."""

    def __init__(self, config: TokenConfig, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._clock = clock
        self._keys = KeySet(config, clock) if config.secret is None else None

    async def caller(self, token: str) -> Caller:
        """Who the token speaks for.

        Raises:
            Problem: 401, the token is not to be believed.
            Unavailable: the issuer's keys could not be read yet.
        """
        try:
            header = jwt.get_unverified_header(token)
            key, algorithm = await self._key(header)
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer,
                options={
                    "require": ["exp", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError:
            raise _refused("The token is meant for another audience.") from None
        except jwt.InvalidIssuerError:
            raise _refused("The token is of another issuer.") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"The token lacks the claim {error.claim}.") from None
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("The token is malformed, or its signature is not of a key known here.") from None
        self._check_times(claims)
        return _caller(claims, self._config)

    async def close(self) -> None:
        if self._keys:
            await self._keys.close()

    async def _key(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        algorithm = header.get("alg")
        if "crit" in header:  # an extension that must be understood, and we know none
            raise jwt.InvalidTokenError
        if self._keys is None:
            if algorithm != "HS256":
                raise jwt.InvalidAlgorithmError
            assert self._config.secret is not None
            return self._config.secret, "HS256"
        if algorithm not in _ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise jwt.InvalidTokenError
        key = await self._keys.find(kid, algorithm)
        return key.key, algorithm

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now, leeway_s = self._clock().timestamp(), self._config.leeway_s
        if now >= _instant(claims, "exp") + leeway_s:
            raise _refused("The token has expired.")
        if "nbf" in claims and now < _instant(claims, "nbf") - leeway_s:
            raise _refused("The token is not valid yet.")
        if "iat" in claims:
            _instant(claims, "iat")


def _instant(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    try:
        instant = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # JSON's integers have as many digits as they like
        instant = math.inf
    if not math.isfinite(instant):
        raise _refused(f"The token's claim {name} is not a time.")
    return instant


def _texts(claims: Mapping[str, Any], path: Sequence[str], kind: str) -> list[str]:
    """The texts of a list, or the words of a text, in the claim at this path; none if there is no such claim.

    OAuth's ``scope`` is such a text: words with blanks between them.
    """
    value: Any = claims
    for name in path:
        if not isinstance(value, dict):
            raise _unread(path, kind)
        if name not in value:
            return []
        value = value[name]
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _unread(path, kind)
    return value


def _caller(claims: Mapping[str, Any], config: TokenConfig) -> Caller:
    subject = claims["sub"]
    if not isinstance(subject, str) or not is_subject(subject.strip()):
        raise _refused(f"The token's claim sub must be {SUBJECT_FORM}.")
    roles = _texts(claims, config.roles_claim, "texts")
    try:
        orgs = frozenset(map(ids.uuid, _texts(claims, config.orgs_claim, "UUIDs")))
    except ValueError:
        raise _unread(config.orgs_claim, "UUIDs") from None
    return Caller(subject=subject.strip(), roles=frozenset(roles), orgs=orgs)


def _unread(path: Sequence[str], kind: str) -> problems.Problem:
    return _refused(f"The token's claim {written_claim(path)} must be a list of {kind}, or one text of them.")


def _refused(detail: str) -> problems.Problem:
    return problems.unauthenticated(detail, challenge='Bearer realm="spendstream", error="invalid_token"')


# --- the issuer's keys ---------------------------------------------------------------------------


class KeySet:
    """The usable keys of a JWKS, from a URL or a file."""

    def __init__(self, config: TokenConfig, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._clock = clock
        self._keys: list[jwt.PyJWK] = []
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """The key of that id. Without an id: the only key for the algorithm.

        Raises:
            jwt.InvalidKeyError: there is no such key, or there are several.
            Unavailable: the issuer's keys could not be read yet.
        """
        async with self._lock:
            await self._refresh_if(self._age(self._read_at) >= self._config.jwks_cache_s, _RETRY_S)
            found = self._matching(kid, algorithm)
            if not found and kid is not None:
                await self._refresh_if(True, REFETCH_S)
                found = self._matching(kid, algorithm)
        if self._read_at is None:
            raise Unavailable("The keys of the token issuer cannot be fetched.")
        if len(found) != 1:
            raise jwt.InvalidKeyError
        return found[0]

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    def _matching(self, kid: str | None, algorithm: str) -> list[jwt.PyJWK]:
        return [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and (kid is None or key.key_id == kid)
        ]

    def _age(self, at: float | None) -> float:
        return math.inf if at is None else self._clock().timestamp() - at

    async def _refresh_if(self, wanted: bool, pause_s: float) -> None:
        if not wanted or self._age(self._tried_at) < pause_s:
            return
        self._tried_at = self._clock().timestamp()
        try:
            keys = usable_keys(await self._read())
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
            log.warning("jwks_unavailable", extra={"error": str(error) or type(error).__name__})
            return
        self._keys, self._read_at = keys, self._tried_at
        log.info("jwks_read", extra={"keys": len(keys)})

    async def _read(self) -> bytes:
        if self._config.jwks_file is not None:
            return await asyncio.to_thread(Path(self._config.jwks_file).read_bytes)
        assert self._config.jwks_url is not None
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_FETCH_TIMEOUT_S))
        # No redirects: only the address that was configured is trusted to name keys.
        async with self._session.get(self._config.jwks_url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            body = bytearray()
            async for block in answer.content.iter_any():
                body += block
                if len(body) > _JWKS_BYTES_MAX:
                    raise ValueError(f"more than {_JWKS_BYTES_MAX} bytes")
        return bytes(body)


def usable_keys(document: bytes) -> list[jwt.PyJWK]:
    """The public keys in a JWKS that may sign tokens. Other keys are left out.

    Raises:
        ValueError: the document is not a JWKS, or has no such key.
    """
    try:
        listed = msgspec.json.decode(document, type=dict[str, Any])["keys"]
    except (msgspec.MsgspecError, KeyError):
        raise ValueError("not a JWKS") from None
    keys = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            key = jwt.PyJWK.from_dict(entry)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue
        bits = getattr(key.key, "key_size", _RSA_BITS_MIN) if key.key_type == "RSA" else _RSA_BITS_MIN
        if (
            key.algorithm_name in _ALGORITHMS
            and key.public_key_use in (None, "sig")
            and bits >= _RSA_BITS_MIN
        ):
            keys.append(key)
    if not keys:
        raise ValueError("no usable key in the JWKS")
    return keys
