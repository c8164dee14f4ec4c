"""The consumer group of a partition, the crashes of its workers, and the records that operators skipped."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE analytics.partitions ADD COLUMN consumer text,"
        " ADD COLUMN crashes integer NOT NULL DEFAULT 0,"
        " ADD COLUMN trying_from bigint, ADD COLUMN trying_to bigint"
    )
    op.execute(
        "CREATE TABLE analytics.skips ("
        ' stream text NOT NULL, "offset" bigint NOT NULL, note text NOT NULL,'
        " actor text NOT NULL, skipped_at timestamptz NOT NULL,"
        ' PRIMARY KEY (stream, "offset"))'
    )
