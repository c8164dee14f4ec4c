"""The export job: its row, the part of it that is shown, and what an order may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from api.answering import answers
from api.answering.problems import invalid_parameters
from api.asking.bodies import Body
from api.asking.buckets import (
    DAY,
    UTC_ZONE,
    Calendar,
    Granularity,
    Span,
    add_months,
    to_datetime,
    to_minute,
)
from api.asking.params import CostBasis
from api.asking.questions import FiguresQuestion, Pricing
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
GRANULARITIES: Final = {"hourly": Granularity.HOUR, "daily": Granularity.DAY, "monthly": Granularity.MONTH}
HOURLY_DAYS_MAX: Final = 31
MODELS_MAX: Final = 100


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
    location: str | None
    checksum: str | None
    row_count: int | None
    byte_count: int | None
    watermark: datetime | None
    error: str | None
    price_version: int | None
    cost_basis: CostBasis
    org_name: str | None

    @property
    def pricing(self) -> Pricing:
        """How the file is priced: as the book was when the job was made."""
        return Pricing(version=self.price_version, basis=CostBasis(self.cost_basis))

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
        return asked.version in (None, self.price_version) and (
            self.format,
            self.granularity,
            self.range_start,
            self.range_end,
            set(self.models),
            self.cost_basis,
        ) == (
            order.format,
            order.granularity,
            to_datetime(order.span.start),
            to_datetime(order.span.end),
            set(order.models),
            asked.basis,
        )

    def question(self) -> FiguresQuestion:
        """The question that the file answers: the usage of each bucket, model and, but for FOCUS, client."""
        return FiguresQuestion(
            org_id=self.org_id,
            span=Span(to_minute(self.range_start), to_minute(self.range_end)),
            calendar=Calendar(GRANULARITIES[self.granularity], UTC_ZONE),
            model_ids=tuple(self.models),
            client_ids=(),
            by_model=True,
            by_client=not self.is_focus,
            limit=0,
            after=None,
            bound_to="",
            pricing=self.pricing,
        )

    def shown(self, uri: Callable[[str], str]) -> answers.ExportJob:
        """The job as callers see it; ``uri`` makes the name of an object from its key."""
        return answers.ExportJob(
            job_id=self.job_id,
            org_id=self.org_id,
            org_name=self.org_name,
            status=self.status,
            format=self.format,
            granularity=self.granularity,
            time_range=answers.Range(start=self.range_start, end=self.range_end),
            models=list(self.models),
            created_at=self.created_at,
            completed_at=self.completed_at,
            expires_at=self.expires_at,
            output_uri=uri(self.location) if self.location and self.status == "succeeded" else None,
            checksum=self.checksum,
            row_count=self.row_count,
            byte_count=self.byte_count,
            watermark=self.watermark,
            price_version=self.price_version,
            cost_basis=self.pricing.basis.value,
            error=self.error,
        )


COLUMNS: Final = ", ".join((*Job.__slots__[:-1], "{org_name}"))
_ORG_NAME: Final = (
    "(SELECT n.name FROM analytics.names AS n"
    " WHERE n.org_id = owned.org_id AND n.dimension = '' AND n.value = '') AS org_name"
)
SQL: Final = {
    name: text.replace("{columns}", COLUMNS).replace("{org_name}", _ORG_NAME)
    for name, text in queries.load("exports").items()
}


# --- orders --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a file holds and in which format, without its range."""

    format: str
    granularity: str
    models: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Shape):
    """What one file holds, and how it is priced."""

    span: Span
    pricing: Pricing


def shape(body: bytes) -> Shape:
    """The shape in a schedule's body. Raises `Problem` 400 with every fault."""
    reader = Body(body, ("granularity", "format", "models"))
    found = Shape(
        format=reader.choice("format", tuple(FORMATS), "csv"),
        granularity=reader.choice("granularity", ("daily", "monthly", "hourly"), "daily"),
        models=reader.uuids("models", MODELS_MAX),
    )
    if reader.faults:
        raise invalid_parameters(reader.faults)
    return found


def order(body: bytes, *, oldest: int, months_max: int) -> Order:
    """The order in a job's body. Raises `Problem` 400 with every fault.

    ``oldest`` is the first minute whose rows are kept.
    """
    reader = Body(body, ("timeRange", "granularity", "format", "models", "priceVersion", "costBasis"))
    granularity = reader.choice("granularity", tuple(GRANULARITIES), "daily")
    form = reader.choice("format", tuple(FORMATS), "csv")
    models = reader.uuids("models", MODELS_MAX)
    pricing = Pricing(
        version=reader.version("priceVersion"),
        basis=CostBasis(reader.choice("costBasis", tuple(CostBasis), "auto")),
    )
    span = _span(reader, granularity, oldest, months_max)
    if reader.faults or span is None:
        raise invalid_parameters(reader.faults)
    return Order(format=form, granularity=granularity, models=models, span=span, pricing=pricing)


def _span(reader: Body, granularity: str, oldest: int, months_max: int) -> Span | None:
    given = reader.get("timeRange")
    if not isinstance(given, dict) or given.keys() != {"start", "end"}:
        reader.fault("timeRange", "is required: an object of start and end")
        return None
    start, end = (reader.hour(f"timeRange.{name}", given[name]) for name in ("start", "end"))
    if start is None or end is None:
        return None
    if end <= start:
        reader.fault("timeRange.end", "must be after start")
        return None
    try:
        latest = add_months(start, months_max, UTC_ZONE)
    except (ValueError, OverflowError):
        reader.fault("timeRange.start", "is beyond the calendar")
        return None
    if granularity == "hourly":
        if end - start > HOURLY_DAYS_MAX * DAY:
            reader.fault("timeRange.end", f"must be at most {HOURLY_DAYS_MAX} days after start for hourly")
    elif end > latest:
        reader.fault("timeRange.end", f"must be at most {months_max} months after start")
    if start < oldest:
        shown = to_datetime(oldest).strftime("%Y-%m-%dT%H:%MZ")
        reader.fault("timeRange.start", f"rows go back to {shown} only (RETENTION_ROLLUP)")
    return Span(start, end)
