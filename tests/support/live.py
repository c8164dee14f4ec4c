"""The live figures of an org, as a client of the event stream gets them, and as REST gives them."""

import http.client
import json
from datetime import datetime, timedelta
from typing import Any

from tests.support.api_facts import rfc3339
from tests.support.api_server import BASE, Client


class Events:
    """An open stream of server-sent events."""

    def __init__(self, server: Client, org: Any, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        self._connection.request("GET", f"{BASE}/orgs/{org}/live", headers=headers)
        self.answer = self._connection.getresponse()

    def next(self) -> tuple[str, str | None, Any]:
        """The next message: (event, id, data). The retry line at the start is skipped."""
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode()
            assert line, "the stream has ended"
            if line == "\n":
                if "data" in fields:
                    return fields["event"], fields.get("id"), json.loads(fields["data"])
                fields = {}
            else:
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value

    def until(self, event: str) -> tuple[str | None, Any]:
        """(id, data) of the next message of this kind."""
        while True:
            name, event_id, data = self.next()
            if name == event:
                return event_id, data

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


NOT_LIVE = ("costEstimateCents", "adjustments", "net")
"""What totals have and live figures have not."""


def check_equals_rest(server: Client, org: Any, data: Any) -> None:
    """Check that REST gives the same figures for every bucket of the message."""
    watermark = datetime.fromisoformat(data["watermark"])
    for name in ("minute", "hour", "day", "month"):
        shown = data[name]
        start = datetime.fromisoformat(shown["bucketStart"])
        end = {
            "minute": start + timedelta(minutes=1),
            "hour": start + timedelta(hours=1),
            "day": start + timedelta(days=1),
            "month": (start + timedelta(days=32)).replace(day=1),
        }[name]
        assert start <= watermark < end
        query = {"start": rfc3339(start), "end": rfc3339(end)}
        usage = server.ok(f"{BASE}/orgs/{org}/usage", query)
        reliability = server.ok(f"{BASE}/orgs/{org}/reliability", query)
        assert usage["freshness"]["watermark"] == data["watermark"]
        assert usage["freshness"]["countedThrough"] == data["countedThrough"]
        totals = usage["totals"]
        assert shown == {
            "bucketStart": rfc3339(start),
            "errors": sum(reliability["totals"]["errors"].values()),
            **{name: figure for name, figure in totals.items() if name not in NOT_LIVE},
        }
