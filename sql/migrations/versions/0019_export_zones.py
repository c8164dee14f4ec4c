"""Exports have days, weeks and months of a time zone, and may leave the clients out.

Jobs and schedules from before mean UTC, and have clients. A constant default rewrites no row.
"""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    for table in ("export_jobs", "export_schedules"):
        op.execute(f"""
            ALTER TABLE analytics.{table}
                ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC',
                ADD COLUMN group_by text NOT NULL DEFAULT 'model,client'
        """)
