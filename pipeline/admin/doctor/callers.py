"""The doctor's check of who decides on callers: with AUTH_MODE=gateway, headers of a proxy do."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.doctor.finding import Finding, Level
from pipeline.common import settings


def proxies(values: settings.Values, process: str) -> Iterator[Finding]:
    """Warn if whoever connects from this host is believed, and nobody has said that this is meant.

    Example: an nginx on this host ends TLS alone. It passes ``X-Actor-Roles: admin`` of any client on, and it
    connects from 127.0.0.1, so the client is an admin. Somebody who has set TRUSTED_PROXIES knows that.
    """
    if values["AUTH_MODE"] != "gateway" or values.origins["TRUSTED_PROXIES"] != "default":
        return
    yield Finding(
        Level.WARN,
        process,
        "AUTH_MODE=gateway believes X-Actor-Subject, X-Actor-Roles and X-Actor-Orgs of whatever connects from"
        " this host: a proxy here that only ends TLS passes them on, and makes any client an admin",
        "let the proxy set or delete these headers (docs/howto/authenticate.md), and then name it in"
        " TRUSTED_PROXIES, also if that is 127.0.0.1/32; without a gateway,"
        " AUTH_MODE=jwt believes no such header",
    )
