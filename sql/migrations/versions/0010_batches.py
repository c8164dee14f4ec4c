"""Dead letters of a whole batch, and of a body of which only the beginning is kept."""

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
