"""The doors: which path and content type is read by which dialect, and in which form the answer is.

A content type that a door does not know is refused before the body is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from aiohttp import web

from pipeline.collector.answers import Form
from pipeline.collector.dialects import Offered, contract, framing, litellm, otlp
from pipeline.common.problems import Problem

Read = Callable[[bytes, UUID | None, str, Mapping[str, str]], Iterator[Offered]]
"""Reads a body, given the org of an item that names none, the content type, and the headers of the
request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A path that takes bodies. ``dialect`` is its name in metrics."""

    path: str
    dialect: str
    content_types: tuple[str, ...]
    """The first one is taken for a request without a content type."""
    read: Read
    passes_over: bool = False
    """Has it items that are no events and no faults?"""
    speaks_otlp: bool = False

    def content_type(self, request: web.Request) -> str:
        """The content type of the request, without parameters. Raises `Problem` 415."""
        given = request.headers.get("Content-Type", "")
        kind, _, parameters = given.partition(";")
        kind = kind.strip().lower() or self.content_types[0]
        charset = _charset(parameters)
        if kind not in self.content_types or charset not in ("", "utf-8", "utf8", "us-ascii"):
            raise Problem(
                status=415,
                kind="unknown-content-type",
                detail=f"{self.path} takes {', '.join(self.content_types)}, in UTF-8.",
                headers={"Accept": ", ".join(self.content_types)},
            )
        return kind

    def form(self, request: web.Request) -> Form:
        """The form of the answer, also where the request is refused."""
        if not self.speaks_otlp:
            return "json"
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return "otlp-json" if kind == framing.JSON else "otlp-protobuf"


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _events(body: bytes, org: UUID | None, kind: str, headers: Mapping[str, str]) -> Iterator[Offered]:
    return contract.read(body, default_org=org, content_type=kind, headers=headers)


def _litellm(body: bytes, org: UUID | None, kind: str, _: Mapping[str, str]) -> Iterator[Offered]:
    return litellm.read(body, default_org=org, content_type=kind)


def _traces(body: bytes, org: UUID | None, kind: str, _: Mapping[str, str]) -> Iterator[Offered]:
    return otlp.read(body, default_org=org, content_type=kind)


DOORS: Final = (
    Door(
        path="/v1/events",
        dialect="events",
        content_types=contract.CONTENT_TYPES,
        read=_events,
    ),
    Door(
        path="/v1/litellm",
        dialect="litellm",
        content_types=litellm.CONTENT_TYPES,
        read=_litellm,
        passes_over=True,
    ),
    Door(
        path="/v1/traces",
        dialect="traces",
        content_types=otlp.CONTENT_TYPES,
        read=_traces,
        passes_over=True,
        speaks_otlp=True,
    ),
)
