"""Which addresses a webhook may lead to: those of the public internet, unless an operator allows others.

Anybody who may make webhooks could otherwise have our servers call what only they can reach: a database, the
metadata service of a cloud, a page on loopback. A name is resolved once, its addresses are checked, and the
connection goes to one of the checked addresses. So a name that resolves differently a moment later changes
nothing. An IPv6 address that holds one of IPv4 is as private as that one.

An address that can never work is refused when somebody asks for the webhook, not at each attempt.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

URL_CHARS_MAX: Final = 2000
URL: Final = (
    r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
    r"([/?]([A-Za-z0-9\-._~:/?@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)?$"
)
"""What the text of an address looks like: without user, password and fragment."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_UNICAST: Final = IPv6Network("2000::/3")
"""What is given out of IPv6. The local prefix of NAT64 (64:ff9b:1::/48) is not in it."""
_NEVER6: Final = (
    IPv6Network("2002::/16"),  # 6to4: a relay would unpack an address that we cannot judge
    IPv6Network("2001::/23"),  # protocols, and Teredo, which has relays, too
    IPv6Network("3fff::/20"),  # for documents, since RFC 9637
)
_NEVER4: Final = (
    IPv4Network("192.0.0.0/24"),  # protocols, and the metadata service of Oracle's cloud
    IPv4Network("192.88.99.0/24"),  # the relays of 6to4
    IPv4Network("168.63.129.16/32"),  # Azure's own services, which each machine there can reach
)
_HOST_CHARS_MAX: Final = 253
_LABEL_CHARS_MAX: Final = 63
_LOCAL_NAMES: Final = ("localhost", "local", "invalid")
"""The last labels of names that no public name server knows."""
_NUMBER: Final = r"[0-9]+|0[xX][0-9A-Fa-f]*"


def is_public(address: str) -> bool:
    """May anybody on the internet reach this address?"""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv4Address):
        return _is_public4(found)
    inner = _inner(found)
    if inner is not None:
        return _is_public4(inner)
    return found in _UNICAST and found.is_global and not any(found in network for network in _NEVER6)


def _is_public4(address: IPv4Address) -> bool:
    never = address.is_multicast or address.is_reserved or any(address in network for network in _NEVER4)
    return address.is_global and not never


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an address of IPv6 stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def fault_of(url: str, *, allow_private: bool) -> str | None:
    """What is wrong with the address of a webhook; None if nothing is."""
    schemes = ("https", "http") if allow_private else ("https",)
    if len(url) > URL_CHARS_MAX or not re.fullmatch(URL, url, re.ASCII) or "\n" in url:
        return (
            f"expected a URL such as {schemes[0]}://example.com/hook of at most {URL_CHARS_MAX} characters,"
            " without user, password and fragment"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "expected a URL"
    if parts.scheme not in schemes or not host:
        return f"expected a URL such as {schemes[0]}://example.com/hook"
    if port == 0:
        return "has port 0, which nobody can call"
    if is_literal(host):
        return None if allow_private or is_public(host) else "leads to a private address"
    return _fault_of_name(host, allow_private=allow_private)


def _fault_of_name(host: str, *, allow_private: bool) -> str | None:
    """What is wrong with the host of a URL that is no address."""
    labels = host.removesuffix(".").split(".")
    if re.fullmatch(_NUMBER, labels[-1]):
        return "has a number as its host: write an address of IPv4 as four numbers, such as 203.0.113.7"
    if (
        ":" in host
        or len(host) > _HOST_CHARS_MAX
        or not all(0 < len(one) <= _LABEL_CHARS_MAX for one in labels)
    ):
        return "has a host that is no name: parts of 1 to 63 characters with full stops between them"
    if not allow_private and (len(labels) == 1 or labels[-1].lower() in _LOCAL_NAMES):
        return "has a host that is not known on the internet"
    return None


def is_literal(host: str) -> bool:
    """Is the host of a URL an address rather than a name?"""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
