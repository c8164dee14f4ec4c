"""How far each partition is counted: the broker's time up to which every event is in the figures.

Rows from before have null until the next flush. A column that may be null rewrites no row.
"""

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN counted_through timestamptz")
    op.execute(
        "CREATE OR REPLACE VIEW analytics.partition_watermarks AS"
        " SELECT partition, retired_at,"
        " CASE WHEN retired_at IS NULL THEN p.watermark"
        " ELSE COALESCE(others.watermark, p.watermark) END AS watermark,"
        " CASE WHEN retired_at IS NULL THEN p.counted_through"
        " ELSE COALESCE(others.counted_through, p.counted_through) END AS counted_through"
        " FROM analytics.partitions AS p CROSS JOIN ("
        " SELECT CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END AS watermark,"
        " CASE WHEN bool_and(counted_through IS NOT NULL) THEN min(counted_through) END AS counted_through"
        " FROM analytics.partitions WHERE retired_at IS NULL) AS others"
    )
    op.execute(
        "COMMENT ON VIEW analytics.partition_watermarks IS"
        " 'Up to when each partition is complete, and counted. Nothing more comes from a retired one, so it"
        " is as complete as the slowest of the others.'"
    )
