"""The broker's newest time in a partition: the dedupe window's floor must not go back with its clock."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN newest_broker_time timestamptz")
