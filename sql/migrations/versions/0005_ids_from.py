"""The hour from which on a partition's ids are complete, so that a longer DEDUPE_WINDOW counts none twice."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN ids_from timestamptz")
