"""Ids for senders that have none: a name always becomes the same UUID.

An id that a sender has stays as it is. Otherwise it is made of a name, as a UUID of version 5 (RFC 9562,
SHA-1 of a namespace and the name). So a retry has the id of the first try and is a duplicate, and every
collector, every producer and every SQL query finds the same id. docs/ids.md publishes the namespaces, test
vectors and one-liners. The namespaces never change, because a change would count all retries again."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID, uuid5

EVENT_NAMESPACE: Final = UUID("7ad7a66f-a205-5b1e-ba70-85adc2c68ec4")
"""The UUIDv5 of ``event.spendstream.example`` in the namespace of DNS names."""
ORG_NAMESPACE: Final = UUID("af04824a-9e3b-54d2-8774-15716b6139d1")
"""The same of ``org.spendstream.example``."""
MODEL_NAMESPACE: Final = UUID("76f6b929-e295-5e93-9b42-94b2f28e64dd")
"""The same of ``model.spendstream.example``."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def uuid_of(text: str) -> UUID | None:
    """Read a UUID in its usual form of 36 characters. None: the text is no UUID."""
    return UUID(text) if _UUID.fullmatch(text) else None


def org_id(name: str) -> UUID:
    """The id of an org: a UUID stays, and a name becomes the UUIDv5 of exactly this name."""
    return uuid_of(name) or uuid5(ORG_NAMESPACE, name)


def model_id(provider: str, name: str) -> UUID:
    """The id of a model: the UUIDv5 of ``provider/name``. An unknown provider is ''."""
    return uuid5(MODEL_NAMESPACE, f"{provider}/{name}")


def event_id(org: UUID, dialect: str, source_id: str) -> UUID:
    """The id of an event: a UUID stays, and another id becomes the UUIDv5 of ``org/dialect/id``.

    Args:
        org: The event's org. Two orgs may use the same ids.
        dialect: What the id is called in: ``litellm``, ``otlp``, ``usage_record``.
        source_id: What the source calls the call.
    """
    return uuid_of(source_id) or uuid5(EVENT_NAMESPACE, f"{org}/{dialect}/{source_id}")
