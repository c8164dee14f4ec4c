"""The archive's outbox, its manifest, and the spans of events that the archive holds of each partition."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE analytics.archive_outbox (
            partition smallint NOT NULL,
            accepted_from bigint NOT NULL,
            row_count bigint NOT NULL,
            byte_count bigint NOT NULL,
            complete_from timestamptz,
            complete_to timestamptz NOT NULL,
            cut bigint,
            flushed_at timestamptz NOT NULL,
            events bytea NOT NULL,
            PRIMARY KEY (partition, accepted_from)
        )
        """
    )
    # The events are compressed already, so to compress them again costs time and saves nothing.
    op.execute("ALTER TABLE analytics.archive_outbox ALTER COLUMN events SET STORAGE EXTERNAL")
    op.execute(
        """
        CREATE TABLE analytics.archive_files (
            partition smallint NOT NULL,
            accepted_from bigint NOT NULL,
            hour timestamptz NOT NULL,
            accepted_to bigint NOT NULL,
            path text NOT NULL,
            from_offset bigint NOT NULL,
            to_offset bigint NOT NULL,
            row_count bigint NOT NULL,
            byte_count bigint NOT NULL,
            sha256 bytea NOT NULL,
            archived_at timestamptz NOT NULL,
            PRIMARY KEY (partition, accepted_from, hour),
            CONSTRAINT archive_files_path UNIQUE (path)
        )
        """
    )
    op.execute("CREATE INDEX archive_files_hour ON analytics.archive_files (hour)")
    op.execute(
        """
        CREATE TABLE analytics.archive_spans (
            partition smallint NOT NULL,
            accepted_from bigint NOT NULL,
            accepted_to bigint NOT NULL,
            complete_from timestamptz,
            complete_to timestamptz NOT NULL,
            PRIMARY KEY (partition, accepted_from)
        )
        """
    )
