"""Exports over HTTP: orders, their state, links to the files, and the monthly schedule."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from psycopg.rows import class_row, dict_row, scalar_row, tuple_row

from api.access.guard import CALLER, ORG_ID
from api.answering import answers
from api.asking import params
from api.asking.buckets import Span, to_datetime
from api.asking.cursors import Cursors
from api.asking.params import Reader
from api.asking.questions import Parser
from api.config import ExportConfig
from api.exports import jobs
from api.exports.jobs import SQL, Job, Shape
from api.exports.stores import LINK_S, MEDIA_TYPES, FolderStore, Store
from api.reading import names, prices, seen
from api.reading.database import Database, rows
from api.reading.names import Names
from pipeline.common import correlation, ids, problems, traces
from pipeline.common.connect import AsyncConnection
from pipeline.common.problems import Fault

PAGE_LINK_S: Final = 600
"""How long the link of `Exports.link` is good: a page follows it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """The handlers of exports, and what they work with.

    ``store`` None: this server has nowhere to put a file. ``wake`` tells the runner of this process, if there
    is one, to look for a new job.
    """

    database: Database
    store: Store | None
    config: ExportConfig
    parser: Parser
    cursors: Cursors
    clock: Callable[[], datetime]
    wake: Callable[[], None]

    async def create(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        key = params.idempotency_key(request.headers)
        bucket = self.config.s3.bucket if self.config.s3 else None
        order = jobs.order(await request.read(), self.parser.limits, bucket=bucket)
        self._store()
        org_id: UUID = request[ORG_ID]
        if order.needs_quarters(self.parser.limits):
            known = await self.database.read(lambda c: seen.quarters(c, org_id))
            order.check_quarters(self.parser.limits, known)
        await self._check_dimension(org_id, order.shape, order.span)
        asked = correlation.of(request)
        row = {
            "job_id": uuid.uuid4(),
            "org_id": org_id,
            **order.shape.columns,
            "range_start": to_datetime(order.span.start),
            "range_end": to_datetime(order.span.end),
            "idempotency_key": key,
            "created_by": request[CALLER].subject,
            "initiated_by": order.initiated_by,
            "request_id": asked.request_id,
            "traceparent": traces.headers().get(correlation.TRACEPARENT, asked.traceparent),
            "created_at": self.clock(),
            "cost_basis": order.pricing.basis,
        }

        async def add(connection: AsyncConnection) -> Job:
            if key is not None and (known := await _one(connection, "by_idempotency_key", row)):
                return known
            (count,) = await rows(connection, SQL["open_jobs"], {"org_id": org_id}, scalar_row)
            if count >= self.config.open_max:
                raise problems.too_many(
                    f"This org has {count} exports that are not made yet (EXPORT_OPEN_MAX).", retry_after_s=30
                )
            version = await prices.version(connection, order.pricing.version)
            await connection.execute(SQL["create"], {**row, "price_version": version})
            # Of two orders with one key at the same time, the second one finds the job of the first.
            job = await _one(connection, "by_id", row) or await _one(connection, "by_idempotency_key", row)
            assert job is not None
            return job

        job = await self.database.write(add)
        if not job.same_order(order):
            raise problems.conflict("This Idempotency-Key has ordered another export.")
        self.wake()
        location = f"{request.path}/{job.job_id}"
        return answers.response(self._shown(job), status=202, headers={"Location": location})

    async def page(self, request: web.Request) -> web.Response:
        org_id: UUID = request[ORG_ID]
        question = self.parser.listing(
            "exports",
            org_id,
            request.query,
            tuple[datetime, UUID],
            chosen_by=(params.STATUS, params.export_status),
        )
        before, job_id = question.after or (None, None)
        values = {
            "org_id": org_id,
            "statuses": list(question.chosen) or None,
            "before": before,
            "job_id": job_id,
            "limit": question.limit + 1,
        }

        async def read(connection: AsyncConnection) -> tuple[list[Job], Names]:
            found = await rows(connection, SQL["page"], values, class_row(Job))
            return found, await names.read(connection, org_id)

        found, named = await self.database.read(read)
        shown, cursor = self.cursors.paged(question, found, lambda job: (job.created_at, job.job_id))
        items = [self._shown(job) for job in shown]
        return answers.response(
            answers.ExportJobs(org_id=org_id, org_name=named.org, items=items, next_cursor=cursor)
        )

    async def one(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        return answers.response(self._shown(await self._job_of(request)))

    async def download(self, request: web.Request) -> web.Response:
        link = await self._signed(request, LINK_S)
        return web.Response(status=302, headers={"Location": link, "Cache-Control": "no-store"})

    async def link(self, request: web.Request) -> web.Response:
        """The link as an answer: a page cannot read where `download` leads, and cannot follow with a key."""
        expires_at = self.clock() + timedelta(seconds=PAGE_LINK_S)
        url = await self._signed(request, PAGE_LINK_S)
        return answers.response(answers.ExportLink(url=url, expires_at=expires_at))

    async def _signed(self, request: web.Request, lasts_s: int) -> str:
        """A signed link to the file of the job in the path."""
        self.parser.nothing(request.query)
        job = await self._job_of(request)
        if job.status in ("pending", "running"):
            raise problems.conflict("The export is not made yet; ask again when its status is succeeded.")
        if job.status != "succeeded" or job.location is None:
            raise problems.not_found(f"The export has no file: it is {job.status}.")
        return await asyncio.to_thread(self._store().link, job.location, job.job_id, lasts_s)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """The file that a signed link leads to. The signature is the credential."""
        reader = Reader(request.query, params.SIGNED)
        expires = reader.one(params.EXPIRES, params.number)
        signature = reader.one(params.SIGNATURE, str)
        job_id = _job_id(request)
        reader.finish()
        if not isinstance(self.store, FolderStore):
            raise problems.not_found("This server keeps no files of its own.")
        assert expires is not None
        assert signature is not None
        if not self.store.is_signed(job_id, expires, signature):
            raise problems.forbidden("The link is not one of ours, or has had its time: ask for a new one.")
        found = await self.database.read(lambda c: rows(c, SQL["location"], {"job_id": job_id}, tuple_row))
        location, form = found[0] if found else (None, None)
        path = None if location is None else self.store.path(location)
        if path is None or not path.is_file():
            raise problems.not_found("The export has no file any more.")
        ending = jobs.FORMATS[form]
        return web.FileResponse(
            path,
            headers={
                "Content-Type": MEDIA_TYPES[ending],
                "Content-Disposition": f'attachment; filename="{job_id}.{ending}"',
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "private, no-store",
            },
        )

    # --- the monthly schedule ---

    async def schedule(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        values = {"org_id": request[ORG_ID]}

        async def read(connection: AsyncConnection) -> answers.ExportSchedule | None:
            found = await rows(connection, SQL["schedule"], values, dict_row)
            return await self._scheduled(connection, found[0]) if found else None

        schedule = await self.database.read(read)
        if schedule is None:
            raise problems.not_found("This org has no schedule of exports.")
        return answers.response(schedule)

    async def set_schedule(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)
        shape = jobs.schedule(await request.read(), self.parser.limits)
        self._store()
        await self._check_dimension(request[ORG_ID], shape)
        values = {
            "org_id": request[ORG_ID],
            **shape.columns,
            "created_by": request[CALLER].subject,
            "created_at": self.clock(),
        }

        async def write(connection: AsyncConnection) -> answers.ExportSchedule:
            (row,) = await rows(connection, SQL["set_schedule"], values, dict_row)
            return await self._scheduled(connection, row)

        return answers.response(await self.database.write(write))

    async def drop_schedule(self, request: web.Request) -> web.Response:
        self.parser.nothing(request.query)

        async def drop(connection: AsyncConnection) -> None:
            await connection.execute(SQL["drop_schedule"], {"org_id": request[ORG_ID]})

        await self.database.write(drop)
        return web.Response(status=204)

    # --- parts ---

    async def _check_dimension(self, org_id: UUID, shape: Shape, span: Span | None = None) -> None:
        """Raises `Problem` 400 where `Shape.check_dimension` does."""
        if shape.dimension:
            shape.check_dimension(await self.database.read(lambda c: seen.dimensions(c, org_id)), span)

    def _store(self) -> Store:
        if self.store is None:
            raise problems.unavailable("This server has nowhere to put exports: set S3_* or EXPORT_DIR.")
        return self.store

    async def _scheduled(self, connection: AsyncConnection, row: Mapping[str, Any]) -> answers.ExportSchedule:
        """A stored schedule with what becomes of its next file, and the newest job."""
        org_id = row["org_id"]
        newest = await rows(
            connection, SQL["newest_scheduled"], {"org_id": org_id}, class_row(answers.ScheduledJob)
        )
        last = newest[0] if newest else None
        shape = jobs.scheduled_shape(row)
        if shape is None:
            return answers.ExportSchedule(**row, next_month=None, next_month_fault=None, last_job=last)
        limits = self.parser.limits
        month = shape.month_before(limits.now)
        key = jobs.schedule_key(shape.month_name(month))
        if await _one(connection, "by_idempotency_key", {"org_id": org_id, "idempotency_key": key}):
            month = shape.month_of(limits.now)
        return answers.ExportSchedule(
            **row,
            next_month=shape.month_name(month),
            next_month_fault=await self._lacking(connection, org_id, shape, month),
            last_job=last,
        )

    async def _lacking(
        self, connection: AsyncConnection, org_id: UUID, shape: Shape, month: Span
    ) -> str | None:
        """Why the rows of a month do not suffice for a file; None if they do."""
        quarters = await seen.quarters(connection, org_id)
        limits = self.parser.limits
        faults = limits.lacking(month, shape.calendar, split_by=shape.split_by, quarters=quarters)
        if not faults:
            try:
                shape.check_dimension(await seen.dimensions(connection, org_id), month)
            except problems.Problem as problem:
                faults = list(problem.errors)
        return f"{faults[0].field}: {faults[0].message}" if faults else None

    def _shown(self, job: Job) -> answers.ExportJob:
        return job.shown(self._uri, self.parser.limits.ranges.dedupe_window_s)

    def _uri(self, key: str) -> str:
        return self.store.uri(key) if self.store else key

    async def _job_of(self, request: web.Request) -> Job:
        values = {"org_id": request[ORG_ID], "job_id": _job_id(request)}
        job = await self.database.read(lambda c: _one(c, "by_id", values))
        if job is None:
            raise problems.not_found("This org has no such export.")
        return job


def _job_id(request: web.Request) -> UUID:
    try:
        return ids.uuid(request.match_info["jobId"])
    except ValueError as error:
        raise problems.invalid_parameters([Fault("jobId", str(error))]) from None


async def _one(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> Job | None:
    found = await rows(connection, SQL[name], values, class_row(Job))
    return found[0] if found else None
