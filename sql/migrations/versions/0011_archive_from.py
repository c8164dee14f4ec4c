"""The hour from which on a partition's archive is complete, because older files are past their retention."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN archive_from timestamptz")
