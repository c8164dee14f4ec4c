"""Rate classes in every rollup key, and the labels of models. Rows from before have class 0, and no labels.

Adding a column with a constant default rewrites no row. The primary keys are built anew, which takes most of
the time. All of that is one transaction: if it is cut off, nothing has changed.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

_KEYS = {
    "usage_minute": "org_id, bucket_start, model_id",
    "usage_hour": "org_id, bucket_start, model_id",
    "usage_day": "org_id, bucket_start, model_id",
    "client_hour": "org_id, bucket_start, model_id, client_id",
    "client_day": "org_id, bucket_start, model_id, client_id",
    "usage_errors_hour": "org_id, bucket_start, model_id, client_id, status, error_code",
}


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE analytics.rate_classes (
            id smallint PRIMARY KEY,
            service_tier text NOT NULL,
            input_from bigint NOT NULL,
            input_to bigint,
            CONSTRAINT rate_classes_meaning UNIQUE NULLS NOT DISTINCT (service_tier, input_from, input_to)
        )
        """
    )
    op.execute("INSERT INTO analytics.rate_classes VALUES (0, 'standard', 0, NULL)")
    for table, key in _KEYS.items():
        op.execute(f"ALTER TABLE analytics.{table} ADD COLUMN rate_class smallint NOT NULL DEFAULT 0")
        op.execute(
            f"ALTER TABLE analytics.{table} DROP CONSTRAINT {table}_pkey,"
            f" ADD PRIMARY KEY ({key}, rate_class, partition)"
        )
    op.execute(
        "ALTER TABLE analytics.models_seen ADD COLUMN labelled_at timestamptz NOT NULL DEFAULT 'epoch',"
        " ADD COLUMN provider text NOT NULL DEFAULT '', ADD COLUMN model_name text NOT NULL DEFAULT ''"
    )
