"""Routes of exports, their files and schedules."""

from __future__ import annotations

from typing import Final

from api.access.guard import EXPORTS_CREATE, EXPORTS_DOWNLOAD, EXPORTS_READ, PUBLIC, Access
from api.answering import answers
from api.asking import params
from api.contract import bodies
from api.contract.operation import (
    BASE,
    CURSOR,
    DIMENSIONS,
    IDEMPOTENCY_KEY,
    ORG,
    VERSIONS,
    ZONES,
    Operation,
    link,
)

OPERATIONS: Final = (
    Operation(
        method="POST",
        path=f"{ORG}/exports",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.create,
        name="createExport",
        summary="Order a file of the org's figures by bucket, model and client, or by a dimension. The same"
        " Idempotency-Key gives the same job.",
        answer=answers.ExportJob,
        success=202,
        body=bodies.ORDER_BODY,
        headers=(IDEMPOTENCY_KEY,),
        sends={"Location": {"description": "The job.", "schema": {"type": "string"}}},
        links={
            name: link(name, orgId="$request.path.orgId", jobId="$response.body#/jobId")
            for name in ("getExport", "downloadExport", "getExportLink")
        },
        problems=(400, 409, 413, 429, 503),
        rules="end must be after start, and the range within its limits and what is kept;"
        f" {ZONES}; {DIMENSIONS}; {VERSIONS}; delivery is to this server's own bucket, if it has one;"
        " initiatedBy is printable",
    ),
    Operation(
        method="GET",
        path=f"{ORG}/exports",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.page,
        name="listExports",
        summary="The org's exports, the newest first.",
        answer=answers.ExportJobs,
        parameters=params.EXPORTS,
        problems=(400, 503),
        rules=CURSOR,
    ),
    Operation(
        method="GET",
        path=f"{ORG}/exports/{{jobId}}",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.one,
        name="getExport",
        summary="One export and how far it is.",
        answer=answers.ExportJob,
        problems=(400, 404, 503),
    ),
    Operation(
        method="GET",
        path=f"{ORG}/exports/{{jobId}}/download",
        access=Access(role=EXPORTS_DOWNLOAD),
        handler=lambda h: h.exports.download,
        name="downloadExport",
        summary="A signed link to the file, good for 24 hours.",
        answer=None,
        success=302,
        sends={"Location": {"description": "The link.", "schema": {"type": "string"}}},
        problems=(400, 404, 409, 503),
    ),
    Operation(
        method="GET",
        path=f"{ORG}/exports/{{jobId}}/link",
        access=Access(role=EXPORTS_DOWNLOAD),
        handler=lambda h: h.exports.link,
        name="getExportLink",
        summary="A signed link to the file, good for 10 minutes, in the answer: for pages, which cannot read"
        " where the download leads.",
        answer=answers.ExportLink,
        problems=(400, 404, 409, 503),
    ),
    Operation(
        method="GET",
        path=f"{ORG}/export-schedule",
        access=Access(role=EXPORTS_READ),
        handler=lambda h: h.exports.schedule,
        name="getExportSchedule",
        summary="The org's monthly export.",
        answer=answers.ExportSchedule,
        problems=(400, 404, 503),
    ),
    Operation(
        method="PUT",
        path=f"{ORG}/export-schedule",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.set_schedule,
        name="setExportSchedule",
        summary="Make an export of each month of a time zone once its figures are final.",
        answer=answers.ExportSchedule,
        body=bodies.SCHEDULE_BODY,
        problems=(400, 413, 503),
        rules=f"{ZONES}; {DIMENSIONS}",
    ),
    Operation(
        method="DELETE",
        path=f"{ORG}/export-schedule",
        access=Access(role=EXPORTS_CREATE, writes=True),
        handler=lambda h: h.exports.drop_schedule,
        name="dropExportSchedule",
        summary="End the org's monthly export.",
        answer=None,
        success=204,
        problems=(400, 503),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/exports/{{jobId}}/file",
        access=Access(role=PUBLIC),
        handler=lambda h: h.exports.file,
        name="getExportFile",
        summary="The file that a signed link of this server leads to; the signature is the credential.",
        answer="application/octet-stream",
        parameters=params.SIGNED,
        problems=(400, 403, 404, 503),
    ),
)
