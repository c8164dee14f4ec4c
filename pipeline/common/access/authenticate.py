"""Authentication: who sent a request, by the credential that the request carries.

``AUTH_MODE`` says which credential is believed: none is asked for, the headers of a gateway, or a bearer
token. In every mode but none an API key is believed too. A request carries one credential, because two could
name two callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from pipeline.common import ids, problems
from pipeline.common.access.caller import ADMIN, SUBJECT_FORM, Caller, is_subject
from pipeline.common.access.config import AuthConfig
from pipeline.common.access.keys import Keys
from pipeline.common.access.tokens import Tokens
from pipeline.common.parsers import is_loopback


class Authenticator(Protocol):
    async def __call__(self, request: web.Request) -> Caller:
        """Who sent the request.

        Raises:
            Problem: 401, the credential is missing or not to be believed.
            Unavailable: it cannot be found out now who sent the request.
        """


def authenticator(config: AuthConfig, *, keys: Keys | None, tokens: Tokens | None) -> Authenticator:
    """The authenticator of the configured AUTH_MODE; mode jwt needs ``tokens``."""
    if config.mode == "none":
        return _nobody_asked
    mode = _Gateway(config) if config.mode == "gateway" else _Bearer(tokens)
    return _OneCredential(mode, keys, keys_off="DATABASE_URL" if config.key_secret else "API_KEY_SECRET")


async def _nobody_asked(request: web.Request) -> Caller:
    """Whoever can reach loopback is an admin; but no page of the web in a browser on this machine.

    Such a page is betrayed by its Origin, or by a Host that is a name of its own which leads here.
    """
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    for url in (None if host is None else f"//{host}", origin):
        if url is not None and not _is_here(url):
            raise problems.Problem(
                status=403,
                detail="AUTH_MODE=none answers only what asks for localhost or a loopback address, and no"
                " page from elsewhere; set AUTH_MODE=jwt or gateway to be reached in another way.",
            )
    return Caller(subject="local", roles=frozenset((ADMIN,)), orgs=None)


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


class _Mode(Protocol):
    @property
    def challenge(self) -> str: ...

    def attempted(self, request: web.Request) -> bool:
        """Does the request carry this credential?"""

    async def __call__(self, request: web.Request) -> Caller: ...


class _OneCredential:
    """Takes an API key or the mode's own credential, never both."""

    def __init__(self, mode: _Mode, keys: Keys | None, *, keys_off: str) -> None:
        """``keys_off`` is the setting that is missing where ``keys`` is None."""
        self._mode = mode
        self._keys = keys
        self._keys_off = keys_off

    async def __call__(self, request: web.Request) -> Caller:
        given = request.headers.getall("X-API-Key", [])
        if not given:
            return await self._mode(request)
        if len(given) > 1 or self._mode.attempted(request):
            raise problems.unauthenticated("Send one credential, once.", challenge=self._mode.challenge)
        if self._keys is None:
            raise problems.unauthenticated(
                f"API keys are not in use here ({self._keys_off} is not set).", challenge=self._mode.challenge
            )
        return await self._keys.caller(given[0])


class _Bearer:
    challenge: Final = 'Bearer realm="spendstream"'

    def __init__(self, tokens: Tokens | None) -> None:
        assert tokens is not None
        self._tokens = tokens

    def attempted(self, request: web.Request) -> bool:
        return "Authorization" in request.headers

    async def __call__(self, request: web.Request) -> Caller:
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token.strip():
            raise problems.unauthenticated(
                "Send one Authorization header with a bearer token, or an X-API-Key.",
                challenge=self.challenge,
            )
        return await self._tokens.caller(token.strip())


class _Gateway:
    """Believes a trusted proxy's X-Actor-Subject, X-Actor-Roles and X-Actor-Orgs (comma separated).

    The gateway sends each of the three headers exactly once, with an empty value where there is nothing to
    say. A caller could send headers of the same names, and some proxies pass them on beside their own. So two
    headers of one name are no credential. Names are compared as loosely as any server on the way might
    compare them, ``_`` as ``-``: X_Actor_Roles counts as a second X-Actor-Roles.
    """

    challenge: Final = problems.GATEWAY_CHALLENGE

    def __init__(self, config: AuthConfig) -> None:
        self._trusted = config.trusted_proxies

    def attempted(self, request: web.Request) -> bool:
        return any(True for _ in _actor_lines(request))

    async def __call__(self, request: web.Request) -> Caller:
        if not self._is_trusted(request):
            raise problems.unauthenticated("This server takes requests from its gateway only.")
        lines = list(_actor_lines(request))
        if sorted(name.lower() for name, _ in lines) != _ACTOR_HEADERS:
            raise problems.unauthenticated(
                "The gateway must send X-Actor-Subject, X-Actor-Roles and X-Actor-Orgs, each exactly once."
            )
        actor = {name.lower(): value.strip() for name, value in lines}
        subject = actor["x-actor-subject"]
        if not is_subject(subject):
            raise problems.unauthenticated(f"X-Actor-Subject must be {SUBJECT_FORM}, in UTF-8.")
        try:
            orgs = frozenset(ids.uuid(org) for org in _listed(actor["x-actor-orgs"]))
        except ValueError:
            raise problems.unauthenticated("X-Actor-Orgs must be UUIDs, separated by commas.") from None
        return Caller(subject=subject, roles=frozenset(_listed(actor["x-actor-roles"])), orgs=orgs)

    def _is_trusted(self, request: web.Request) -> bool:
        return _within(_peer(request), self._trusted)


Networks = Sequence[IPv4Network | IPv6Network]


def address_of(request: web.Request, trusted: Networks) -> str:
    """The address to count a request by.

    Behind ``trusted`` proxies this is the address that the outermost of them saw. An IPv6 address is counted
    as its /64 network, because one host can choose any address of its network.
    """
    address = _peer(request)
    seen = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while seen and _within(address, trusted):
        found = _address(seen.pop().strip())
        if found is None:
            break
        address = found
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def _peer(request: web.Request) -> IPv4Address | IPv6Address | None:
    # The peer of the connection itself: request.remote may be rewritten, and the headers are in doubt.
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return _address(peer[0].partition("%")[0]) if isinstance(peer, tuple) else None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _within(address: IPv4Address | IPv6Address | None, networks: Networks) -> bool:
    return address is not None and any(address in network for network in networks)


_ACTOR_HEADERS: Final = ["x-actor-orgs", "x-actor-roles", "x-actor-subject"]


def _actor_lines(request: web.Request) -> Iterator[tuple[str, str]]:
    """Each header that some server might read as an X-Actor-* header."""
    return (
        line for line in request.headers.items() if line[0].lower().replace("_", "-").startswith("x-actor-")
    )


def _listed(line: str) -> Iterable[str]:
    return filter(None, (word.strip() for word in line.split(",")))
