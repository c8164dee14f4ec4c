"""Exports may be of some clients, or of some values of a dimension: what the order has asked for.

Jobs and schedules from before are of all of them. A constant default rewrites no row.
"""

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    for table in ("export_jobs", "export_schedules"):
        op.execute(f"ALTER TABLE analytics.{table} ADD COLUMN dimensions text[] NOT NULL DEFAULT '{{}}'")
