"""Names that administrators give to orgs and to the values of their dimensions.

A row of ``analytics.names`` with an empty dimension and value is the name of the org itself. The table is new
and empty, so the migration takes no time. The views of spend gain the name of the org as their last column.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

_TABLE = """
CREATE TABLE analytics.names (
    org_id uuid NOT NULL,
    dimension text NOT NULL,
    value text NOT NULL,
    name text NOT NULL,
    set_by text NOT NULL,
    set_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, dimension, value),
    CONSTRAINT names_of_org_or_value CHECK ((dimension = '') = (value = '')),
    CONSTRAINT names_texts CHECK (
        length(name) BETWEEN 1 AND 128 AND length(value) <= 128 AND length(dimension) <= 32 AND set_by <> '')
);
"""

# A view that is replaced keeps its columns, so it is written around its own text.
_VIEWS = """
DO $$
DECLARE
    spend text;
BEGIN
    FOREACH spend IN ARRAY ARRAY['spend_hour', 'spend_day'] LOOP
        EXECUTE format(
            'CREATE OR REPLACE VIEW analytics.%I AS SELECT spend.*, named.name AS org_name FROM (%s) AS spend
            LEFT JOIN analytics.names AS named
                ON named.org_id = spend.org_id AND named.dimension = '''' AND named.value = ''''',
            spend, rtrim(pg_get_viewdef(format('analytics.%I', spend)::regclass), ';'));
    END LOOP;
END $$;
"""


def upgrade() -> None:
    for statement in (_TABLE, _VIEWS):
        # Without parameters the driver leaves percent signs alone.
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
