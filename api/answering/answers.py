"""The answers as types: what they are encoded from, and what the OpenAPI document describes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Struct, UnsetType, field

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[datetime, Meta(tz=True)]
Status = Literal["fresh", "stale", "delayed"]
GranularityName = Literal["minute", "hour", "day", "week", "month"]


class Answer(Struct, kw_only=True, rename="camel"):
    """camelCase on the wire."""


Amount = Annotated[str, Meta(pattern=r"^-?\d+\.\d{2,20}$")]


class Cost(Answer):
    """``amount`` is exact. ``basis`` says where it comes from: ``book``, the rates of the price book;
    ``estimate``, the producers' own estimates; ``mixed``, some of both; or ``none``: neither knows what any
    call cost, and the amount is null. `Unpriced` counts the calls that are not in the amount."""

    amount: Amount | None
    currency: Literal["USD"]
    basis: Literal["book", "estimate", "mixed", "none"]


class Estimate(Answer):
    """What the producers estimated for the calls, exact, in US dollars; null if no call has an estimate."""

    amount: Amount | None


class Unpriced(Answer):
    """Calls whose cost nobody knows: they are not in the amount."""

    invocations: Count


class FreshnessOut(Answer):
    """``lagSeconds`` is now minus the watermark of the org's slowest partition; null while unknown. The
    figures are complete up to ``watermark``, by the times of events. ``countedThrough``: every event that the
    broker had stored before this time is in the figures, usually up to a second ago; null until the worker
    says so."""

    status: Status
    lag_seconds: float | None
    watermark: Time | None
    counted_through: Time | None
    last_event_at: Time | None
    last_rollup_at: Time | None


class Dimension(Answer):
    """``source`` is where the values come from. ``since``: from this time on, all events of the org are
    counted by the dimension; null while a partition of the org does not count it yet."""

    name: str
    source: str
    since: Time | None


class UsageFigures(Answer):
    """The cache tokens are parts of ``inputTokens``, and ``reasoningTokens`` of ``outputTokens``.
    ``costEstimateCents`` is ``cost.amount`` in whole cents, a half cent rounded to the even one. Its name is
    from before the price book."""

    invocations: Count
    input_tokens: Count
    output_tokens: Count
    cache_read_tokens: Count
    cache_write_tokens: Count
    cache_write_1h_tokens: Count = field(name="cacheWrite1hTokens")
    reasoning_tokens: Count
    cost_estimate_cents: int | None
    cost: Cost
    estimate: Estimate
    unpriced: Unpriced


class Adjusted(Answer):
    """The adjustments whose periods begin in the range: what they add to what the org pays, in US dollars,
    exact, and how many they are. Credits and refunds are below 0. Retracted ones do not count."""

    amount: Amount
    count: Count


class Net(Answer):
    """``cost.amount`` and ``adjustments.amount`` together; null if ``cost.amount`` is."""

    amount: Amount | None
    currency: Literal["USD"]


class UsageTotals(UsageFigures):
    """``cost`` is that of usage alone, whatever the adjustments. ``adjustments`` and ``net`` are null where a
    filter leaves out some usage of the org, because an adjustment is of the org as a whole."""

    adjustments: Adjusted | None
    net: Net | None


class UsagePoint(Answer):
    """``modelName`` and ``provider`` are the labels of the org's newest event of the model, or null.
    ``modelId`` and ``clientId`` are null where the series is not split by them; a null ``clientId`` in a
    series by client holds the events without one. The one id of more than 128 characters holds what was
    counted beyond CLIENTS_PER_ORG_HOUR_MAX. ``value`` is that of the dimension which the series is split by,
    alike. ``clientName`` and ``valueName`` are what an administrator calls them, or null. ``final``: it can
    no longer change but by backfill."""

    bucket_start: Time
    model_id: UUID | None
    model_name: str | None
    provider: str | None
    client_id: str | None
    client_name: str | None
    value: str | None
    value_name: str | None
    invocations: Count
    input_tokens: Count
    output_tokens: Count
    cache_read_tokens: Count
    cache_write_tokens: Count
    cache_write_1h_tokens: Count = field(name="cacheWrite1hTokens")
    reasoning_tokens: Count
    cost_estimate_cents: int | None
    cost: Cost
    estimate: Estimate
    unpriced: Unpriced
    final: bool


class Usage(Answer):
    """``orgName`` is the name that an administrator has set, here and in every other answer; null without
    one. The figures are of [``start``, ``end``): the range that was asked for, in whole minutes. Empty
    buckets are absent; ``totals`` cover the whole range, whatever the page. ``dimension`` is what the figures
    are split or filtered by; they then cover the range from its ``since`` on. ``priceVersion`` is the version
    of the price book that the answer was priced at, 0 for an empty book."""

    org_id: UUID
    org_name: str | None
    start: Time
    end: Time
    granularity: GranularityName
    time_zone: str
    dimension: Dimension | None
    series: list[UsagePoint]
    totals: UsageTotals
    price_version: Count
    freshness: FreshnessOut
    next_cursor: str | None


class Errors(Answer):
    error: Count
    timeout: Count
    throttled: Count


class Latency(Answer, kw_only=True):
    """Milliseconds. Percentiles are within 1 % of exact; null without events; absent if the parameter
    ``percentile`` asks for others."""

    p50: float | UnsetType | None = UNSET
    p95: float | UnsetType | None = UNSET
    p99: float | UnsetType | None = UNSET
    mean: float | None
    max: Count | None


class ReliabilityFigures(Answer):
    """``errorRate`` is the share of invocations that did not succeed; null without any."""

    invocations: Count
    error_rate: float | None
    errors: Errors
    latency_ms: Latency


class ReliabilityPoint(Answer):
    """Keys as in the series of usage."""

    bucket_start: Time
    model_id: UUID | None
    model_name: str | None
    provider: str | None
    client_id: str | None
    client_name: str | None
    value: str | None
    value_name: str | None
    invocations: Count
    error_rate: float | None
    errors: Errors
    latency_ms: Latency
    final: bool


class ErrorCode(Answer):
    status: Literal["error", "timeout", "throttled"]
    error_code: str | None
    count: Count


class Range(Answer):
    start: Time
    end: Time


class Reliability(Answer):
    """``start`` and ``end`` as in `Usage`. ``errorCodes`` (the 1000 most frequent) cover ``errorCodesRange``:
    the hours the range touches. They are not counted by dimension: with a filter on one, ``errorCodes`` is
    null."""

    org_id: UUID
    org_name: str | None
    start: Time
    end: Time
    granularity: GranularityName
    time_zone: str
    dimension: Dimension | None
    series: list[ReliabilityPoint]
    totals: ReliabilityFigures
    error_codes: list[ErrorCode] | None
    error_codes_range: Range
    freshness: FreshnessOut
    next_cursor: str | None


class FreshnessEntry(Answer):
    """``modelName`` and ``provider`` as in `Model`."""

    model_id: UUID
    model_name: str | None
    provider: str | None
    last_event_at: Time
    last_rollup_at: Time
    lag_seconds: float | None
    status: Status


class OrgFreshness(Answer):
    """``entries`` are a page of the models, or of those that ``modelId`` names; all else is of the whole org,
    whatever the page."""

    org_id: UUID
    org_name: str | None
    status: Status
    lag_seconds: float | None
    watermark: Time | None
    counted_through: Time | None
    entries: list[FreshnessEntry]
    next_cursor: str | None


class Model(Answer):
    """``modelName`` and ``provider`` are the labels of the org's newest event of this model."""

    model_id: UUID
    model_name: str | None
    provider: str | None
    first_event_at: Time
    last_event_at: Time


class Models(Answer):
    org_id: UUID
    org_name: str | None
    items: list[Model]
    next_cursor: str | None


class Client(Answer):
    """``clientId`` is null for events without one; `UsagePoint` says what the longest one is. ``clientName``
    is the name that an administrator has set."""

    client_id: str | None
    client_name: str | None
    first_event_at: Time
    last_event_at: Time


class Clients(Answer):
    org_id: UUID
    org_name: str | None
    items: list[Client]
    next_cursor: str | None


class Dimensions(Answer):
    org_id: UUID
    org_name: str | None
    items: list[Dimension]


class Value(Answer):
    """``value`` is null for events without one; `UsagePoint` says what the longest one is. ``valueName`` is
    the name that an administrator has set."""

    value: str | None
    value_name: str | None
    first_event_at: Time
    last_event_at: Time


class Values(Answer):
    org_id: UUID
    org_name: str | None
    dimension: str
    items: list[Value]
    next_cursor: str | None


class Org(Answer):
    org_id: UUID
    org_name: str | None
    invocations: Count
    input_tokens: Count
    output_tokens: Count
    cost: Cost
    estimate: Estimate
    unpriced: Unpriced
    error_rate: float | None
    last_event_at: Time
    freshness: FreshnessOut


class Orgs(Answer):
    """``start``, ``end`` and ``priceVersion`` as in `Usage`."""

    start: Time
    end: Time
    items: list[Org]
    price_version: Count
    next_cursor: str | None


class Price(Answer):
    """A row of the price book. ``rate`` is exact: US dollars for a million tokens, for ``request`` US dollars
    for a call, for ``discount`` percent; null in a row that ``retracts`` another. ``orgId`` null: the price
    holds for everyone. Only administrators see ``recordedBy``."""

    id: Count
    provider: str
    model_name: str
    service_tier: str
    context_from: Count
    kind: str
    rate: str | None
    valid_from: Time
    valid_to: Time | None
    org_id: UUID | None
    org_name: str | None
    source: str
    basis: str
    recorded_by: str | None
    recorded_at: Time
    retracts: Count | None
    retracted_by: Count | None


class Adjustment(Answer):
    """A credit, refund or correction of what an org pays. ``amount`` is what it adds, in US dollars, exact:
    below 0 for a credit or refund; null in a row that ``retracts`` another. It belongs wholly to the instant
    ``periodStart``. Only administrators see ``recordedBy``."""

    id: Count
    org_id: UUID
    kind: Literal["credit", "refund", "correction"]
    amount: Amount | None
    currency: Literal["USD"]
    period_start: Time
    period_end: Time
    reason: str
    recorded_by: str | None
    recorded_at: Time
    retracts: Count | None
    retracted_by: Count | None


class Adjustments(Answer):
    """In the order in which they were recorded."""

    org_id: UUID
    org_name: str | None
    items: list[Adjustment]
    next_cursor: str | None


class Prices(Answer):
    """In the order in which they were recorded, as of ``priceVersion``."""

    items: list[Price]
    price_version: Count
    next_cursor: str | None


class BookChange(Answer):
    """``priceVersion`` is the newest version of the book now. ``appended`` are the rows that were appended:
    none if the book said all of it already."""

    price_version: Count
    appended: list[Price]


class PriceDifference(Answer):
    """What the calls of an org to a model cost before and after, in US dollars, exact; null if unknown."""

    org_id: UUID
    org_name: str | None
    model_id: UUID
    provider: str | None
    model_name: str | None
    invocations: Count
    before: Amount | None
    after: Amount | None
    by: Amount
    unpriced_before: Count
    unpriced_after: Count


class PriceDifferences(Answer):
    """Only models whose cost differs. ``by`` is the sum over all of them."""

    items: list[PriceDifference]
    by: Amount


class ExportJob(Answer):
    """``outputUri`` names the object; ``download`` gives a link to it. ``checksum`` is SHA-256 in
    hexadecimal, ``watermark`` that of the snapshot which the file shows. ``priceVersion`` is the version of
    the price book when the job was made, or the one that was asked for; null if there was no book yet.
    ``dimensions`` are the clients or values of a dimension that the file is of, such as ``team:search``;
    none: all of them.
    ``final``: the figures of the whole range can no longer change but by backfill; false: the file is
    provisional; null: there is no file. ``initiatedBy`` is whom the order names, or else who sent it; the
    audit log has who sent it in any case. ``requestId`` is the X-Request-ID of the order; null in a job of
    the schedule."""

    job_id: UUID
    org_id: UUID
    org_name: str | None
    status: Literal["pending", "running", "succeeded", "failed", "expired"]
    format: str
    granularity: str
    time_range: Range
    time_zone: str
    group_by: str
    dimensions: list[str]
    models: list[UUID]
    created_at: Time
    initiated_by: str
    request_id: str | None
    completed_at: Time | None
    expires_at: Time | None
    output_uri: str | None
    checksum: str | None
    row_count: Count | None
    byte_count: Count | None
    watermark: Time | None
    final: bool | None
    price_version: Count | None
    cost_basis: Literal["auto", "book", "estimate"]
    error: str | None


class ExportJobs(Answer):
    """The newest first."""

    org_id: UUID
    org_name: str | None
    items: list[ExportJob]
    next_cursor: str | None


class ScheduledJob(Answer):
    """The newest job of a schedule. ``month`` is one of its time zone, such as ``2026-10``."""

    job_id: UUID
    month: str
    status: Literal["pending", "running", "succeeded", "failed", "expired"]
    error: str | None


class ExportSchedule(Answer):
    """An export of each month of ``timeZone``, made once its figures are final. ``nextMonth`` is the month of
    the next file, such as ``2026-11``; null: this server does not know the time zone. ``nextMonthFault`` says
    why that file cannot be made as things are, or is null. ``lastJob`` is the newest job, of whatever time
    zone, or null."""

    org_id: UUID
    org_name: str | None
    format: str
    granularity: str
    models: list[UUID]
    created_by: str
    created_at: Time
    time_zone: str
    group_by: str
    dimensions: list[str]
    next_month: str | None
    next_month_fault: str | None
    last_job: ScheduledJob | None


class LiveBucket(Answer):
    """``errors`` are all that did not succeed."""

    bucket_start: Time
    invocations: Count
    errors: Count
    input_tokens: Count
    output_tokens: Count
    cache_read_tokens: Count
    cache_write_tokens: Count
    cache_write_1h_tokens: Count = field(name="cacheWrite1hTokens")
    reasoning_tokens: Count
    cost: Cost
    estimate: Estimate
    unpriced: Unpriced


class LiveUsage(Answer):
    """Data of ``event: usage``: the buckets of UTC that hold the watermark, as REST shows them at the newest
    version of the price book."""

    org_id: UUID
    org_name: str | None
    watermark: Time
    counted_through: Time | None
    last_rollup_at: Time
    minute: LiveBucket
    hour: LiveBucket
    day: LiveBucket
    month: LiveBucket
    price_version: Count


class LiveFreshness(Answer):
    """Data of ``event: freshness``, at least every 5 s."""

    org_id: UUID
    org_name: str | None
    status: Status
    lag_seconds: float | None
    watermark: Time | None
    counted_through: Time | None
    last_event_at: Time | None
    last_rollup_at: Time | None


class Caller(Answer):
    """Who asks. ``orgs`` are the caller's own; null: every org is. The role ``admin`` holds every role, and
    reaches every org, too. ``allOrgs``: every org is within the caller's reach."""

    subject: str
    roles: list[str]
    orgs: list[UUID] | None
    all_orgs: bool
    auth_mode: str


class ExportLink(Answer):
    """The link needs no credential until ``expiresAt``: whoever has the link can read the file."""

    url: str
    expires_at: Time


class LiveDropped(Answer):
    """Data of ``event: dropped``, the last one of a connection."""

    reason: str
    detail: str


class OrgName(Answer):
    """The name of an org, null once it is removed."""

    org_id: UUID
    org_name: str | None


class ValueName(Answer):
    """The name of a value or a client, null if it is removed."""

    value: str
    value_name: str | None


class ValueNames(Answer):
    """The names that were set or removed, in the order of the request. All others are as they were."""

    org_id: UUID
    dimension: str
    items: list[ValueName]


class EventOutlook(Answer):
    """Of a valid event: what would become of it if it came now, where that is not ``accepted``."""

    outcome: Literal["too_late", "future"]
    detail: str


class Component(Answer):
    status: Literal["ok", "degraded", "down", "off"]
    detail: str


class Components(Answer):
    database: Component
    redis: Component
    schema: Component


class Readiness(Answer):
    status: Literal["ready", "not_ready"]
    components: Components


def response(answer: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=encode(answer),
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def encode(answer: Any) -> bytes:
    """JSON; times are RFC 3339 with Z."""
    return msgspec.json.encode(answer)
