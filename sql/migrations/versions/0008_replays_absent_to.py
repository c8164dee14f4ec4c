"""The hour up to which the archive was asked about a letter; its id may lie in another hour than its own."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.replays ADD COLUMN absent_to timestamptz")
