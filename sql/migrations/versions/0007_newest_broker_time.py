"""The newest broker time of a partition: the dedupe window must not go back with the broker's clock."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN newest_broker_time timestamptz")
