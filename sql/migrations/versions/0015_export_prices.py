"""How an export is priced. A job from before has no version: if it is still to be made, it is priced at the
newest."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE analytics.export_jobs
            ADD COLUMN price_version bigint,
            ADD COLUMN cost_basis text NOT NULL DEFAULT 'auto'
    """)
