"""Events of the contract in envelopes that the CloudEvents SDK makes; runs in the senders' environment.

Reads the events from stdin, a JSON array. Each is sent to ENDPOINT in structured mode, in binary mode and in
a batch. The SDK makes no batches, so a batch is an array of its structured bodies. CANARY is in attributes
that a sender may choose.
"""

from __future__ import annotations

import json
import os
import sys

import httpx
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

ENDPOINT, KEY, CANARY = (os.environ[name] for name in ("ENDPOINT", "KEY", "CANARY"))


def envelope(event: dict[str, object]) -> CloudEvent:
    attributes = {
        "id": event["eventId"],
        "source": "/router",
        "type": "analytics.usage.v1",
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "subject": CANARY,
        "prompt": CANARY,
    }
    return CloudEvent(attributes=attributes, data=event)


def post(body: bytes, **headers: str) -> None:
    answer = httpx.post(ENDPOINT, content=body, headers={**headers, "X-API-Key": KEY}, timeout=60)
    answer.raise_for_status()
    assert answer.json()["rejected"] == [], answer.text


events = [envelope(event) for event in json.load(sys.stdin)]
for make in (to_structured_event, to_binary_event):
    for event in events:
        message = make(event)
        post(message.body, **message.headers)
bodies = [to_structured_event(event).body for event in events]
post(b"[" + b",".join(bodies) + b"]", **{"Content-Type": "application/cloudevents-batch+json"})
