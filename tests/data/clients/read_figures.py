"""Reads an API with the client that openapi-python-client makes of the document; prints all as JSON."""

import datetime
import json
import os
import sys
from uuid import UUID

from spendstream_client import AuthenticatedClient
from spendstream_client.api.default import create_export, get_export, get_reliability, get_usage, list_exports
from spendstream_client.models import (
    CreateExportBody,
    CreateExportBodyTimeRange,
    ExportJob,
    ExportJobs,
    GetReliabilityLast,
    GetReliabilityPercentileItem,
    GetUsageGranularity,
    GetUsageLast,
    ProblemDetails,
    Reliability,
    Usage,
)

root, org = sys.argv[1], UUID(sys.argv[2])
client = AuthenticatedClient(
    base_url=root, token=os.environ["SPENDSTREAM_KEY"], prefix="", auth_header_name="X-API-Key"
)

usage = get_usage.sync(
    org, client=client, last=GetUsageLast("30d"), granularity=GetUsageGranularity.DAY, group_by=["none"]
)
assert isinstance(usage, Usage), usage
reliability = get_reliability.sync(
    org,
    client=client,
    last=GetReliabilityLast("30d"),
    group_by=["model"],
    percentile=[GetReliabilityPercentileItem.P95],
)
assert isinstance(reliability, Reliability), reliability
time_range = CreateExportBodyTimeRange(start=usage.start, end=usage.end)
created = create_export.sync(
    org, client=client, body=CreateExportBody(time_range=time_range, group_by="model", initiated_by="python")
)
assert isinstance(created, ExportJob), created
job = get_export.sync(org, created.job_id, client=client)
assert isinstance(job, ExportJob), job
listed = list_exports.sync(org, client=client)
assert isinstance(listed, ExportJobs), listed
refused = get_usage.sync(
    org, client=client, last=GetUsageLast("1h"), start=datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
)
assert isinstance(refused, ProblemDetails), refused
print(
    json.dumps(
        {
            "usage": usage.to_dict(),
            "reliability": reliability.to_dict(),
            "job": job.to_dict(),
            "ids": [str(item.job_id) for item in listed.items],
            "refused": refused.to_dict(),
        }
    )
)
