"""The export job: its row, the part of it that is shown, and what an order may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from api.answering import answers
from api.asking import params
from api.asking.bodies import Body
from api.asking.buckets import (
    NO_QUARTERS,
    Calendar,
    Granularity,
    Quarters,
    Span,
    add_days,
    to_datetime,
    to_minute,
)
from api.asking.limits import Limits
from api.asking.params import CLIENT, DIMENSION, GROUP_BY, MODEL, CostBasis
from api.asking.questions import Counted, FiguresQuestion, Pricing, counted, one_dimension, whole_minutes
from pipeline.common.day_zones import zone_names
from pipeline.common.problems import Fault, invalid_parameters
from sql import queries

FORMATS: Final = {
    "csv": "csv",
    "csv-excel": "csv",
    "parquet": "parquet",
    "focus-1.2": "csv",
    "focus-1.3": "csv",
}
"""The ending of the files of each format."""
FOCUS: Final = ("focus-1.2", "focus-1.3")
GRANULARITIES: Final = {
    "hourly": Granularity.HOUR,
    "daily": Granularity.DAY,
    "weekly": Granularity.WEEK,
    "monthly": Granularity.MONTH,
}
NONE: Final = "none"
HOURLY_DAYS_MAX: Final = 31
MODELS_MAX: Final = 100
_OF_SHAPE: Final = ("format", "granularity", "time_zone", "group_by", "dimensions", "models")
"""The columns that jobs and schedules have in common."""
DELIVERIES: Final = ("s3", "download")
INITIATOR_CHARS_MAX: Final = 200
VALUES_MAX: Final = 100
"""How many clients or values of a dimension an order may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a file holds and in which format, without its range.

    ``groups`` are what its rows are by, as in REST: `MODEL`, `CLIENT` or a dimension, `MODEL` and one of
    these, or nothing. ``chosen`` are the values that it is of, each with its dimension; none: all of them.
    """

    format: str
    granularity: str
    zone: ZoneInfo
    groups: frozenset[str]
    chosen: tuple[tuple[str, str], ...]
    models: tuple[UUID, ...]

    @classmethod
    def stored(cls, columns: Mapping[str, Any]) -> Shape:
        """The shape that some columns of a job or a schedule say; `columns` makes them."""
        return cls(
            format=columns["format"],
            granularity=columns["granularity"],
            zone=ZoneInfo(columns["time_zone"]),
            groups=params.group_by([columns["group_by"]]),
            chosen=tuple(sorted(map(params.dimension, columns["dimensions"]))),
            models=tuple(sorted(columns["models"])),
        )

    @property
    def columns(self) -> dict[str, Any]:
        """The values of `_OF_SHAPE`."""
        return {
            "format": self.format,
            "granularity": self.granularity,
            "time_zone": self.zone.key,
            "group_by": self.group_by,
            "dimensions": self.dimensions,
            "models": list(self.models),
        }

    @property
    def calendar(self) -> Calendar:
        return Calendar(GRANULARITIES[self.granularity], self.zone)

    def month_before(self, minute: int) -> Span:
        """The last whole month of the zone that has ended at a minute."""
        months = Calendar(Granularity.MONTH, self.zone)
        end = months.start_of(minute)
        return Span(months.start_of(end - 1), end)

    def month_of(self, minute: int) -> Span:
        """The month of the zone that a minute lies in."""
        months = Calendar(Granularity.MONTH, self.zone)
        return Span(months.start_of(minute), months.end_of(minute))

    def month_name(self, month: Span) -> str:
        """A month of the zone as people write it, such as ``2026-10``."""
        return f"{to_datetime(month.start).astimezone(self.zone):%Y-%m}"

    @property
    def group_by(self) -> str:
        """The groups as an answer shows them: the model comes first."""
        return ",".join(sorted(self.groups, key=lambda name: name != MODEL)) or NONE

    @property
    def dimensions(self) -> list[str]:
        """The chosen values as an answer shows them."""
        return [f"{name}:{value}" for name, value in self.chosen]

    @property
    def by(self) -> str:
        """What the rows of the file are by beside the model: the client, a dimension, or ''.

        Rows of FOCUS have no clients.
        """
        by = "".join(self.groups - {MODEL})
        return "" if by == CLIENT and self.format in FOCUS else by

    @property
    def split_by(self) -> str:
        """What the rows are read by beside the model, because the file is by it or of some values of it."""
        return min({name for name, _ in self.chosen} | ({self.by} - {""}), default="")

    @property
    def dimension(self) -> str:
        """The dimension that the file is by, or of some values of; '' for clients, too."""
        return "" if self.split_by == CLIENT else self.split_by

    def check_dimension(self, known: Sequence[Counted], span: Span | None = None) -> Counted | None:
        """The dimension of the file; None: it has none. It must be set, and must answer for the whole range.

        Raises `Problem` 400 if it does not.
        """
        if not self.dimension:
            return None
        one = counted(known, self.dimension, _DIMENSIONS if self.chosen else GROUP_BY.name)
        if span is not None and (lacking := one.lacking(span, whole=True)):
            raise invalid_parameters([Fault(_field(lacking.field), lacking.message)])
        return one


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of ``export_jobs``, in the order of `COLUMNS`."""

    job_id: UUID
    org_id: UUID
    status: Literal["pending", "running", "succeeded", "failed", "expired"]
    format: str
    granularity: str
    range_start: datetime
    range_end: datetime
    models: Sequence[UUID]
    created_at: datetime
    attempts: int
    completed_at: datetime | None
    expires_at: datetime | None
    created_by: str
    initiated_by: str | None
    request_id: str | None
    traceparent: str | None
    location: str | None
    checksum: str | None
    row_count: int | None
    byte_count: int | None
    watermark: datetime | None
    error: str | None
    price_version: int | None
    cost_basis: CostBasis
    time_zone: str
    group_by: str
    dimensions: Sequence[str]
    org_name: str | None

    @property
    def pricing(self) -> Pricing:
        """How the file is priced: as the book was when the job was made."""
        return Pricing(version=self.price_version, basis=CostBasis(self.cost_basis))

    @property
    def shape(self) -> Shape:
        return Shape.stored({name: getattr(self, name) for name in _OF_SHAPE})

    @property
    def span(self) -> Span:
        return Span(to_minute(self.range_start), to_minute(self.range_end))

    @property
    def is_focus(self) -> bool:
        return self.format in FOCUS

    @property
    def stem(self) -> str:
        """The beginning of the keys of all the job's files in the store."""
        return f"exports/{self.org_id}/{self.job_id}-"

    def key(self, claim: UUID) -> str:
        """The key of one claim's file; no other claim ever writes to it."""
        return f"{self.stem}{claim.hex[:12]}.{FORMATS[self.format]}"

    def same_order(self, order: Order) -> bool:
        """Did this order make the job, or one just like it?"""
        asked = order.pricing
        return asked.version in (None, self.price_version) and (self.shape, self.span, self.cost_basis) == (
            order.shape,
            order.span,
            asked.basis,
        )

    def question(self, quarters: Quarters = NO_QUARTERS) -> FiguresQuestion:
        """The question that the file answers: the usage of each bucket and what the order is by."""
        shape = self.shape
        return FiguresQuestion(
            org_id=self.org_id,
            span=self.span,
            calendar=shape.calendar,
            model_ids=shape.models,
            client_ids=tuple(value for _, value in shape.chosen),
            by_model=MODEL in shape.groups,
            by_client=bool(shape.by),
            limit=0,
            after=None,
            bound_to="",
            pricing=self.pricing,
            dimension=shape.dimension,
            quarters=quarters,
        )

    def final(self, dedupe_window_s: float) -> bool | None:
        """Has the watermark of the file passed the end of the range by the dedupe window? None: no file.

        A bucket of ``/usage`` is final by the same rule.
        """
        if self.status not in ("succeeded", "expired"):
            return None
        window = timedelta(seconds=dedupe_window_s)
        return self.watermark is not None and self.range_end + window <= self.watermark

    def shown(self, uri: Callable[[str], str], dedupe_window_s: float) -> answers.ExportJob:
        """The job as callers see it; ``uri`` makes the name of an object from its key."""
        return answers.ExportJob(
            job_id=self.job_id,
            org_id=self.org_id,
            org_name=self.org_name,
            status=self.status,
            format=self.format,
            granularity=self.granularity,
            time_range=answers.Range(start=self.range_start, end=self.range_end),
            time_zone=self.time_zone,
            group_by=self.group_by,
            dimensions=list(self.dimensions),
            models=list(self.models),
            created_at=self.created_at,
            initiated_by=self.initiated_by or self.created_by,
            request_id=self.request_id,
            completed_at=self.completed_at,
            expires_at=self.expires_at,
            output_uri=uri(self.location) if self.location and self.status == "succeeded" else None,
            checksum=self.checksum,
            row_count=self.row_count,
            byte_count=self.byte_count,
            watermark=self.watermark,
            final=self.final(dedupe_window_s),
            price_version=self.price_version,
            cost_basis=self.pricing.basis.value,
            error=self.error,
        )


COLUMNS: Final = ", ".join((*Job.__slots__[:-1], "{org_name}"))
_SCHEDULED: Final = ", ".join(
    "{org_name}" if name == "org_name" else name
    for name in answers.ExportSchedule.__struct_fields__
    if name not in ("next_month", "next_month_fault", "last_job")
)
_ORG_NAME: Final = (
    "(SELECT n.name FROM analytics.names AS n"
    " WHERE n.org_id = owned.org_id AND n.dimension = '' AND n.value = '') AS org_name"
)
SQL: Final = {
    name: text.replace("{columns}", COLUMNS)
    .replace("{scheduled}", _SCHEDULED)
    .replace("{org_name}", _ORG_NAME)
    for name, text in queries.load("exports").items()
}


def scheduled_shape(row: Mapping[str, Any]) -> Shape | None:
    """The shape of a stored schedule; None: this host does not know its time zone."""
    return Shape.stored(row) if row["time_zone"] in zone_names() else None


def schedule_key(month: str) -> str:
    """The idempotency key of the job of a month."""
    return f"schedule:{month}"


# --- orders --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one file holds, how it is priced, and whom the order names as its initiator."""

    shape: Shape
    span: Span
    pricing: Pricing
    initiated_by: str | None

    def needs_quarters(self, limits: Limits) -> bool:
        """Can the order be filled by rows of quarters alone? Then `check_quarters` must be called."""
        return limits.needs_quarters(self.span, self.shape.calendar, split_by=self.shape.split_by)

    def check_quarters(self, limits: Limits, quarters: Quarters) -> None:
        """Raises `Problem` 400 if the quarters that the database has do not suffice."""
        if lacking := limits.lacking(self.span, self.shape.calendar, split_by="", quarters=quarters):
            raise invalid_parameters([Fault(_field(one.field), one.message) for one in lacking])


_DIMENSIONS: Final = "dimensions"
_SHAPE: Final = ("granularity", "timeZone", GROUP_BY.name, _DIMENSIONS, "format", "models")
_FOCUS_BY: Final = "rows of FOCUS are by model: expected model, or model and client or a dimension"


def schedule(body: bytes, limits: Limits) -> Shape:
    """The shape in a schedule's body. Raises `Problem` 400 with every fault."""
    reader = Body(body, _SHAPE)
    found = _shape(reader)
    limits.check_months(reader.fault, found.zone, split_by=found.split_by)
    reader.finish()
    return found


def order(body: bytes, limits: Limits, *, bucket: str | None = None) -> Order:
    """The order in a job's body. Raises `Problem` 400 with every fault.

    ``bucket`` is the one bucket that files go to; None: they go elsewhere.
    """
    known = ("timeRange", *_SHAPE, "priceVersion", "costBasis", "delivery", "initiatedBy")
    reader = Body(body, known)
    shape = _shape(reader)
    pricing = Pricing(
        version=reader.version("priceVersion"),
        basis=CostBasis(reader.choice("costBasis", tuple(CostBasis), "auto")),
    )
    span = _span(reader, shape, limits)
    _check_delivery(reader, bucket)
    initiated_by = reader.text("initiatedBy", INITIATOR_CHARS_MAX)
    reader.finish()
    assert span is not None
    return Order(shape=shape, span=span, pricing=pricing, initiated_by=initiated_by)


def _check_delivery(reader: Body, bucket: str | None) -> None:
    """A file goes to the server's own place, and to no other; from there it can always be downloaded."""
    given = reader.get("delivery")
    if given is None:
        return
    if not isinstance(given, dict) or not {"type"} <= given.keys() <= {"type", "bucket"}:
        reader.fault("delivery", "expected an object of type and perhaps bucket")
        return
    if given["type"] not in DELIVERIES:
        reader.fault("delivery.type", f"expected one of {', '.join(DELIVERIES)}")
    elif given["type"] == "s3" and bucket is None:
        reader.fault("delivery.type", "this server puts files into no bucket: expected download")
    elif given.get("bucket") is not None and given["bucket"] != bucket:
        # The name of our bucket is no secret: outputUri has it.
        ours = "this server puts files into no bucket" if bucket is None else f"files go to {bucket} alone"
        reader.fault("delivery.bucket", f"{ours}; leave it out")


def _field(name: str) -> str:
    """The field of the body that has what REST calls ``name``."""
    if name == DIMENSION.name:
        return _DIMENSIONS
    return f"timeRange.{name}" if name in ("start", "end") else name


def _shape(reader: Body) -> Shape:
    form = reader.choice("format", tuple(FORMATS), "csv")
    granularity = reader.choice("granularity", tuple(GRANULARITIES), "daily")
    zone = reader.zone("timeZone")
    groups = reader.group_by(GROUP_BY.name)
    chosen = reader.dimensions(_DIMENSIONS, VALUES_MAX)
    models = reader.uuids("models", MODELS_MAX)
    names = {name for name, _ in chosen}
    asked = {GROUP_BY.name: (groups or frozenset()) - {MODEL}, _DIMENSIONS: names}
    one_dimension(reader.fault, asked, GRANULARITIES[granularity])
    if groups is None:  # the finest rows that the file can have
        groups = frozenset((MODEL, min(names, default=CLIENT)))
    elif form in FOCUS and MODEL not in groups:
        reader.fault(GROUP_BY.name, _FOCUS_BY)
    return Shape(format=form, granularity=granularity, zone=zone, groups=groups, chosen=chosen, models=models)


def _span(reader: Body, shape: Shape, limits: Limits) -> Span | None:
    given = reader.get("timeRange")
    if not isinstance(given, dict) or given.keys() != {"start", "end"}:
        reader.fault("timeRange", "is required: an object of start and end")
        return None
    instants = [reader.instant(f"timeRange.{name}", given[name]) for name in ("start", "end")]

    def fault(name: str, message: str) -> None:
        reader.fault(_field(name), message)

    start_us, end_us = instants
    minutes = None if start_us is None or end_us is None else whole_minutes(fault, start_us, end_us)
    if minutes is None:
        return None
    start, end = minutes
    span = limits.span(fault, start, end, shape.zone)
    if span is None:
        return None
    if shape.granularity == "hourly" and end > add_days(start, HOURLY_DAYS_MAX, shape.zone):
        fault("end", f"must be at most {HOURLY_DAYS_MAX} days after start for hourly")
    for lacking in limits.lacking(span, shape.calendar, split_by=shape.split_by):
        fault(lacking.field, lacking.message)
    return span
