"""``spendstream demo``: runs every part of the service on this machine until it is told to stop.

The module owns the order of the starts: an embedded PostgreSQL, the schema, the worker, the API, the alerts
and the collector, then the simulator on an embedded stream log. The stops come in another order: see
`_Parts.stop`. These are the same processes that ``spendstream worker``, ``api``, ``alerts``, ``collector``
and ``simulate`` start everywhere. All state is in one folder, so a second start goes on with the same
figures. Once events come, budgets are set, and a receiver in this process says what their webhook is sent.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pipeline.common import folder_lock, parsers, private, settings
from pipeline.common.operator import OperatorError
from pipeline.common.settings_table import SETTINGS
from pipeline.demo import rest, shown
from pipeline.demo.budgets import Setting
from pipeline.demo.local_postgres import LocalPostgres, LocalPostgresError
from pipeline.demo.receiver import Receiver
from pipeline.demo.rest import BASE
from pipeline.processes import child

_READY_S: Final = 180.0
"""The first start compiles the worker's kernels, which takes a slow machine a minute."""
_STOP_S: Final = 40.0
_FIGURES_S: Final = 2.0
_POLL_S: Final = 0.1

_TROUBLE: Final = ("--duplicates", "0.02", "--late", "0.01", "--bad", "0.002")
"""Shares of bad traffic as in the field, so that there are duplicates and dead letters to look at."""

_LEFT_OUT: Final = ("API_KEY_SECRET", "REDIS_URL", "TRUSTED_PROXIES", "DEDUPE_FOLDER")
_LEFT_OUT_GROUPS: Final = ("S3_", "RABBITMQ_", "EXPORT_", "ARCHIVE_", "JWT_")
"""Settings that name other servers, folders and callers than the demo's."""
_PASSED_ON: Final = ("DAY_ZONES", "COLLECTOR_SPOOL", "COLLECTOR_SPOOL_BYTES_MAX")
"""Settings of ours that commands in another terminal need, too."""
_COLLECTOR_PORT: Final = 8086

_OWN_ORG: Final = "00000000-0000-4000-8000-0000000000aa"
"""The org of the event that the demo's reader sends."""

Echo = Callable[[str], None]


class DemoError(OperatorError):
    """The demo cannot go on. The message says why, with the end of the log of the part that failed."""


class _Stopped(Exception):
    """A signal came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The options of a demo. ``port`` 0 takes a free port. ``duration_s`` None: run until a signal."""

    rate: float
    orgs: int
    duration_s: float | None
    data_dir: Path
    port: int


def default_data_dir() -> Path:
    """The folder of the demo's data. For root it is a folder that PostgreSQL's account can reach too."""
    if os.geteuid() == 0:
        return Path("/var/lib/spendstream/demo")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "spendstream" / "demo"


def run(demo: Demo, *, echo: Echo) -> None:
    """Run the demo until the end of its duration, or until SIGINT or SIGTERM.

    Raises:
        DemoError: a part could not start, or it died. All other parts have been stopped.
        OSError: the data folder cannot be used.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    data_dir = demo.data_dir.expanduser().resolve()
    # As root the data folder itself stays open, because PostgreSQL's account must reach its own folder in it.
    if os.geteuid() == 0:
        data_dir.mkdir(parents=True, exist_ok=True)
    for name in ("logs", "stream", "exports", "archive"):
        private.make_folder(data_dir / name, below=data_dir if os.geteuid() == 0 else data_dir.parent)
    with _sole_user(data_dir):
        parts = _Parts(demo, data_dir, stopped=lambda: bool(signals), echo=echo)
        try:
            parts.start()
            parts.watch()
        except _Stopped:
            pass
        except LocalPostgresError as error:
            raise DemoError(str(error)) from None
        finally:
            parts.stop()


@contextmanager
def _sole_user(data_dir: Path) -> Iterator[None]:
    """Lock the folder, so that no two demos run two databases on the same files."""
    try:
        fd = folder_lock.taken(data_dir)
    except BlockingIOError:
        raise DemoError(f"another demo is running on {data_dir}: stop it, or choose a --data-dir") from None
    try:
        yield
    finally:
        os.close(fd)


class _Parts:
    """The processes, in the order of their start."""

    def __init__(self, demo: Demo, data_dir: Path, *, stopped: Callable[[], bool], echo: Echo) -> None:
        self._demo = demo
        self._stopped = stopped
        self._echo = echo
        self._logs = data_dir / "logs"
        self._data_dir = data_dir
        self._postgres = LocalPostgres(data_dir / "postgres", log=self._logs / "postgres.log")
        self._running: dict[str, child.Child] = {}
        with ExitStack() as held:
            self._port = _free_port(held, demo.port)
            self._worker_port = _free_port(held, 0)
            self._alerts_port = _free_port(held, 0)
            self._collector_port = _collector_port(held, demo.port)
        self._collector = f"http://127.0.0.1:{self._collector_port}"
        self._page = f"http://127.0.0.1:{self._port}/"
        self._api = f"http://127.0.0.1:{self._port}{BASE}"
        self._receiver: Receiver | None = None
        self._setting: Setting | None = None

    def start(self) -> None:
        self._echo(f"page {self._page} (opens once the API is up, which is said below)")
        self._echo(f"data in {self._data_dir}")
        self._postgres.start()
        self._echo("PostgreSQL is up")
        self._migrate()
        self._fill_book()
        environment = self._environment()
        self._echo(
            "starting worker, API, alerts and collector; the first start on a machine compiles their loops,"
            " once, which takes half a minute or more"
        )
        self._start("worker", environment)
        self._start("api", environment)
        self._start("alerts", environment)
        self._start("collector", environment)
        self._until_answers("api", f"{self._api}/status/readyz")
        self._until_answers("worker", f"http://127.0.0.1:{self._worker_port}/readyz")
        self._until_answers("alerts", f"http://127.0.0.1:{self._alerts_port}/readyz")
        self._until_answers("collector", f"{self._collector}/status/readyz")
        self._echo(
            f"API, worker, alerts and collector are up; publishing {self._demo.rate:g} events/s of"
            f" {self._demo.orgs} orgs"
        )
        traffic = ("--rate", f"{self._demo.rate}", "--orgs", str(self._demo.orgs))
        self._start("simulate", environment, *traffic, *_TROUBLE)
        org_id = self._until_seen()
        self._show_addresses(org_id)
        self._receiver = Receiver(lambda line: self._say(f"webhook  {line}"))
        self._setting = Setting(self._api, org_id, self._receiver)

    def watch(self) -> None:
        """Print a line of figures every two seconds, until a signal or the end of the duration."""
        started_s = time.monotonic()
        shown, events_before = 0, None
        while self._demo.duration_s is None or time.monotonic() < started_s + self._demo.duration_s:
            self._check()
            if time.monotonic() >= started_s + shown * _FIGURES_S:
                shown = int((time.monotonic() - started_s) / _FIGURES_S) + 1
                events_before = self._show_figures(events_before)
                self._set_budgets()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop the senders, the worker (which flushes), alerts, API and the database. Never raises."""
        if self._running:
            self._echo("stopping simulator, collector, worker, alerts, API and PostgreSQL")
        # Without a database the worker cannot flush and need not be waited for. Its events are in the stream.
        timeout_s = _STOP_S if self._postgres.exit_code() is None else 2.0
        for name in ("simulate", "collector", "worker", "alerts", "api"):
            process = self._running.pop(name, None)
            if process is not None and process.stop(timeout_s=timeout_s) < 0:
                self._echo(f"{name} was killed: see {self._log(name)}")
        if self._receiver is not None:
            self._receiver.close()
        self._postgres.stop()
        self._echo(f"stopped; the next start goes on with the data in {self._data_dir}")

    # --- starting ---------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """Our environment, without settings that name other servers and folders. Those are said."""
        ours = self._settings()
        left_out = [
            setting.name
            for setting in SETTINGS
            if setting.is_given(os.environ)
            and (
                setting.name in _LEFT_OUT
                or setting.name.startswith(_LEFT_OUT_GROUPS)
                or ours.get(setting.name, os.environ.get(setting.name)) != os.environ.get(setting.name)
            )
        ]
        if left_out:
            self._echo(f"the demo has these settings of its own and leaves yours out: {', '.join(left_out)}")
        return {"STREAM_MAX_BYTES": "2GiB", **settings.without(os.environ, left_out), **ours}

    def _settings(self) -> dict[str, str]:
        """The settings with which a command works on this demo."""
        return {
            "DATABASE_URL": self._postgres.url,
            "RABBITMQ_URL": f"embedded://{quote(str(self._data_dir / 'stream'))}",
            "AUTH_MODE": "none",
            "API_ALLOW_PRIVILEGED": "true",
            "ARCHIVE_URL": f"file://{quote(str(self._data_dir / 'archive'))}",
            "DIMENSIONS": "team=metadata.team,feature=metadata.feature",
            "EXPORT_DIR": str(self._data_dir / "exports"),
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self._port),
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": str(self._worker_port),
            "ALERTS_METRICS_PORT": str(self._alerts_port),
            "WEBHOOK_KEY": self._webhook_key(),
            "WEBHOOK_ALLOW_PRIVATE": "true",
            "COLLECTOR_HOST": "127.0.0.1",
            "COLLECTOR_PORT": str(self._collector_port),
        }

    def _webhook_key(self) -> str:
        """The key of the webhooks' secrets: made once, and kept beside the data."""
        path = self._data_dir / "webhook.key"
        if not path.exists():
            with open(path, "w", opener=private.opener) as file:
                file.write(secrets.token_hex(32))
        return path.read_text()

    def _write_settings(self, org_id: str) -> Path:
        """Write a file that gives another terminal the demo's settings and an org to ask for."""
        path = self._data_dir / "settings.sh"
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        worker = {"WORKER": str(self._running["worker"].pid)}
        places = {"API": self._api, "COLLECTOR": self._collector, "ORG": org_id}
        places["SPENDSTREAM_API_URL"] = self._api.removesuffix(BASE)
        values = self._settings() | passed_on | worker | places
        with open(path, "w", opener=private.opener) as file:
            file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
        return path

    def _migrate(self) -> None:
        from sqlalchemy.exc import DBAPIError

        from sql import migrate

        try:
            migrate.upgrade(self._postgres.url)
        except DBAPIError as error:
            raise DemoError(f"the schema cannot be made: {error.orig}") from None

    def _fill_book(self) -> None:
        """Import public prices into a new book, as ``spendstream prices import`` does.

        A book that has a row stays as its user left it: prices that somebody has retracted must not come
        back, nor the cost of past calls change, because the demo was started again.
        """
        from pipeline.prices import book, genai
        from pipeline.prices.source import SourceMissing

        with book.connected(self._postgres.url) as connection:
            if version := book.version(connection):
                self._echo(f"price book as it was, version {version}")
                return
            try:
                read = genai.read()
            except SourceMissing as missing:
                self._echo(f"no price book, so calls cost what their producers estimate: {missing}")
                return
            done = book.add(connection, read.prices, action="prices.import", title=genai.SOURCE)
        self._echo(f"price book of {genai.SOURCE}, version {done.version}")

    def _name_orgs(self, seen: list[dict[str, Any]]) -> None:
        """Give the orgs names, so that the page shows them. Without names it shows ids."""
        from pipeline.demo import names

        try:
            count = names.give(self._api, seen, self._demo.orgs)
        except OSError as error:
            self._echo(f"the orgs have no names: {error}")
            return
        if count:
            self._echo(f"{count} orgs have invented names")

    def _start(self, name: str, environment: dict[str, str], *arguments: str) -> None:
        self._raise_if_stopped()
        self._running[name] = child.Child.of_ours(
            "pipeline.cli", name, *arguments, env=environment, log=self._log(name)
        )

    def _until_answers(self, name: str, url: str) -> None:
        deadline = time.monotonic() + _READY_S
        while True:
            self._check()
            try:
                rest.get(url)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    tail = child.tail(self._log(name))
                    raise DemoError(f"{name} is not ready after {_READY_S:g} s ({error}):\n{tail}") from None
            time.sleep(_POLL_S)

    def _until_seen(self) -> str:
        """Wait until the API has figures of an org; returns the org that has spent most."""
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            self._check()
            try:
                items = rest.get(f"{self._api}/orgs?{rest.today()}&limit=1000")["items"]
            except OSError:
                items = []
            if items:
                self._name_orgs(items)
                return str(max(items, key=lambda item: Decimal(item["cost"]["amount"] or 0))["orgId"])
            time.sleep(_POLL_S)
        tail = child.tail(self._log("worker"))
        raise DemoError(f"no event was counted in {_READY_S:g} s; the worker's log ends:\n{tail}")

    # --- showing ----------------------------------------------------------------------------------

    def _show_addresses(self, org_id: str) -> None:
        urls = (
            f"{self._api}/orgs/{org_id}/usage?{rest.today()}",
            f"{self._api}/orgs/{org_id}/freshness",
            f"{self._api}/orgs?{rest.today()}",
        )
        for url in urls:
            try:
                rest.get(url)
            except OSError as error:
                raise DemoError(f"{url}: {error}") from None
        self._echo(
            f"""
  page     {self._page}
  API      {self._api}/docs
  events   {self._collector}/v1/events, /v1/litellm and /v1/traces
  metrics  http://127.0.0.1:{self._port}/metrics, http://127.0.0.1:{self._worker_port}/metrics,
           http://127.0.0.1:{self._alerts_port}/metrics and {self._collector}/metrics
  database {self._postgres.url}
  worker   process {self._running["worker"].pid}
  logs     {self._logs}

Other commands of spendstream find the demo after this, in another terminal:
  source {shlex.quote(str(self._write_settings(org_id)))}
  spendstream top

Try there:
"""
            + "\n".join(f"  curl -s '{url}'" for url in urls)
            + f"""

Send an event (again: it counts once), and see it a second later:

  {shown.sending(self._collector, _OWN_ORG)}
  curl -s '{self._api}/orgs/{_OWN_ORG}/usage?{rest.today()}'

Ctrl-C stops everything.
"""
        )

    def _set_budgets(self) -> None:
        """Set the budgets as soon as the org's speed is known. A later round tries what has failed."""
        if self._setting is None:
            return
        try:
            line = self._setting.step()
        except OSError as error:
            self._say(f"no budgets yet: {error}")
            return
        if line is not None:
            self._setting = None
            self._say(line)

    def _say(self, line: str) -> None:
        self._echo(f"{datetime.now():%H:%M:%S}  {line}")

    def _show_figures(self, events_before: int | None) -> int | None:
        """Print a line of today's totals of all orgs; returns the number of events, or None if unknown."""
        try:
            events, line = shown.figures(self._api, events_before)
        except OSError as error:
            self._say(f"no figures: {error}")
            return events_before
        self._say(line)
        return events

    # --- watching ---------------------------------------------------------------------------------

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _raise_if_stopped(self) -> None:
        if self._stopped():
            raise _Stopped

    def _check(self) -> None:
        """Raise if a signal has come or a part has died."""
        self._raise_if_stopped()
        codes = {name: process.exit_code() for name, process in self._running.items()}
        codes["postgres"] = self._postgres.exit_code()
        for name, code in codes.items():
            if code is not None:
                how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
                raise DemoError(
                    f"the log of {name} ends:\n{child.tail(self._log(name))}\n{name} died ({how});"
                    " `spendstream demo` goes on where the figures stood"
                )


def _collector_port(held: ExitStack, api_port: int) -> int:
    """COLLECTOR_PORT if it is set; else 8086, or a free port if 8086 is taken or the API has a free one, too.

    A sender keeps the collector's address, so the port should be the same at each start.
    """
    given = os.environ.get("COLLECTOR_PORT")
    if given:
        try:
            return _free_port(held, parsers.port(given), chosen_by="COLLECTOR_PORT")
        except ValueError as error:
            raise DemoError(f"COLLECTOR_PORT={given}: {error}") from None
    try:
        return _free_port(held, _COLLECTOR_PORT if api_port else 0)
    except DemoError:
        return _free_port(held, 0)


def _free_port(held: ExitStack, wanted: int, *, chosen_by: str = "--port") -> int:
    """A free port, or ``wanted`` if that is free. ``held`` keeps it, so that no second one is the same."""
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ignore TIME_WAIT
    try:
        probe.bind(("127.0.0.1", wanted))
        probe.listen()  # a port that is only bound could be bound again
    except OSError:
        raise DemoError(f"port {wanted} is in use: choose another {chosen_by}, or 0 for a free one") from None
    port: int = probe.getsockname()[1]
    return port
