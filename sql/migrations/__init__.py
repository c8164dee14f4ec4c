"""Alembic migrations of the schema ``analytics``; run by `sql.migrate`."""
