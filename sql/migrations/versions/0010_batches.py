"""Dead letters that stand for a batch of records, or keep only the beginning of a body."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE analytics.dead_letters
            ADD COLUMN records integer NOT NULL DEFAULT 1,
            ADD COLUMN body_bytes bigint,
            ADD COLUMN body_sha256 bytea
        """
    )
