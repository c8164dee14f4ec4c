"""The bodies of requests that make or change a webhook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from api.asking.bodies import Body
from api.webhooks.addresses import fault_of
from api.webhooks.messages import FORMATS, STANDARD
from pipeline.common.texts import is_line, is_visible

NAME_CHARS_MAX: Final = 128
FIELDS: Final = ("name", "url", "format", "enabled")
ROTATE: Final = "rotateSecret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a webhook is to be. With ``rotate`` it gets a new secret beside the one that it has."""

    name: str
    url: str = field(repr=False)
    form: str
    enabled: bool
    rotate: bool

    @property
    def shown_url(self) -> str:
        """The address as answers, the database and the audit log have it: path and query may hold a token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/…"


def webhook(body: bytes, *, allow_private: bool, changes: bool) -> Order:
    """The order of a body, which ``changes`` a webhook or makes one. Raises `Problem` 400 with all faults."""
    reader = Body(body, (*FIELDS, *((ROTATE,) if changes else ())))
    name, url = reader.get("name"), reader.get("url")
    if not (is_line(name, NAME_CHARS_MAX) and is_visible(name)):
        reader.fault(
            "name", f"expected 1 to {NAME_CHARS_MAX} characters, not blank, without control characters"
        )
    fault = fault_of(url, allow_private=allow_private) if isinstance(url, str) else "expected a URL"
    if fault:
        reader.fault("url", fault)
    form = reader.choice("format", FORMATS, STANDARD)
    flags = {}
    for flag, default in (("enabled", True), (ROTATE, False)):
        flags[flag] = reader.get(flag) if reader.has(flag) else default
        if not isinstance(flags[flag], bool):
            reader.fault(flag, "expected true or false")
    reader.finish()
    return Order(name=str(name), url=str(url), form=form, enabled=flags["enabled"], rotate=flags[ROTATE])
