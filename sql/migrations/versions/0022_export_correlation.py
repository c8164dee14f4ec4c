"""Exports keep whom their order names as its initiator, and the id and the trace of the order's request.

Jobs from before have none of these. A column that may be null rewrites no row.
"""

from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    for column in ("initiated_by", "request_id", "traceparent"):
        op.execute(f"ALTER TABLE analytics.export_jobs ADD COLUMN {column} text")
