"""Parsers of settings: each takes a text and returns a value, or raises ValueError with the expected form.

The text of an error holds no part of the value, because the value may be a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from pipeline.common import urls
from pipeline.common.texts import is_line

_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """Seconds from ``500ms``, ``10s``, ``24h``, ``7d`` or a bare number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text.strip())
    if not match:
        raise ValueError("expected a duration such as 500ms, 10s, 5m, 24h or 7d")
    return float(match[1]) * _DURATION_UNITS_S[match[2] or "s"]


def written(seconds: float) -> str:
    """Write a duration as a person would set it: 3600 is ``1h``, 0.05 is ``50ms``."""
    for unit, length in reversed(_DURATION_UNITS_S.items()):
        count = round(seconds / length)
        if count and abs(count * length - seconds) < 1e-9 * seconds:
            return f"{count}{unit}"
    return f"{seconds:g}s"


_SIZE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size_bytes(text: str) -> int:
    """Bytes from ``65536``, ``64KiB`` or ``20GB``. Units are binary in both spellings."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError("expected a size such as 64KiB, 512MiB or 20GiB")
    return int(match[1]) * _SIZE_UNITS[match[2].lower()]


def not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text.strip()


def port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise ValueError("expected a port from 0 to 65535")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ValueError("expected a whole number above 0")
    return int(text)


def whole(text: str) -> int:
    if not text.isdigit():
        raise ValueError("expected a whole number")
    return int(text)


def url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            number = parts.port
        except ValueError:  # its message may quote a part of the password
            raise ValueError("not a URL; escape / ? # [ ] @ in a password as %2F and so on") from None
        if number == 0:
            raise ValueError("expected a port from 1 to 65535")
        if parts.scheme not in schemes:
            raise ValueError(f"expected a URL with {' or '.join(s + '://' for s in schemes)}")
        return text

    return parse


def page_url(text: str) -> str:
    """The address of a server of ours, perhaps below a path of a proxy. Credentials do not belong in it."""
    parts = urlsplit(url("http", "https")(text))
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("expected a URL of a host and perhaps a path, such as https://api.example.com")
    return text.rstrip("/")


def hosts_url(*schemes: str) -> Callable[[str], str]:
    """A parser of URLs with one or several hosts, of which libpq takes the first that fits."""
    one_host = url(*schemes)

    def parse(text: str) -> str:
        try:
            parts = urls.split(text)
        except ValueError:
            return one_host(text)  # raises with the reason
        user, at, hosts = parts.netloc.rpartition("@")
        for host in hosts.split(","):
            one_host(parts._replace(netloc=f"{user}{at}{host}").geturl())
        return text

    return parse


def database_url(text: str) -> str:
    hosts_url("postgresql", "postgres")(text)
    # The imports are here, because help, completion and the embedded log need no driver.
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(text)
    except ProgrammingError:  # its message may quote the password
        raise ValueError(
            "libpq does not read it; write a % in a name or password as %25, and behind the ? only parameters"
            " of libpq such as sslmode=require"
        ) from None
    return text


_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_REDIS_PARAMETERS: Final = frozenset({"db", "username", "password", "protocol", *_TLS})


def redis_url(text: str) -> str:
    url("redis", "rediss", "unix")(text)
    parameters = dict(parse_qsl(urlsplit(text).query, keep_blank_values=True))
    if parameters.keys() - _REDIS_PARAMETERS:
        known = ", ".join(sorted(_REDIS_PARAMETERS))
        raise ValueError(f"behind the ? may stand {known}; escape a ? in a password as %3F")
    if not parameters.get("db", "0").isdigit():
        raise ValueError("expected a number as db")
    return text


def stream_url(text: str) -> str:
    """The URL of one or several RabbitMQ nodes, each with its own host, or of an embedded log's folder."""
    hosts_url("rabbitmq-stream", "rabbitmq-stream+tls", "embedded")(text)
    parts = urls.split(text)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if parts.scheme != "embedded" and not all(urlsplit(f"//{host}").hostname for host in hosts):
        raise ValueError("expected a host in it, or several with commas between them")
    return text


def archive_url(text: str) -> str:
    parts = urlsplit(text)
    folder = parts.scheme == "file" and not parts.netloc and parts.path.strip("/")
    bucket = parts.scheme == "s3" and parts.netloc
    if not (folder or bucket) or parts.query or parts.fragment:
        raise ValueError("expected s3://bucket/prefix or file:///folder")
    return text.rstrip("/")


def folder(text: str) -> Path:
    if not os.path.isabs(text) or not os.access(text, os.W_OK | os.X_OK) or not os.path.isdir(text):
        raise ValueError("expected the absolute path of a folder that exists and can be written")
    return Path(text)


def own_folder(text: str) -> Path:
    """A folder that a process makes if it is missing."""
    if not os.path.isabs(text) or (os.path.exists(text) and not os.path.isdir(text)):
        raise ValueError("expected the absolute path of a folder, which is made if it is missing")
    return Path(text)


def choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return text.lower()

    return parse


def flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def secret(characters_min: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) < characters_min:
            raise ValueError(f"expected at least {characters_min} characters")
        return text

    return parse


def secrets_of(characters_min: int) -> Callable[[str], tuple[str, ...]]:
    """The parser of one or more secrets with commas between them, each of at least so many characters."""
    one = secret(characters_min)
    return lambda text: tuple(one(part.strip()) for part in text.split(","))


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks in CIDR form, separated by commas."""
    return tuple(ip_network(part) for part in (one.strip() for one in text.split(",")) if part)


_CLAIM_CHARS_MAX: Final = 200


def claim(text: str) -> tuple[str, ...]:
    """The path of a claim in a token: its name, or names from the outermost to its own, with dots between.

    A URL is one name as it stands, with all its dots, because providers name claims of their own by URLs. In
    another name a dot has a backslash before it, and a backslash has one too. A text with a backslash is
    divided at every other dot, even if it has a URL: ``https\\://host/claims.orgs`` are two names.
    """
    text = text.strip()
    if "://" in text and "\\" not in text:
        names = [text]
    else:
        names = [""]
        escaped = False
        for character in text:
            if escaped and character not in ".\\:":
                break
            if character == "\\" and not escaped:
                escaped = True
                continue
            if character == "." and not escaped:
                names.append("")
            else:
                names[-1] += character
            escaped = False
        if escaped:
            raise ValueError("expected a dot, a colon or a backslash after each backslash")
    if not all(is_line(name, _CLAIM_CHARS_MAX) for name in names):
        raise ValueError("expected a claim such as roles, or names with dots between: realm_access.roles")
    return tuple(names)


def written_claim(path: Sequence[str]) -> str:
    """Write the path of a claim as an operator would set it."""
    if len(path) == 1 and "://" in path[0] and "\\" not in path[0]:
        return path[0]
    text = ".".join(name.replace("\\", r"\\").replace(".", r"\.") for name in path)
    return text if "\\" in text else text.replace("://", r"\://")


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, separated by commas, each exactly as a browser sends it. None is fine."""
    found = tuple(part for part in (one.strip() for one in text.split(",")) if part)
    if not all(_is_origin(one) for one in found):
        raise ValueError(
            "expected origins as browsers send them, such as https://app.example.com or http://localhost:3000:"
            " no *, no path, no capitals, no default port"
        )
    return tuple(dict.fromkeys(found))


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.scheme not in _DEFAULT_PORTS or port == _DEFAULT_PORTS[parts.scheme]:
        return False
    if ":" in host:
        try:
            host = f"[{IPv6Address(host)}]"
        except ValueError:
            return False
    elif not re.fullmatch(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", host):
        return False
    return text == f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"


def hosts(text: str) -> tuple[str, ...]:
    """The addresses or host names at which a server listens, separated by commas."""
    found = tuple(one.strip() for one in text.split(","))
    name = re.compile(r"[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*")
    if not all(_is_address(one) or name.fullmatch(one) for one in found):
        raise ValueError("expected addresses or host names without ports, such as 127.0.0.1,::1")
    return tuple(dict.fromkeys(found))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def boundaries(text: str) -> tuple[int, ...]:
    """Up to 8 numbers of tokens, ascending, separated by commas. None is fine."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not re.fullmatch(r"[1-9][0-9]{0,11}", part) for part in parts):
        raise ValueError("expected numbers of tokens such as 128000,200000, each from 1 to 999999999999")
    numbers = tuple(map(int, parts))
    if list(numbers) != sorted(set(numbers)) or len(numbers) > 8:
        raise ValueError("expected at most 8 numbers, each larger than the one before")
    return numbers


class OutOfBounds(ValueError):
    """A value outside its bounds. The text continues a sentence that has named the setting and its value."""


def _beside(value: float, minimum: float) -> str:
    return "too short" if value < minimum else "too long"


def span(minimum_s: float, maximum_s: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = duration_s(text)
        if not minimum_s <= value <= maximum_s:
            # A bare number counts as seconds. A number that does not fit was probably meant in another unit,
            # so the text repeats it with its unit.
            size = f"{text.strip()} s" if text.strip()[-1].isdigit() else _beside(value, minimum_s)
            bounds = f"at least {written(minimum_s)}, at most {written(maximum_s)}"
            raise OutOfBounds(f"is {size}; {bounds}")
        return value

    return parse


def sized(minimum_bytes: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = size_bytes(text)
        if value < minimum_bytes:
            raise ValueError(f"must be at least {minimum_bytes // 2**20} MiB")
        return value

    return parse


def whole_seconds(minimum_s: int, maximum_s: int) -> Callable[[str], int]:
    seconds = span(minimum_s, maximum_s)

    def parse(text: str) -> int:
        value = seconds(text)
        if value != int(value):
            raise ValueError("expected whole seconds")
        return int(value)

    return parse


def is_loopback(host: str) -> bool:
    """Can only this machine reach this host name or address?"""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
