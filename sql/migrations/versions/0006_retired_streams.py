"""Retired streams: no worker reads them any more, so freshness and finality leave them out."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN retired_at timestamptz")
    op.execute(
        "CREATE VIEW analytics.partition_watermarks AS"
        " SELECT partition, retired_at, CASE WHEN retired_at IS NULL THEN watermark ELSE COALESCE(("
        " SELECT CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END"
        " FROM analytics.partitions WHERE retired_at IS NULL), watermark) END AS watermark"
        " FROM analytics.partitions"
    )
    op.execute(
        "COMMENT ON VIEW analytics.partition_watermarks IS"
        " 'Up to when each partition is complete. Nothing more comes from a retired one, so it is as complete"
        " as the slowest of the others.'"
    )
