"""Rollups, partitions, dedupe ids, dead letters, the orgs, models and clients seen, and the audit log.

The migration is written out and not generated from `sql.schema`, because it must do the same next year as
today. Hypertables and policies are in `sql.editions`, because the edition can change later.
"""

from alembic import op

revision = "0001"
down_revision = None

_MEASURES = """
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
"""


def upgrade() -> None:
    for table in ("usage_minute", "usage_hour", "usage_day"):
        op.execute(
            f"""
            CREATE TABLE analytics.{table} (
                org_id uuid NOT NULL,
                bucket_start timestamptz NOT NULL,
                model_id uuid NOT NULL,
                partition smallint NOT NULL,
                {_MEASURES}
                PRIMARY KEY (org_id, bucket_start, model_id, partition)
            ) WITH (fillfactor = 50)
            """
        )
    for table in ("client_hour", "client_day"):
        op.execute(
            f"""
            CREATE TABLE analytics.{table} (
                org_id uuid NOT NULL,
                bucket_start timestamptz NOT NULL,
                model_id uuid NOT NULL,
                client_id text NOT NULL,
                partition smallint NOT NULL,
                {_MEASURES}
                PRIMARY KEY (org_id, bucket_start, model_id, client_id, partition)
            ) WITH (fillfactor = 50)
            """
        )
    op.execute(
        """
        CREATE TABLE analytics.usage_errors_hour (
            org_id uuid NOT NULL,
            bucket_start timestamptz NOT NULL,
            model_id uuid NOT NULL,
            client_id text NOT NULL,
            status smallint NOT NULL,
            error_code text NOT NULL,
            partition smallint NOT NULL,
            count bigint NOT NULL,
            PRIMARY KEY (org_id, bucket_start, model_id, client_id, status, error_code, partition)
        ) WITH (fillfactor = 50)
        """
    )
    # Rows arrive in the order of time, so a BRIN index costs nearly nothing. Without hypertable chunks,
    # recovery, retention and reads over all orgs find their time range by this index.
    for table in (
        "usage_minute",
        "usage_hour",
        "usage_day",
        "client_hour",
        "client_day",
        "usage_errors_hour",
    ):
        op.execute(f"CREATE INDEX {table}_bucket_start ON analytics.{table} USING brin (bucket_start)")
    op.execute(
        """
        CREATE TABLE analytics.partitions (
            partition smallint PRIMARY KEY,
            stream text NOT NULL UNIQUE,
            epoch bigint NOT NULL DEFAULT 0,
            committed_offset bigint NOT NULL DEFAULT 0,
            watermark timestamptz,
            max_event_time timestamptz,
            broker_time timestamptz,
            offered bigint NOT NULL DEFAULT 0,
            accepted bigint NOT NULL DEFAULT 0,
            duplicate bigint NOT NULL DEFAULT 0,
            rejected bigint NOT NULL DEFAULT 0,
            caught_up boolean NOT NULL DEFAULT false,
            updated_at timestamptz NOT NULL,
            CONSTRAINT every_event_is_accounted_for CHECK (offered = accepted + duplicate + rejected)
        ) WITH (fillfactor = 50)
        """
    )
    op.execute(
        """
        CREATE TABLE analytics.dedupe_ids (
            partition smallint NOT NULL,
            hour timestamptz NOT NULL,
            segment bigint NOT NULL,
            ids bytea NOT NULL,
            PRIMARY KEY (partition, hour, segment)
        )
        """
    )
    # Ids are random, so to compress them costs time and saves nothing.
    op.execute("ALTER TABLE analytics.dedupe_ids ALTER COLUMN ids SET STORAGE EXTERNAL")
    op.execute(
        """
        CREATE TABLE analytics.dead_letters (
            partition smallint NOT NULL,
            "offset" bigint NOT NULL,
            position integer NOT NULL,
            stream text NOT NULL,
            reason text NOT NULL,
            faults jsonb NOT NULL,
            body bytea,
            rejected_at timestamptz NOT NULL,
            PRIMARY KEY (partition, "offset", position)
        )
        """
    )
    for table, key in (
        ("orgs_seen", ""),
        ("models_seen", "model_id uuid"),
        ("clients_seen", "client_id text"),
    ):
        column = f"{key} NOT NULL," if key else ""
        name = f"{key.split()[0]}, " if key else ""
        op.execute(
            f"""
            CREATE TABLE analytics.{table} (
                org_id uuid NOT NULL,
                {column}
                partition smallint NOT NULL,
                first_event_at timestamptz NOT NULL,
                last_event_at timestamptz NOT NULL,
                last_rollup_at timestamptz NOT NULL,
                PRIMARY KEY (org_id, {name}partition)
            ) WITH (fillfactor = 50)
            """
        )
    op.execute(
        """
        CREATE TABLE analytics.audit_log (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            at timestamptz NOT NULL,
            actor text NOT NULL,
            action text NOT NULL,
            org_id uuid,
            outcome text NOT NULL,
            detail jsonb NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX audit_log_at ON analytics.audit_log (at)")
