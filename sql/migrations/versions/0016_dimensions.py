"""Dimensions: rollups by the values of an actor or of a key of the metadata, beside those by client.

The tables are new and empty, and the new column has a constant default, so the migration takes no time and no
row is rewritten. The tables of clients stay as they are.
"""

from alembic import op

revision = "0016"
down_revision = "0015"

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
    for table in ("breakdown_hour", "breakdown_day"):
        op.execute(
            f"""
            CREATE TABLE analytics.{table} (
                org_id uuid NOT NULL,
                dimension text NOT NULL,
                bucket_start timestamptz NOT NULL,
                model_id uuid NOT NULL,
                value text NOT NULL,
                partition smallint NOT NULL,
                {_FIGURES},
                rate_class smallint NOT NULL DEFAULT 0,
                PRIMARY KEY (org_id, dimension, bucket_start, model_id, value, rate_class, partition)
            ) WITH (fillfactor = 50)
            """
        )
        op.execute(f"CREATE INDEX {table}_bucket_start ON analytics.{table} USING brin (bucket_start)")
    op.execute(
        """
        CREATE TABLE analytics.values_seen (
            org_id uuid NOT NULL,
            dimension text NOT NULL,
            value text NOT NULL,
            partition smallint NOT NULL,
            first_event_at timestamptz NOT NULL,
            last_event_at timestamptz NOT NULL,
            last_rollup_at timestamptz NOT NULL,
            PRIMARY KEY (org_id, dimension, value, partition)
        ) WITH (fillfactor = 50)
        """
    )
    op.execute(
        """
        CREATE TABLE analytics.dimensions (
            partition smallint NOT NULL,
            name text NOT NULL,
            source text NOT NULL,
            since timestamptz NOT NULL,
            PRIMARY KEY (partition, name)
        )
        """
    )
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN counted_by_dimensions bigint NOT NULL DEFAULT 0")
