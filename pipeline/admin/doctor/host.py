"""The doctor's checks of this host: room on its disks, and the worker and API that may run here."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from pipeline.admin.doctor import callers
from pipeline.admin.doctor.finding import TIMEOUT_S, Finding, Level, first_line
from pipeline.common import settings, urls
from pipeline.common.traces import forms

_DISK_WARN_BYTES: Final = 5 * 2**30
_DISK_FAIL_BYTES: Final = 2**30
_PAGE_BYTES: Final = 10_000


def disk(values: settings.Values) -> Iterator[Finding]:
    """Check the disk of an embedded stream. The disks of a broker and a database cannot be seen from here."""
    url = urls.split(values["RABBITMQ_URL"])
    if url.scheme != "embedded":
        return
    folder = Path(unquote(url.path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free for the embedded stream in {folder}"
    remedy = "free some space, or lower STREAM_MAX_BYTES and STREAM_MAX_AGE"
    if not os.access(folder, os.W_OK):
        yield Finding(Level.FAIL, "disk", f"{folder} cannot be written", "check its owner and permissions")
    elif free < _DISK_FAIL_BYTES:
        yield Finding(Level.FAIL, "disk", detail, remedy)
    elif free < _DISK_WARN_BYTES:
        yield Finding(Level.WARN, "disk", detail, remedy)
    else:
        yield Finding(Level.OK, "disk", detail)


def traces(values: settings.Values) -> Iterator[Finding]:
    """Check that spans can be sent, if they are to be: a process that cannot send them does not start."""
    for fault in forms.faults(values.by_name):
        detail, _, remedy = fault.partition(": ")
        yield Finding(Level.FAIL, "traces", detail, remedy)


def worker(values: settings.Values) -> Iterator[Finding]:
    for host in values["METRICS_HOST"]:
        yield page("worker", host, values["METRICS_PORT"], "/readyz")


def api(values: settings.Values) -> Iterator[Finding]:
    yield from callers.proxies(values, "api")
    for host in values["HTTP_HOST"]:
        yield page("api", host, values["HTTP_PORT"], "/analytics/v1/status/readyz")


def page(name: str, host: str, port: int, path: str) -> Finding:
    """Ask a process for its readiness. A process that does not answer is a warning: it may run elsewhere.

    A process may be ready with a component that is not well. Example: a collector with a spool is ready while
    the stream is away. That is a warning too, because somebody has to mend the component.
    """
    if port == 0:
        return Finding(Level.OK, name, "listens on a port of its own choice: not looked for")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{urls.authority(host, port)}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            status, components = 200, _components(answer.read(_PAGE_BYTES))
    except urllib.error.HTTPError as error:
        status, components = error.code, _components(error.read(_PAGE_BYTES))
    except http.client.HTTPException as error:
        return _stranger(name, url, type(error).__name__)
    except (OSError, ValueError) as error:
        remedy = f"start it with `spendstream {name}`, unless it runs on another host"
        return Finding(
            Level.WARN,
            name,
            f"not reachable at {url}: {first_line(getattr(error, 'reason', error))}",
            remedy,
        )
    if components is None and status in (200, 404):
        return _stranger(name, url, str(status))
    unwell = ", ".join(
        f"{part} is {state}" for part, state in (components or {}).items() if state not in ("ok", "off")
    )
    if status == 200 and not unwell:
        return Finding(Level.OK, name, f"ready at {url}, whichever deployment that belongs to")
    state = "ready, but" if status == 200 else f"not ready: {status}"
    remedy = f"see what its log says; {url} has more on the component"
    return Finding(Level.WARN, name, f"{state} {unwell}".strip(), remedy)


def _stranger(name: str, url: str, answer: str) -> Finding:
    setting = {"worker": "METRICS_PORT", "api": "HTTP_PORT", "collector": "COLLECTOR_PORT"}[name]
    return Finding(
        Level.WARN,
        name,
        f"something else than the {name} listens at {url} (its answer: {answer})",
        f"set {setting} to a port of the {name}'s own; the {name} cannot listen where another process does",
    )


def _components(body: bytes) -> dict[str, str] | None:
    """The state of each component on a page of readiness; None: it is not such a page."""
    try:
        components: dict[str, Any] = json.loads(body)["components"]
        return {name: str(part["status"]) for name, part in components.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
