"""Kinds of tokens, and calls without an estimated cost: rows from before have none of either."""

from alembic import op

revision = "0012"
down_revision = "0011"

_COLUMNS = (
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "unestimated",
)


def upgrade() -> None:
    added = ", ".join(f"ADD COLUMN {name} bigint NOT NULL DEFAULT 0" for name in _COLUMNS)
    for table in ("usage_minute", "usage_hour", "usage_day", "client_hour", "client_day"):
        op.execute(f"ALTER TABLE analytics.{table} {added}")
