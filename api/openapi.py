"""The OpenAPI document."""

from __future__ import annotations

import msgspec


def document_json() -> bytes:
    return msgspec.json.encode({"openapi": "3.1.0"})
