"""Alembic's entry. `sql.migrate` hands an open connection over, and there is no offline mode."""

from alembic import context

from sql.schema import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
