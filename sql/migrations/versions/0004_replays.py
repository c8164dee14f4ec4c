"""Replays of dead letters: the requests of operators, the outcomes, and the events that replays counted."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE analytics.dead_letters ADD COLUMN broker_time timestamptz")
    op.execute("ALTER TABLE analytics.partitions ADD COLUMN replays bigint NOT NULL DEFAULT 0")
    op.execute(
        """
        CREATE TABLE analytics.replays (
            partition smallint NOT NULL,
            "offset" bigint NOT NULL,
            position integer NOT NULL,
            run uuid NOT NULL,
            requested_at timestamptz NOT NULL,
            broker_time timestamptz NOT NULL,
            evidence text NOT NULL,
            body bytea,
            settled_at timestamptz,
            outcome text,
            at_offset bigint,
            org_id uuid,
            event_id uuid,
            payload_check bigint,
            PRIMARY KEY (partition, "offset", position)
        )
        """
    )
    op.execute(
        'CREATE INDEX replays_waiting ON analytics.replays (partition, requested_at, "offset", position)'
        " WHERE settled_at IS NULL"
    )
    op.execute(
        "CREATE UNIQUE INDEX replays_counted ON analytics.replays (partition, org_id, event_id)"
        " WHERE outcome = 'accepted'"
    )
    op.execute("CREATE INDEX replays_run ON analytics.replays (run)")
