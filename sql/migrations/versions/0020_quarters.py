"""Quarters of the hours in which a day of a time zone begins off the whole hour: see DAY_ZONES.

The tables are new and empty, so the migration takes no time.
"""

from alembic import op

revision = "0020"
down_revision = "0019"

_FIGURES = """
    invocations bigint NOT NULL,
    successes bigint NOT NULL,
    errors bigint NOT NULL,
    timeouts bigint NOT NULL,
    throttles bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_microcents bigint NOT NULL,
    latency_sum_ms bigint NOT NULL,
    latency_max_ms integer NOT NULL,
    latency_sketch bytea NOT NULL,
    revision integer NOT NULL,
    updated_at timestamptz NOT NULL,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    unestimated bigint NOT NULL DEFAULT 0
"""


def upgrade() -> None:
    op.execute(
        f"""
        CREATE TABLE analytics.usage_quarter (
            org_id uuid NOT NULL,
            bucket_start timestamptz NOT NULL,
            model_id uuid NOT NULL,
            partition smallint NOT NULL,
            {_FIGURES},
            rate_class smallint NOT NULL DEFAULT 0,
            PRIMARY KEY (org_id, bucket_start, model_id, rate_class, partition)
        ) WITH (fillfactor = 50)
        """
    )
    op.execute("CREATE INDEX usage_quarter_bucket_start ON analytics.usage_quarter USING brin (bucket_start)")
    op.execute(
        """
        CREATE TABLE analytics.split_hours (
            partition smallint NOT NULL,
            hour smallint NOT NULL,
            since timestamptz NOT NULL,
            PRIMARY KEY (partition, hour)
        )
        """
    )
