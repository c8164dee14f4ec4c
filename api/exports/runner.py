"""The export runner: claims jobs one at a time and makes their files, until it is told to stop.

A runner holds a job by a claim with a lease, and a heartbeat renews the lease. What holds if the process
dies after each step:

1. Claimed. The lease runs out, and another runner makes the file from the start.
2. Uploading. As after step 1: nobody sees an upload that was not committed.
3. Sealed: the whole file is uploaded. The lease is renewed once more, and a runner that has lost the job
   stops here.
4. Committed: the object exists, under a key of this claim alone. If the row is not updated, another runner
   makes another object, and no row names ours.
5. Succeeded: the row has the key and the checksum of our object. The runner deletes what earlier claims left.
   A runner that was frozen until now finds the job lost, and deletes its own object. When the job expires,
   all its objects are deleted.

The runner runs in a thread of the API or as ``spendstream exporter``. There may be any number of runners, on
any number of hosts.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from prometheus_client import CollectorRegistry
from psycopg.rows import class_row

from api.asking.buckets import Calendar, Granularity, to_datetime, to_minute
from api.asking.limits import Limits
from api.config import DatabaseConfig, ExportConfig, RangeConfig
from api.exports import files
from api.exports.jobs import SQL, Job, schedule_key
from api.exports.stores import Store
from api.metrics import Exports as ExportMetrics
from api.reading.database import PRIVILEGED_REMEDY
from pipeline.common import correlation, traces
from pipeline.common.connect import Session, connect
from pipeline.common.day_zones import zone_names
from pipeline.common.errors import ServiceError, Unavailable
from sql import roles

log = logging.getLogger(__name__)

_POLL_S: Final = 1.0
_HOUSEKEEPING_S: Final = 30.0
_ATTEMPTS_MAX: Final = 5
_GAVE_UP: Final = f"The file could not be made in {_ATTEMPTS_MAX} attempts."
_PAUSE_S: Final = 5.0
_AWAY: Final = (psycopg.Error, OSError, Unavailable)
"""The database or the store cannot be used now: wait, and try again."""


class _Lost(ServiceError):
    """Another runner has the job now: leave the job to that runner."""


class _Stopped(ServiceError):
    """We were told to stop: give the job back."""


class Runner:
    """Makes the files of jobs. `run` blocks: give it a thread."""

    def __init__(
        self,
        *,
        database: DatabaseConfig,
        config: ExportConfig,
        store: Store,
        ranges: RangeConfig,
        clock: Callable[[], datetime],
        metrics: ExportMetrics | None = None,
    ) -> None:
        """``metrics`` counts the attempts; None: nobody asks how they ended."""
        self._metrics = metrics or ExportMetrics(CollectorRegistry())
        self.error: str | None = "not connected yet"
        """Why no job can be claimed now; None while all is well."""
        self._database = database
        self._config = config
        self._store = store
        self._ranges = ranges
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()

    def stop(self) -> None:
        """Let `run` return soon; a job in hand goes back. Any thread may call it."""
        self._stop.set()
        self._wake.set()

    def wake(self) -> None:
        """Look for a new job at once. Any thread may call it."""
        self._wake.set()

    def run(self) -> None:
        """Make files until `stop` is called. Waits for a database or store that is away."""
        housekeeping_at = 0.0
        while not self._stop.is_set():
            try:
                with self._connection() as connection:
                    while not self._stop.is_set():
                        if time.monotonic() >= housekeeping_at:
                            housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
                            self.expire(connection)
                            self.schedule(connection)
                        found = self.run_one(connection)
                        self.error = None
                        if not found:
                            self._wake.wait(_POLL_S)
                            self._wake.clear()
            except _AWAY as error:
                self.error = str(error).strip() or type(error).__name__
                log.warning("exporter_waits", extra={"error": self.error})
                self._stop.wait(_PAUSE_S)
            except Exception as error:
                self.error = type(error).__name__
                log.exception("exporter_failed")
                self._stop.wait(_PAUSE_S)

    def run_one(self, connection: psycopg.Connection[Any]) -> bool:
        """Claim one job, and make its file or give the job up or back. False: there is no job."""
        claim = uuid.uuid4()
        job = (
            connection.cursor(row_factory=class_row(Job))
            .execute(SQL["claim"], {"claim": claim, "lease": timedelta(seconds=self._config.lease_s)})
            .fetchone()
        )
        if job is None:
            return False
        held = {"job_id": job.job_id, "claim": claim}
        facts = {"job_id": str(job.job_id), "org_id": str(job.org_id), "attempt": job.attempts}
        ordered = {"request_id": job.request_id, "traceparent": job.traceparent}
        facts |= {name: value for name, value in ordered.items() if value is not None}
        ordered_in = {correlation.TRACEPARENT: job.traceparent} if job.traceparent else {}
        with traces.span("export", "consumer", parent=ordered_in, format=job.format) as span:
            span.set(**facts)
            log.info("export_started", extra=facts)
            began = time.monotonic()
            outcome = self._attempt(connection, job, held, facts)
            self._metrics.ended(outcome, time.monotonic() - began)
            span.set(outcome=outcome)
        return True

    def _attempt(
        self, connection: psycopg.Connection[Any], job: Job, held: dict[str, Any], facts: dict[str, Any]
    ) -> str:
        """Make the file of a claimed job, or give the job up or back; one of `api.metrics.OUTCOMES`."""
        if job.attempts > _ATTEMPTS_MAX:
            self._fail(connection, held, facts, _GAVE_UP)
            return "failed"
        try:
            written = self._make(connection, job, held)
        except _Lost:
            log.warning("export_lost", extra=facts)
            return "lost"
        except _Stopped:
            connection.execute(SQL["give_back"], {**held, "pause": timedelta(0), "spent": 0})
            log.info("export_given_back", extra=facts)
            return "given_back"
        except files.UnwritableError as error:
            self._fail(connection, held, facts, str(error))
            return "failed"
        except Exception:
            log.exception("export_attempt_failed", extra=facts)
            if job.attempts >= _ATTEMPTS_MAX:
                self._fail(connection, held, facts, _GAVE_UP)
                return "failed"
            pause = timedelta(seconds=_PAUSE_S * job.attempts)
            connection.execute(SQL["give_back"], {**held, "pause": pause, "spent": 1})
            return "repeated"
        log.info("export_done", extra={**facts, "rows": written.rows, "bytes": written.bytes})
        return "succeeded"

    def expire(self, connection: psycopg.Connection[Any]) -> None:
        """Delete the objects of jobs that have expired. Idempotent."""
        for job_id, org_id, location in connection.execute(SQL["expired"], {"now": self._clock()}).fetchall():
            self._store.delete(location)
            self._store.clear(f"exports/{org_id}/{job_id}-")
            connection.execute(SQL["expire"], {"job_id": job_id})
            log.info("export_expired", extra={"job_id": str(job_id)})

    def schedule(self, connection: psycopg.Connection[Any]) -> None:
        """Make last month's jobs once that month is final; each job once, however many runners do this."""
        for (name,) in connection.execute(SQL["scheduled_zones"]).fetchall():
            if name in zone_names():
                self._schedule_in(connection, ZoneInfo(name))
            else:  # another host may know the zone
                log.warning("export_zone_unknown", extra={"time_zone": name})

    def _schedule_in(self, connection: psycopg.Connection[Any], zone: ZoneInfo) -> None:
        """Make last month's jobs of the schedules in one time zone."""
        calendar = Calendar(Granularity.MONTH, zone)
        end = calendar.start_of(to_minute(self._clock()))
        start = calendar.start_of(end - 1)
        month = f"{to_datetime(start).astimezone(zone):%Y-%m}"
        cursor = connection.execute(
            SQL["due"],
            {
                "time_zone": zone.key,
                "start": to_datetime(start),
                "end": to_datetime(end),
                "final_at": to_datetime(end) + timedelta(seconds=self._ranges.dedupe_window_s),
                "idempotency_key": schedule_key(month),
                "now": self._clock(),
            },
        )
        if cursor.rowcount:
            log.info(
                "exports_scheduled", extra={"month": month, "time_zone": zone.key, "jobs": cursor.rowcount}
            )

    def _limits(self) -> Limits:
        return Limits(ranges=self._ranges, now=to_minute(self._clock()))

    # --- one job ---

    def _make(self, control: psycopg.Connection[Any], job: Job, held: dict[str, Any]) -> files.Written:
        with self._heartbeat(held) as lost, self._connection() as connection:

            def check() -> None:
                if lost.is_set():
                    raise _Lost
                if self._stop.is_set():
                    raise _Stopped

            key = job.key(held["claim"])
            upload = self._store.upload(key, org_id=job.org_id, job_id=job.job_id)
            try:
                with traces.child("file") as span:
                    written = files.write(
                        connection,
                        job,
                        upload,
                        provider=self._config.provider,
                        check=check,
                        limits=self._limits,
                    )
                    span.set(rows=written.rows, bytes=written.bytes)
                with traces.child("upload", "client"):
                    upload.seal()
                    if not self._beat(control, held):
                        raise _Lost
                    upload.commit()
            except BaseException:
                upload.abort()
                raise
        now = self._clock()
        cursor = control.execute(
            SQL["succeed"],
            {
                **held,
                "now": now,
                "expires_at": now + timedelta(seconds=self._config.retention_s),
                "location": key,
                "checksum": written.checksum,
                "rows": written.rows,
                "bytes": written.bytes,
                "watermark": written.watermark,
                "price_version": written.price_version,
            },
        )
        if cursor.rowcount == 0:
            self._store.delete(key)
            raise _Lost
        if job.attempts > 1:
            self._store.clear(job.stem, keep=key)
        return written

    def _fail(
        self, control: psycopg.Connection[Any], held: dict[str, Any], facts: dict[str, Any], error: str
    ) -> None:
        control.execute(SQL["fail"], {**held, "now": self._clock(), "error": error})
        log.error("export_failed", extra={**facts, "error": error})

    def _beat(self, connection: psycopg.Connection[Any], held: dict[str, Any]) -> bool:
        lease = timedelta(seconds=self._config.lease_s)
        return connection.execute(SQL["beat"], {**held, "lease": lease}).rowcount == 1

    @contextmanager
    def _heartbeat(self, held: dict[str, Any]) -> Iterator[threading.Event]:
        """Renew the lease in a thread of its own. The event is set when the job is lost."""
        lost, done = threading.Event(), threading.Event()

        def beat() -> None:
            beaten_at = time.monotonic()
            while not done.wait(self._config.lease_s / 4):
                try:
                    with self._connection() as connection:
                        if not self._beat(connection, held):
                            lost.set()
                            return
                    beaten_at = time.monotonic()
                except _AWAY as error:
                    log.warning("export_heartbeat_failed", extra={"error": str(error).strip()})
                    if time.monotonic() - beaten_at > self._config.lease_s:
                        lost.set()
                        return

        thread = threading.Thread(target=beat, name="export-heartbeat", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join(5)

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        session = Session(
            application_name=f"{self._database.service_name}-exporter",
            statement_timeout_s=self._config.statement_timeout_s,
        )
        with connect(self._database.url, session, autocommit=True) as connection:
            if not self._database.allow_privileged:
                row = connection.execute(roles.WRITES_ROLLUPS).fetchone()
                if row is None or row[0]:
                    raise Unavailable(PRIVILEGED_REMEDY)
            yield connection
