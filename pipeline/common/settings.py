"""The settings of every process, read from the environment, with every fault at once.

A process reads all settings of the table (`read`), and gives each of its parts a frozen dataclass with the
part's own settings (`of`, `required`, `Values.make`). Nothing else reads the environment.

A secret may also stand in a file: with ``DATABASE_URL_FILE=/run/secrets/database_url`` the file has what
DATABASE_URL would have. Orchestrators hand secrets over as files, because an environment is easily shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pipeline.common import parsers
from pipeline.common.parsers import is_loopback, written
from pipeline.common.settings_table import SETTINGS, Setting
from pipeline.common.texts import cut
from pipeline.common.traces import forms

T = TypeVar("T")
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


class ConfigError(Exception):
    """The environment is not a valid configuration; ``faults`` lists every problem. Exit code 2."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def of(name: str) -> Any:
    """A field of a dataclass that is this setting, with the setting's default."""
    setting = _BY_NAME[name]
    default = None if setting.default is None else setting.parse(setting.default)
    return field(default=default, metadata={"setting": name}, repr=not setting.secret)


def required(name: str) -> Any:
    """The same without a default: whoever makes the dataclass must say the value."""
    return field(metadata={"setting": name}, repr=not _BY_NAME[name].secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Parsed settings by name, where each came from (``environment``, ``file`` or ``default``), and its text.

    ``texts`` holds secrets as they were given, or None where a setting has neither value nor default.
    """

    by_name: Mapping[str, Any] = field(repr=False)
    origins: Mapping[str, str]
    texts: Mapping[str, str | None] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def make(self, kind: type[T], /, **more: Any) -> T:
        """A dataclass of ``kind``: its fields that are settings from here, all others from ``more``."""
        declared = {one.name: one.metadata.get("setting") for one in fields(cast(Any, kind))}
        return kind(**{name: self.by_name[setting] for name, setting in declared.items() if setting} | more)

    def secrets(self) -> tuple[str, ...]:
        """Every text that must not be shown: the secret settings, the passwords in their URLs, and the values
        of headers."""
        found: list[str] = []
        for setting in SETTINGS:
            value, text = self.by_name[setting.name], self.texts[setting.name]
            if setting.secret and value is not None:
                texts = value if isinstance(value, tuple) else (value,)
                found += [text or "", *(part for one in texts for part in (str(one), *_passwords(str(one))))]
        for _, value in self.by_name["OTEL_EXPORTER_OTLP_HEADERS"] or ():
            found += [value, value.rpartition(" ")[2]]  # the token is in "Bearer …", too
        return tuple(one for one in found if one)


_MASKED_CHARS_MIN = 6
"""A shorter password is a word that other texts have too."""


def _passwords(url: str) -> list[str]:
    """The passwords of a URL, before the host and behind the ?, as they stand there and unquoted."""
    credentials, _, _ = url.partition("://")[2].rpartition("@")
    user, _, password = credentials.partition(":")
    found = {password}
    for parameter in url.partition("?")[2].split("&"):
        name, _, value = parameter.partition("=")
        if name == "password":
            found.add(value)
    return [
        text
        for text in found | {unquote(one) for one in found}
        if len(text) >= _MASKED_CHARS_MIN and text != unquote(user)
    ]


SECRET_BYTES_MAX: Final = 64 * 2**10
"""The longest secret in a file. A longer file is no secret: somebody named the wrong one."""


def without(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """``environment`` without these settings, and without the variables that name their files."""
    left_out = {*names} | {f"{name}_FILE" for name in names if name in _BY_NAME and _BY_NAME[name].secret}
    return {name: value for name, value in environment.items() if name not in left_out}


def read(
    environment: Mapping[str, str], *, required: Iterable[str] = (), sends_traces: bool = False
) -> Values:
    """Parse every setting; an empty variable counts as unset. Reads the files that `Setting.file_name` names.

    ``sends_traces`` True: it is a fault, too, if what exports traces is needed and not installed. Commands
    that send none need nothing of it: a migration runs where OTEL_EXPORTER_OTLP_ENDPOINT is set for all.

    Raises:
        ConfigError: with one line for each fault, the missing ``required`` ones among them.
    """
    by_name: dict[str, Any] = {}
    origins: dict[str, str] = {}
    texts: dict[str, str | None] = {}
    faults: list[str] = []
    required = set(required)
    for setting in SETTINGS:
        name = setting.name
        by_name[name] = None
        try:
            text, origins[name] = _given(setting, environment)
        except ValueError as error:
            text, origins[name] = None, "environment"
            texts[name] = None
            faults.append(str(error))
            continue
        texts[name] = text
        if text is None:
            if name in required:
                faults.append(f"{name} is not set: {setting.help}")
            continue
        shown = setting.file_name if origins[name] == "file" else name
        if not _is_utf8(text):
            faults.append(f"{shown} holds bytes that are no text in UTF-8")
            continue
        try:
            by_name[name] = setting.parse(text)
        except parsers.OutOfBounds as error:
            faults.append(f"{name}={text} {error}")
        except ValueError as error:
            faults.append(f"{shown}={'…' if setting.secret else repr(cut(text))}: {error}")
    present = {name for name, origin in origins.items() if origin != "default"}
    faults.extend(_contradictions(by_name, present))
    if sends_traces:
        faults.extend(forms.faults(by_name))
    if faults:
        raise ConfigError(faults)
    return Values(by_name=by_name, origins=origins, texts=texts)


def _given(setting: Setting, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The text of a setting, and where the text comes from. Raises ValueError with the whole fault."""
    given = environment.get(setting.name) or None
    path = environment.get(setting.file_name) or None if setting.file_name else None
    if path is not None and given is not None:
        raise ValueError(f"{setting.name} and {setting.file_name} are both set: remove one of them")
    if path is not None:
        return _content(path, f"{setting.file_name}={path!r}"), "file"
    return (setting.default, "default") if given is None else (given, "environment")


def _content(path: str, named: str) -> str:
    """The text in a file, without the newline at its end. Raises ValueError with the whole fault."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{named}: the file cannot be read: {why}") from None
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"{named}: the file has more than {SECRET_BYTES_MAX // 1024} KiB")
    text = re.sub(r"\r?\n\Z", "", content.decode(errors="surrogateescape"))
    if not text:
        raise ValueError(f"{named}: the file is empty")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _contradictions(values: Mapping[str, Any], given: Set[str]) -> list[str]:
    """What is wrong with settings beside each other. A value that is wrong by itself is given, and None."""
    faults = []
    fresh, stale = values["FRESH_LAG"], values["STALE_LAG"]
    if fresh is not None and stale is not None and fresh >= stale:
        faults.append(f"FRESH_LAG ({written(fresh)}) must be below STALE_LAG ({written(stale)})")
    if values["AUTH_MODE"] == "none":
        faults += [
            f"AUTH_MODE=none lets everybody read everything, so HTTP_HOST must be a loopback address,"
            f" not {host!r}; set AUTH_MODE=jwt, or gateway behind a proxy"
            for host in values["HTTP_HOST"] or ()
            if not is_loopback(host)
        ]
        faults += [
            f"AUTH_MODE=none answers no page from elsewhere, so CORS_ORIGINS must not name {origin};"
            " set AUTH_MODE=jwt, or gateway behind a proxy"
            for origin in values["CORS_ORIGINS"] or ()
            if not is_loopback(urlsplit(origin).hostname or "")
        ]
    faults.extend(_token_contradictions(values, given))
    faults.extend(_collector_contradictions(values))
    if (
        values["RETENTION_MINUTE"]
        and values["RETENTION_ROLLUP"]
        and values["RETENTION_MINUTE"] > values["RETENTION_ROLLUP"]
    ):
        faults.append("RETENTION_MINUTE must not be above RETENTION_ROLLUP")
    kept = values["RETENTION_ARCHIVE"], values["RETENTION_ROLLUP"]
    if values["ARCHIVE_URL"] and all(kept) and kept[0] < kept[1]:
        faults.append("RETENTION_ARCHIVE must not be below RETENTION_ROLLUP: reconcile needs the events")
    s3 = [
        name for name in ("S3_ENDPOINT", "S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY") if name not in given
    ]
    if len(s3) == 4 and (values["ARCHIVE_URL"] or "").startswith("s3://"):
        faults.append(f"ARCHIVE_URL is in an object store and needs its settings: {', '.join(s3)}")
    if 0 < len(s3) < 4:
        faults.append(f"the object store needs all of its settings or none; missing: {', '.join(s3)}")
    return faults


def _collector_contradictions(values: Mapping[str, Any]) -> list[str]:
    faults = []
    if values["AUTH_MODE"] == "none":
        faults += [
            f"AUTH_MODE=none lets everybody write events of every org, so COLLECTOR_HOST must be a loopback"
            f" address, not {host!r}; set AUTH_MODE=jwt, or gateway behind a proxy"
            for host in values["COLLECTOR_HOST"] or ()
            if not is_loopback(host)
        ]
    body, unpacked = values["COLLECTOR_BODY_BYTES_MAX"], values["COLLECTOR_UNPACKED_BYTES_MAX"]
    memory = values["COLLECTOR_MEMORY_MAX"]
    # One request holds its body beside what the body unpacks to, or that beside its events. One caller may
    # hold half of the memory.
    if body and unpacked and memory and memory < 2 * (max(body, unpacked) + unpacked):
        faults.append(
            "COLLECTOR_MEMORY_MAX must be at least twice COLLECTOR_UNPACKED_BYTES_MAX together with the"
            f" larger one of it and COLLECTOR_BODY_BYTES_MAX: {2 * (max(body, unpacked) + unpacked)} bytes"
        )
    return faults


def _token_contradictions(values: Mapping[str, Any], given: Set[str]) -> list[str]:
    if values["AUTH_MODE"] != "jwt":
        return []
    faults = [f"AUTH_MODE=jwt needs {name}" for name in ("JWT_ISSUER", "JWT_AUDIENCE") if name not in given]
    # One kind of key only: with two, a token could choose which of them it is checked with.
    sources = ("JWT_JWKS_URL", "JWT_JWKS_FILE", "JWT_SECRET")
    if sum(name in given for name in sources) != 1:
        faults.append(f"AUTH_MODE=jwt needs exactly one of {', '.join(sources)}")
    url = urlsplit(values["JWT_JWKS_URL"] or "https://")
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        faults.append("JWT_JWKS_URL must be https: whoever can answer in its place decides who may read")
    claim = values["JWT_ROLES_CLAIM"]
    if claim is not None and claim == values["JWT_ORGS_CLAIM"]:
        faults.append("JWT_ROLES_CLAIM and JWT_ORGS_CLAIM must not be the same claim")
    return faults
