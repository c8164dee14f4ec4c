"""API keys, export jobs and the monthly schedule of each org.

The reader role and its rights are in `sql.roles`. Roles belong to the server, not to the database, and the
user who migrates may lack the right to create a role.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE analytics.api_keys (
            prefix text PRIMARY KEY,
            digest bytea NOT NULL,
            org_id uuid NOT NULL,
            roles text[] NOT NULL,
            label text NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz,
            revoked_at timestamptz,
            last_used_at timestamptz
        )
        """
    )
    op.execute("CREATE INDEX api_keys_org_id ON analytics.api_keys (org_id)")
    op.execute(
        """
        CREATE TABLE analytics.export_jobs (
            job_id uuid PRIMARY KEY,
            org_id uuid NOT NULL,
            status text NOT NULL,
            format text NOT NULL,
            granularity text NOT NULL,
            range_start timestamptz NOT NULL,
            range_end timestamptz NOT NULL,
            models uuid[] NOT NULL,
            idempotency_key text,
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            attempts integer NOT NULL,
            claim uuid,
            lease_until timestamptz,
            completed_at timestamptz,
            expires_at timestamptz,
            location text,
            checksum text,
            row_count bigint,
            byte_count bigint,
            watermark timestamptz,
            error text,
            CONSTRAINT export_jobs_idempotency UNIQUE (org_id, idempotency_key)
        )
        """
    )
    op.execute("CREATE INDEX export_jobs_of_org ON analytics.export_jobs (org_id, created_at, job_id)")
    op.execute(
        """
        CREATE INDEX export_jobs_open ON analytics.export_jobs (created_at)
        WHERE status IN ('pending', 'running')
        """
    )
    op.execute(
        "CREATE INDEX export_jobs_expiry ON analytics.export_jobs (expires_at) WHERE status = 'succeeded'"
    )
    op.execute(
        """
        CREATE TABLE analytics.export_schedules (
            org_id uuid PRIMARY KEY,
            format text NOT NULL,
            granularity text NOT NULL,
            models uuid[] NOT NULL,
            created_by text NOT NULL,
            created_at timestamptz NOT NULL
        )
        """
    )
