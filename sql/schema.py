"""The tables of the schema ``analytics``, as SQLAlchemy sees them.

A test compares these tables with the tables that the migrations make
(``tests/integration/test_migrations.py``), so the two cannot drift apart. Times are timestamptz. Money is
integer microcents (10^-6 cents). A sketch is the bytes of `pipeline.core.sketches`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

SCHEMA = "analytics"
HEAD: Final = "0028"
"""The revision that this code needs. Revisions are texts of four digits, so the later one is the greater."""
metadata = MetaData(schema=SCHEMA)
views = MetaData(schema=SCHEMA)


def _timestamp(name: str, *, primary_key: bool = False, nullable: bool = False) -> Column:  # type: ignore[type-arg]
    return Column(name, DateTime(timezone=True), primary_key=primary_key, nullable=nullable)


def _measures() -> list[Column]:  # type: ignore[type-arg]
    """The measures of every rollup row.

    ``revision`` counts the late events that the bucket has taken in. The kinds of tokens are parts of the
    input and output tokens. ``unestimated`` counts the calls without an estimate; the cost is the sum of the
    others.
    """
    return [
        Column("invocations", BigInteger, nullable=False),
        Column("successes", BigInteger, nullable=False),
        Column("errors", BigInteger, nullable=False),
        Column("timeouts", BigInteger, nullable=False),
        Column("throttles", BigInteger, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_microcents", BigInteger, nullable=False),
        Column("latency_sum_ms", BigInteger, nullable=False),
        Column("latency_max_ms", Integer, nullable=False),
        Column("latency_sketch", LargeBinary, nullable=False),
        Column("revision", Integer, nullable=False),
        _timestamp("updated_at"),
        *(
            Column(name, BigInteger, nullable=False, server_default=text("0"))
            for name in (
                "cache_read_tokens",
                "cache_write_tokens",
                "cache_write_1h_tokens",
                "reasoning_tokens",
                "unestimated",
            )
        ),
    ]


def _rate_class() -> Column:  # type: ignore[type-arg]
    return Column("rate_class", SmallInteger, nullable=False, server_default=text("0"))


def _rollup(name: str, *texts: str) -> Table:
    """A table of rollup rows. ``texts`` are the columns of its key beside org, bucket, model and class."""
    first, last = texts[:-1], texts[-1:]
    key = ("org_id", *first, "bucket_start", "model_id", *last, "rate_class", "partition")
    return Table(
        name,
        metadata,
        Column("org_id", Uuid),
        *(Column(text, Text) for text in first),
        _timestamp("bucket_start"),
        Column("model_id", Uuid),
        *(Column(text, Text) for text in last),
        Column("partition", SmallInteger, autoincrement=False),
        *_measures(),
        _rate_class(),
        PrimaryKeyConstraint(*key),
        Index(f"{name}_bucket_start", "bucket_start", postgresql_using="brin"),
        postgresql_with={"fillfactor": "50"},
    )


rate_classes = Table(
    "rate_classes",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("service_tier", Text, nullable=False),
    Column("input_from", BigInteger, nullable=False),
    Column("input_to", BigInteger, nullable=True),
    UniqueConstraint(
        "service_tier",
        "input_from",
        "input_to",
        name="rate_classes_meaning",
        postgresql_nulls_not_distinct=True,
    ),
)
"""The meaning of each ``rate_class``: a service tier, and the input tokens of a call. ``input_to`` is the
last number of a range, or null if the range has no end. Class 0 is ``standard`` with any number, which all
rows from before have. Workers add the classes that CONTEXT_TIERS makes. No class is ever changed."""

prices = Table(
    "prices",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("service_tier", Text, nullable=False),
    Column("context_from", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("rate", Numeric, nullable=True),
    _timestamp("valid_from"),
    _timestamp("valid_to", nullable=True),
    Column("org_id", Uuid, nullable=True),
    Column("source", Text, nullable=False),
    Column("basis", Text, nullable=False),
    Column("recorded_by", Text, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("retracts", BigInteger, ForeignKey("analytics.prices.id"), nullable=True),
    UniqueConstraint("retracts", name="prices_retracts"),
    Index("prices_of_model", "provider", "model_name"),
)
"""The price book. A trigger makes every UPDATE, DELETE and TRUNCATE fail. The greatest ``id`` is the version.

A row is the price of one ``kind`` from an hour on, or it ``retracts`` an earlier row. ``rate`` is in US
dollars for a million tokens. For the kind ``request`` it is in US dollars for a call, and for ``discount`` it
is a percentage. A price holds for calls with ``context_from`` input tokens or more. ``org_id`` is null if the
price holds for everyone. A discount belongs to an org, and '' as its provider or model means all of them.
"""

price_sheets = Table(
    "price_sheets",
    metadata,
    Column("org_id", Uuid, nullable=True),
    Column("provider", Text, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("service_tier", Text, nullable=False),
    Column("context_from", BigInteger, nullable=False),
    Column("context_to", BigInteger, nullable=True),
    _timestamp("valid_from"),
    _timestamp("valid_to", nullable=True),
    *(
        Column(kind, Numeric, nullable=False)
        for kind in (
            "input",
            "output",
            "cache_read",
            "cache_write",
            "cache_write_1h",
            "reasoning",
            "request",
        )
    ),
    UniqueConstraint(
        "provider",
        "model_name",
        "service_tier",
        "org_id",
        "context_from",
        "valid_from",
        name="price_sheets_key",
        postgresql_nulls_not_distinct=True,
    ),
)
"""The rates of the newest version of the book, worked out: exactly one sheet covers a call that is priced.

A sheet holds for ``context_from`` input tokens up to, but not including, ``context_to``, and for the hours
from ``valid_from`` up to ``valid_to`` (null: no end). An org has sheets of a model only where it has prices
of its own or a discount. These take the place of all sheets of everyone for that model. A trigger of
``prices`` rewrites the sheets that a new row changes. ``analytics.price_sheets_at`` gives the sheets of any
version.
"""


def _spend(name: str) -> Table:
    return Table(
        name,
        views,
        Column("org_id", Uuid),
        _timestamp("bucket_start"),
        Column("model_id", Uuid),
        Column("provider", Text),
        Column("model_name", Text),
        Column("service_tier", Text),
        Column("rate_class", SmallInteger),
        *(
            Column(figure, Numeric)
            for figure in (
                "invocations",
                "successes",
                "errors",
                "timeouts",
                "throttles",
                "input_tokens",
                "output_tokens",
                "cache_read_tokens",
                "cache_write_tokens",
                "cache_write_1h_tokens",
                "reasoning_tokens",
                "unestimated",
                "latency_sum_ms",
            )
        ),
        Column("latency_max_ms", Integer),
        Column("cost", Numeric, nullable=True),
        Column("basis", Text),
        Column("unpriced", Numeric),
        Column("estimate", Numeric, nullable=True),
        Column("org_name", Text, nullable=True),
    )


spend_hour = _spend("spend_hour")
"""A view: the figures of `usage_hour`, summed over partitions, with names and what they cost.

``cost`` is in exact US dollars at the newest version of the book. ``basis`` says where the cost comes from:
``book``, ``estimate`` or ``none`` (then the cost is null). ``unpriced`` counts the calls whose cost neither
book nor estimate knows. ``estimate`` is what the producers reported, in US dollars; null if none did.
"""
spend_day = _spend("spend_day")
"""A view: the same by day of UTC. A day in which a price changes is the sum of its hours. ``basis`` is
``mixed``
if the book prices some of these hours and the estimate others."""

usage_minute = _rollup("usage_minute")
usage_hour = _rollup("usage_hour")
usage_quarter = _rollup("usage_quarter")
"""Quarters of the hours of ``split_hours``, for days of time zones that begin off the hour (DAY_ZONES)."""
usage_day = _rollup("usage_day")
client_hour = _rollup("client_hour", "client_id")
"""``client_id`` is '' for events without a client, and `wire.OVERFLOW_CLIENT` for clients beyond
CLIENTS_PER_ORG_HOUR_MAX. In rows that version 0.1.0 wrote, ``other`` may be a client of that name, or the
clients beyond the cap."""
client_day = _rollup("client_day", "client_id")

breakdown_hour = _rollup("breakdown_hour", "dimension", "value")
"""The same by the value of a dimension in place of the client, for each dimension that DIMENSIONS sets.

``value`` is '' for events without a value, and `wire.OVERFLOW_VALUE` for values beyond
VALUES_PER_ORG_HOUR_MAX and for values that are too long to be kept. The rows of hours before
``dimensions.since`` do not have all events."""
breakdown_day = _rollup("breakdown_day", "dimension", "value")

dimensions = Table(
    "dimensions",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("source", Text, nullable=False),
    _timestamp("since"),
)
"""The dimensions that the owner of each partition counts. The rows of an hour are complete from ``since`` on.

``source`` is the part of an event that has the values. A worker that claims a partition writes these rows
from its DIMENSIONS. ``since`` is 1970 if the partition has never counted an event without the dimension."""

split_hours = Table(
    "split_hours",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("hour", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("since"),
)
"""The hours of the day (UTC, 0 to 23) that the owner of each partition counts by the quarter, too.

The quarters of such an hour are complete from ``since`` on. A worker that claims a partition writes these
rows from its DAY_ZONES, as it does those of ``dimensions``."""

usage_errors_hour = Table(
    "usage_errors_hour",
    metadata,
    Column("org_id", Uuid),
    _timestamp("bucket_start"),
    Column("model_id", Uuid),
    Column("client_id", Text),
    Column("status", SmallInteger, autoincrement=False),
    Column("error_code", Text),
    Column("partition", SmallInteger, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    _rate_class(),
    PrimaryKeyConstraint(
        "org_id", "bucket_start", "model_id", "client_id", "status", "error_code", "rate_class", "partition"
    ),
    Index("usage_errors_hour_bucket_start", "bucket_start", postgresql_using="brin"),
    postgresql_with={"fillfactor": "50"},
)
"""Failed events by hour. ``status`` is 1 error, 2 timeout, 3 throttled; ``error_code`` '' if none."""

partitions = Table(
    "partitions",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("stream", Text, nullable=False, unique=True),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("committed_offset", BigInteger, nullable=False, server_default=text("0")),
    _timestamp("watermark", nullable=True),
    _timestamp("max_event_time", nullable=True),
    _timestamp("broker_time", nullable=True),
    Column("offered", BigInteger, nullable=False, server_default=text("0")),
    Column("accepted", BigInteger, nullable=False, server_default=text("0")),
    Column("duplicate", BigInteger, nullable=False, server_default=text("0")),
    Column("rejected", BigInteger, nullable=False, server_default=text("0")),
    Column("caught_up", Boolean, nullable=False, server_default=text("false")),
    _timestamp("updated_at"),
    Column("replays", BigInteger, nullable=False, server_default=text("0")),
    _timestamp("ids_from", nullable=True),
    _timestamp("retired_at", nullable=True),
    _timestamp("newest_broker_time", nullable=True),
    Column("consumer", Text),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("trying_from", BigInteger),
    Column("trying_to", BigInteger),
    _timestamp("archive_from", nullable=True),
    Column("counted_by_dimensions", BigInteger, nullable=False, server_default=text("0")),
    _timestamp("counted_through", nullable=True),
    postgresql_with={"fillfactor": "50"},
)
"""One row for each partition. A flush begins with a compare-and-set of this row.

``partition`` is the small number in every rollup key. Each ``stream`` gets its number once, so two streams
never share rows. A partition of a super stream is a stream of its own.

``committed_offset`` is the next offset to read. ``replays`` counts the settled replays: a flush of replays
alone does not move the offset, and this count tells it from its repeat. Always offered = accepted + duplicate
+ rejected. A dead letter that is replayed moves from ``rejected`` to ``accepted`` or ``duplicate``.

``watermark`` is null until the first event, or until the partition has caught up for the first time.
``broker_time`` is the broker time of the last chunk. ``newest_broker_time`` is the newest broker time, so it
never goes back; it is null in a row that version 0.1.0 wrote last. ``newest_broker_time`` less the dedupe
window is the floor of `pipeline.core.judge.Judge`. ``ids_from`` is the hour after the last hour whose ids
maintenance has dropped, and null if it has dropped none. Since ``retired_at``, no more events are expected of
the stream.

``counted_by_dimensions`` is ``accepted`` as the last worker wrote it that knew of dimensions. If an older
worker has counted since then, the two differ, and the dimensions have a gap.

``counted_through``: every event that the broker had stored before this time is in the rows, a dead letter or
a duplicate. It is null until the first flush of a worker that knows it.

``consumer`` is the consumer group that reads the stream. ``crashes`` is the number of workers in a row that
claimed the partition, and then neither let it go nor passed the place of the crash. While a worker looks for
the record at fault, it takes in the offsets from ``trying_from`` up to ``trying_to``.
"""

skips = Table(
    "skips",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("actor", Text, nullable=False),
    _timestamp("skipped_at"),
)
"""Records that an operator has skipped: the worker makes each a dead letter without reading it."""

partition_watermarks = Table(
    "partition_watermarks",
    MetaData(schema=SCHEMA),
    Column("partition", SmallInteger),
    _timestamp("watermark", nullable=True),
    _timestamp("retired_at", nullable=True),
    _timestamp("counted_through", nullable=True),
)
"""A view: the times up to which each partition is complete, and counted. A retired one is as complete as
the slowest of the others."""

dedupe_ids = Table(
    "dedupe_ids",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("hour", primary_key=True),
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("ids", LargeBinary, nullable=False),
)
"""The accepted event ids, by hour of event time. ``segment`` is the offset that the flush committed."""

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("stream", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("faults", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=True),
    _timestamp("rejected_at"),
    _timestamp("broker_time", nullable=True),
    Column("records", Integer, nullable=False, server_default=text("1")),
    Column("body_bytes", BigInteger, nullable=True),
    Column("body_sha256", LargeBinary, nullable=True),
)
"""Rejected events with their original bytes. In a flood the bytes are null, and only the stream has them.

A batch that cannot be unpacked is one row for all its ``records``, from ``offset`` on, with the bytes of the
batch. If only the beginning of a body is kept, ``body_bytes`` and ``body_sha256`` are the length and digest
of the whole body.

``rejected_at`` is the broker time of the flush's last chunk. ``broker_time`` is the broker time of the
event's own chunk.
"""

replays = Table(
    "replays",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("run", Uuid, nullable=False),
    _timestamp("requested_at"),
    _timestamp("broker_time"),
    Column("evidence", Text, nullable=False),
    Column("body", LargeBinary, nullable=True),
    _timestamp("settled_at", nullable=True),
    Column("outcome", Text, nullable=True),
    Column("at_offset", BigInteger, nullable=True),
    Column("org_id", Uuid, nullable=True),
    Column("event_id", Uuid, nullable=True),
    Column("payload_check", BigInteger, nullable=True),
    _timestamp("absent_to", nullable=True),
    Index(
        "replays_waiting",
        "partition",
        "requested_at",
        "offset",
        "position",
        postgresql_where=text("settled_at IS NULL"),
    ),
    Index(
        "replays_counted",
        "partition",
        "org_id",
        "event_id",
        unique=True,
        postgresql_where=text("outcome = 'accepted'"),
    ),
    Index("replays_run", "run"),
)
"""Requested replays of dead letters, with the same key as the letters; outcomes: see `pipeline.core.replay`.

The command asks for a replay, and the worker that owns the partition settles it in a flush. ``body`` has the
bytes only if the letter lacks them, and only until the replay is settled. ``at_offset`` is the offset up to
which the stream had been read then. ``absent_to``: the archive has all events of every hour before this time
that could hold the id, and does not have the event.

A row with the outcome ``accepted`` keeps the event's id for as long as rollups are kept, also when the letter
is gone. So a second letter of the same event does not count again.
"""

orgs_seen = Table(
    "orgs_seen",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("first_event_at"),
    _timestamp("last_event_at"),
    _timestamp("last_rollup_at"),
    postgresql_with={"fillfactor": "50"},
)

models_seen = Table(
    "models_seen",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("model_id", Uuid, primary_key=True),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("first_event_at"),
    _timestamp("last_event_at"),
    _timestamp("last_rollup_at"),
    Column("labelled_at", DateTime(timezone=True), nullable=False, server_default=text("'epoch'")),
    Column("provider", Text, nullable=False, server_default=text("''")),
    Column("model_name", Text, nullable=False, server_default=text("''")),
    postgresql_with={"fillfactor": "50"},
)
"""``provider`` and ``model_name`` are those of the newest event that has one of the two. ``labelled_at`` is
the time of that event, and 1970 if there is none."""

clients_seen = Table(
    "clients_seen",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("client_id", Text, primary_key=True),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("first_event_at"),
    _timestamp("last_event_at"),
    _timestamp("last_rollup_at"),
    postgresql_with={"fillfactor": "50"},
)

values_seen = Table(
    "values_seen",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    _timestamp("first_event_at"),
    _timestamp("last_event_at"),
    _timestamp("last_rollup_at"),
    postgresql_with={"fillfactor": "50"},
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _timestamp("at"),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("org_id", Uuid, nullable=True),
    Column("outcome", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Index("audit_log_at", "at"),
)
"""The decisions about callers, and the commands of operators. Callers: every denial (at most one row a minute
for each caller), every granted read across orgs, and every granted write."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("org_id", Uuid, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    Column("label", Text, nullable=False),
    _timestamp("created_at"),
    _timestamp("expires_at", nullable=True),
    _timestamp("revoked_at", nullable=True),
    _timestamp("last_used_at", nullable=True),
    Index("api_keys_org_id", "org_id"),
)
"""The API's keys (`pipeline.common.keys`). ``digest`` is a keyed hash. ``last_used_at``: right to an hour."""

export_jobs = Table(
    "export_jobs",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("status", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("granularity", Text, nullable=False),
    _timestamp("range_start"),
    _timestamp("range_end"),
    Column("models", ARRAY(Uuid), nullable=False),
    Column("idempotency_key", Text, nullable=True),
    Column("created_by", Text, nullable=False),
    _timestamp("created_at"),
    Column("attempts", Integer, nullable=False),
    Column("claim", Uuid, nullable=True),
    _timestamp("lease_until", nullable=True),
    _timestamp("completed_at", nullable=True),
    _timestamp("expires_at", nullable=True),
    Column("location", Text, nullable=True),
    Column("checksum", Text, nullable=True),
    Column("row_count", BigInteger, nullable=True),
    Column("byte_count", BigInteger, nullable=True),
    _timestamp("watermark", nullable=True),
    Column("error", Text, nullable=True),
    Column("price_version", BigInteger, nullable=True),
    Column("cost_basis", Text, nullable=False, server_default=text("'auto'")),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'")),
    Column("group_by", Text, nullable=False, server_default=text("'model,client'")),
    Column("dimensions", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("initiated_by", Text, nullable=True),
    Column("request_id", Text, nullable=True),
    Column("traceparent", Text, nullable=True),
    UniqueConstraint("org_id", "idempotency_key", name="export_jobs_idempotency"),
    Index("export_jobs_of_org", "org_id", "created_at", "job_id"),
    Index("export_jobs_open", "created_at", postgresql_where=text("status IN ('pending', 'running')")),
    Index("export_jobs_expiry", "expires_at", postgresql_where=text("status = 'succeeded'")),
)
"""``status`` is pending, running, succeeded, failed or expired. A runner holds a job by ``claim`` until
``lease_until``. ``location`` is the object's key in the store. ``price_version`` is the version of the price
book that the file is priced at; null in jobs from before there was a book. ``time_zone`` is the IANA name of
the zone whose days, weeks and months the file has. ``dimensions`` are the clients or the values of a
dimension that the file is of, such as ``team:search``; empty for all. ``initiated_by`` is whom the order
names; null for nobody but ``created_by``. ``request_id`` and ``traceparent`` are those of the request that
ordered the file; null in jobs of a schedule."""

export_schedules = Table(
    "export_schedules",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("format", Text, nullable=False),
    Column("granularity", Text, nullable=False),
    Column("models", ARRAY(Uuid), nullable=False),
    Column("created_by", Text, nullable=False),
    _timestamp("created_at"),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'")),
    Column("group_by", Text, nullable=False, server_default=text("'model,client'")),
    Column("dimensions", ARRAY(Text), nullable=False, server_default=text("'{}'")),
)
"""The orgs that get an export of each month of a time zone, as soon as the figures of the month are final."""

adjustments = Table(
    "adjustments",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", Numeric, nullable=True),
    _timestamp("period_start"),
    _timestamp("period_end"),
    Column("reason", Text, nullable=False),
    Column("recorded_by", Text, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("retracts", BigInteger, ForeignKey("analytics.adjustments.id"), nullable=True),
    Column("idempotency_key", Text, nullable=True),
    UniqueConstraint("retracts", name="adjustments_retracts"),
    UniqueConstraint("org_id", "idempotency_key", name="adjustments_idempotency"),
    Index("adjustments_of_org", "org_id", "period_start"),
)
"""Credits, refunds and corrections of what an org pays (`pipeline.common.adjustments`). A trigger makes every
UPDATE, DELETE and TRUNCATE fail.

``amount`` is added to what the org pays, in US dollars. A row with ``retracts`` has no amount, and takes an
earlier row back. The view ``effective_adjustments`` has the rows that nothing retracts.
"""

effective_adjustments = Table(
    "effective_adjustments",
    views,
    *(
        Column(column.name, column.type)
        for column in adjustments.columns
        if column.name not in ("retracts", "idempotency_key")
    ),
)
"""A view: the adjustments that no row retracts."""

names = Table(
    "names",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("set_by", Text, nullable=False),
    _timestamp("set_at"),
)
"""The names that administrators give to values of dimensions (`pipeline.common.names`). The name of an org
itself has the dimension '' and the value ''."""

budgets = Table(
    "budgets",
    metadata,
    Column("budget_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("version", Integer, nullable=False),
    Column("definition", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("model_id", Uuid, nullable=True),
    Column("dimension", Text, nullable=True),
    Column("value", Text, nullable=True),
    Column("metric", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("amount", Numeric, nullable=False),
    Column("thresholds", JSONB, nullable=False),
    Column("created_by", Text, nullable=False),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    _timestamp("judged_from"),
    _timestamp("closed_to", nullable=True),
    _timestamp("deleted_at", nullable=True),
    Column("idempotency_key", Text, nullable=True),
    UniqueConstraint("org_id", "idempotency_key", name="budgets_idempotency"),
    Index("budgets_of_org", "org_id", "budget_id"),
)
"""What an org means to spend in each period (`api.budgets.rules`). Every change raises ``version``, and a
change of the scope, metric, period or time zone also ``definition``.

``amount`` is in US dollars, tokens or requests. The periods from the one that holds ``judged_from`` on are
judged, but for those that end by ``closed_to``: their figures were final when they were judged last.
"""

budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("alert_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("budget_id", Uuid, ForeignKey("analytics.budgets.budget_id"), nullable=False),
    Column("definition", Integer, nullable=False),
    Column("model_id", Uuid, nullable=True),
    Column("dimension", Text, nullable=True),
    Column("value", Text, nullable=True),
    Column("metric", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    _timestamp("period_start"),
    Column("basis", Text, nullable=False),
    Column("level", Numeric, nullable=False),
    _timestamp("period_end"),
    Column("state", Text, nullable=False),
    Column("budget_version", Integer, nullable=False),
    Column("price_version", BigInteger, nullable=False),
    Column("threshold", JSONB, nullable=False),
    Column("amount", Numeric, nullable=False),
    Column("spent", Numeric, nullable=False),
    Column("forecast", Numeric, nullable=True),
    Column("unpriced", BigInteger, nullable=False),
    _timestamp("watermark", nullable=True),
    Column("final", Boolean, nullable=False),
    _timestamp("crossed_at"),
    _timestamp("judged_at"),
    _timestamp("resolved_at", nullable=True),
    Column("resolved_because", Text, nullable=True),
    Column("resolved_spent", Numeric, nullable=True),
    _timestamp("resolved_watermark", nullable=True),
    UniqueConstraint("budget_id", "definition", "period_start", "basis", "level", name="budget_alerts_once"),
    Index("budget_alerts_of_org", "org_id", "judged_at", "alert_id"),
)
"""The thresholds that were crossed, each once a definition of the budget and period. A threshold without a
row is ok. ``definition`` and the six columns after it say what the budget counted when the alert was judged.

``level`` is what the threshold comes to, and ``spent`` and ``forecast`` are what was judged: in US dollars,
tokens or requests. ``state`` is alarm or resolved. The figures are those of the snapshot in which the alert
was committed, with its watermark and price version.
"""

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("shown_url", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_because", Text, nullable=True),
    _timestamp("failing_since", nullable=True),
    _timestamp("last_success_at", nullable=True),
    Column("created_by", Text, nullable=False),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    Column("idempotency_key", Text, nullable=True),
    UniqueConstraint("org_id", "idempotency_key", name="webhooks_idempotency"),
    Index("webhooks_of_org", "org_id", "webhook_id"),
)
"""Where an org is told of alerts. ``sealed`` are the URL and the secrets, encrypted (`api.webhooks.sealed`).

``disabled_because`` is ``gone`` (the endpoint answered 410) or ``asked``; null while the webhook is enabled.
``failing_since`` is null after an attempt that succeeded.
"""

notices = Table(
    "notices",
    metadata,
    Column("org_id", Uuid, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("unusual_enabled", Boolean, nullable=False),
    Column("unusual_factor", Numeric, nullable=False),
    Column("unusual_minimum", Numeric, nullable=False),
    _timestamp("unusual_since"),
    _timestamp("unusual_to", nullable=True),
    Column("summary_enabled", Boolean, nullable=False),
    Column("summary_zone", Text, nullable=False),
    _timestamp("summary_since"),
    _timestamp("summary_to", nullable=True),
    Column("set_by", Text, nullable=False),
    _timestamp("updated_at"),
)
"""Which notices an org asks for (`api.notices.rules`). Every change raises ``version``.

``unusual_minimum`` is in US dollars. Hours from the one that holds ``unusual_since`` on are judged, and those
that end by ``unusual_to`` were judged before. The days from the one that holds ``summary_since`` on have
summaries, and those that end by ``summary_to`` had theirs.
"""

notices_sent = Table(
    "notices_sent",
    metadata,
    Column("notice_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("period", Text, nullable=False),
    _timestamp("period_start"),
    _timestamp("period_end"),
    _timestamp("watermark"),
    Column("final", Boolean, nullable=False),
    Column("price_version", BigInteger, nullable=False),
    Column("figures", JSONB, nullable=False),
    _timestamp("noticed_at"),
    UniqueConstraint("org_id", "kind", "period", name="notices_sent_once"),
    Index("notices_sent_of_org", "org_id", "noticed_at", "notice_id"),
    Index("notices_sent_age", "noticed_at"),
)
"""The notices of orgs, each once. ``kind`` is spend.unusual or spend.daily. ``period`` names the hour of UTC
or the day. ``figures`` are what was read in the snapshot in which the notice was committed, as JSON."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("delivery_id", Uuid, primary_key=True),
    Column("org_id", Uuid, nullable=False),
    Column(
        "webhook_id", Uuid, ForeignKey("analytics.webhooks.webhook_id", ondelete="CASCADE"), nullable=False
    ),
    Column("alert_id", Uuid, ForeignKey("analytics.budget_alerts.alert_id"), nullable=True),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    _timestamp("next_at"),
    Column("claim", Uuid, nullable=True),
    _timestamp("lease_until", nullable=True),
    Column("last_status", Integer, nullable=True),
    Column("last_error", Text, nullable=True),
    _timestamp("last_attempt_at", nullable=True),
    _timestamp("delivered_at", nullable=True),
    _timestamp("created_at"),
    Column(
        "notice_id", Uuid, ForeignKey("analytics.notices_sent.notice_id", ondelete="CASCADE"), nullable=True
    ),
    UniqueConstraint("notice_id", "webhook_id", name="webhook_deliveries_notice"),
    UniqueConstraint("alert_id", "kind", "webhook_id", name="webhook_deliveries_once"),
    Index("webhook_deliveries_of_webhook", "webhook_id", "created_at", "delivery_id"),
    Index("webhook_deliveries_due", "webhook_id", "next_at", postgresql_where=text("status = 'pending'")),
    Index("webhook_deliveries_age", "created_at"),
)
"""The outbox of webhooks. ``status`` is pending, delivered or failed. A sender holds a delivery by ``claim``
until ``lease_until``. A delivery is of an alert or of a notice; of neither if it is a test."""

archive_outbox = Table(
    "archive_outbox",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("accepted_from", BigInteger, primary_key=True, autoincrement=False),
    Column("row_count", BigInteger, nullable=False),
    Column("byte_count", BigInteger, nullable=False),
    _timestamp("complete_from", nullable=True),
    _timestamp("complete_to"),
    Column("cut", BigInteger, nullable=True),
    _timestamp("flushed_at"),
    Column("events", LargeBinary, nullable=False),
)
"""The accepted events of one flush (`pipeline.sink.event_columns`) on their way to the archive.

A partition's accepted events have numbers from 0 on, as ``partitions.accepted`` counts them. A row holds
``row_count`` events from the number ``accepted_from`` on. ``cut`` is the number at which the row's files will
end; null until that is settled.

Rows whose numbers touch are complete together. If a row has no row before it, the archive is complete only
for buckets that begin after its ``complete_from`` (null: for all buckets). If a row has no row after it, the
archive is complete only for buckets that end by its ``complete_to``.
"""

archive_files = Table(
    "archive_files",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("accepted_from", BigInteger, primary_key=True, autoincrement=False),
    _timestamp("hour", primary_key=True),
    Column("accepted_to", BigInteger, nullable=False),
    Column("path", Text, nullable=False),
    Column("from_offset", BigInteger, nullable=False),
    Column("to_offset", BigInteger, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("byte_count", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    _timestamp("archived_at"),
    UniqueConstraint("path", name="archive_files_path"),
    Index("archive_files_hour", "hour"),
)
"""The manifest: a file is part of the archive exactly if it is listed here. A file has one hour of events."""

archive_spans = Table(
    "archive_spans",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("accepted_from", BigInteger, primary_key=True, autoincrement=False),
    Column("accepted_to", BigInteger, nullable=False),
    _timestamp("complete_from", nullable=True),
    _timestamp("complete_to"),
)
"""The spans of accepted events that the files hold, without holes. The columns: see ``archive_outbox``."""
