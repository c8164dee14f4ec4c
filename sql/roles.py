"""The roles of API and collector in the database. The API reads rollups, and writes only its own tables.

``spendstream_reader`` cannot log in. An operator creates a login for the API with this role: ``CREATE ROLE …
LOGIN PASSWORD '…' IN ROLE spendstream_reader``. If the API is to change the price book, its login is also in
``spendstream_pricer``; to record adjustments, in ``spendstream_adjuster``; and to set names, in
``spendstream_namer``. Logins of Grafana and BI tools have ``spendstream_bi`` instead, because
``spendstream_reader`` may also order exports, write to the audit log and read the digests of keys. `apply` is
idempotent and runs at the end of every migration, so new tables get their rights.
"""

from __future__ import annotations

from typing import Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sql.schema import SCHEMA

READER: Final = "spendstream_reader"

READABLE: Final = (
    "usage_minute",
    "usage_hour",
    "usage_quarter",
    "usage_day",
    "client_hour",
    "client_day",
    "breakdown_hour",
    "breakdown_day",
    "dimensions",
    "split_hours",
    "usage_errors_hour",
    "partitions",
    "partition_watermarks",
    "orgs_seen",
    "models_seen",
    "clients_seen",
    "values_seen",
    "rate_classes",
    "price_sheets",
    "model_labels",
    "spend_hour",
    "spend_day",
    "effective_adjustments",
)
"""The tables that the API may read and only the worker writes. Dedupe ids and dead letters are not among
them: dead letters hold original events."""

PRICER: Final = "spendstream_pricer"
"""The role that may append to the price book. Logins of BI tools are in `BI`, and must not have it."""

ADJUSTER: Final = "spendstream_adjuster"
"""The role that may append adjustments of orgs, and nothing else."""
APPENDERS: Final = {PRICER: "prices", ADJUSTER: "adjustments"}
"""The roles that may append to one table."""

NAMER: Final = "spendstream_namer"
"""The role that may set and remove names of orgs and values, and nothing else."""
WRITERS: Final = {
    **{role: (table, "INSERT") for role, table in APPENDERS.items()},
    NAMER: ("names", "INSERT, UPDATE (name, set_by, set_at), DELETE"),
}
"""The roles beside `READER`: the one table of each, and its rights there."""

BI: Final = "spendstream_bi"
"""The role of Grafana and BI tools. It may read figures, costs and names of all orgs, and write nothing."""
BI_READABLE: Final = (*READABLE, "names")

OWN: Final = {
    "prices": "SELECT",
    "adjustments": "SELECT",
    "names": "SELECT",
    "audit_log": "INSERT",
    "api_keys": "SELECT, UPDATE (last_used_at)",
    "export_jobs": "SELECT, INSERT, UPDATE",
    "export_schedules": "SELECT, INSERT, UPDATE, DELETE",
    "budgets": "SELECT, INSERT, UPDATE",
    "budget_alerts": "SELECT",
    "webhooks": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_deliveries": "SELECT, INSERT, UPDATE",
    "notices": "SELECT, INSERT, UPDATE",
    "notices_sent": "SELECT",
}
"""The API's own tables, and its rights there. It has no right to make a key or to change the audit log."""

COLLECTOR: Final = "spendstream_collector"
COLLECTS: Final = {
    "api_keys": "SELECT, UPDATE (last_used_at)",
    "names": "INSERT",
}
"""All rights of the collector's role: it checks API keys, and names orgs that have no name."""

ALERTER: Final = "spendstream_alerter"
ALERTS: Final = {
    "prices": "SELECT",
    "names": "SELECT",
    "alembic_version": "SELECT",
    "budgets": "SELECT, UPDATE (closed_to)",
    "budget_alerts": "SELECT, INSERT, UPDATE",
    "webhooks": "SELECT, UPDATE (enabled, disabled_because, failing_since, last_success_at)",
    "webhook_deliveries": "SELECT, INSERT, UPDATE, DELETE",
    "notices": "SELECT, UPDATE (unusual_to, summary_to)",
    "notices_sent": "SELECT, INSERT, DELETE",
}
"""What ``spendstream alerts`` may do beside reading `READABLE`. It can change no plan of a budget and no
address of a webhook."""

WRITES_ROLLUPS: Final = (
    "SELECT current_setting('is_superuser') = 'on' OR EXISTS (SELECT FROM pg_catalog.pg_class"
    " WHERE relnamespace = to_regnamespace('analytics')"
    f" AND relname IN ({', '.join(repr(table) for table in READABLE)})"
    " AND has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))"
)
"""Could this connection change what the API reports? True of superusers, owners and the worker's role."""


def apply(connection: Connection) -> tuple[str, ...]:
    """Create the roles that are missing, and grant their rights; notes on how to use the roles."""
    try:
        with connection.begin_nested():
            _create(connection, READER)
            connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {READER}"))
            for table in READABLE:
                connection.execute(text(f"GRANT SELECT ON {SCHEMA}.{table} TO {READER}"))
            for table, rights in OWN.items():
                connection.execute(text(f"GRANT {rights} ON {SCHEMA}.{table} TO {READER}"))
            connection.execute(text(f"GRANT SELECT ON {SCHEMA}.alembic_version TO {READER}"))
            for role, (table, rights) in WRITERS.items():
                _create(connection, role)
                connection.execute(text(f"GRANT {rights} ON {SCHEMA}.{table} TO {role}"))
            _create(connection, COLLECTOR)
            connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {COLLECTOR}"))
            for table, rights in COLLECTS.items():
                connection.execute(text(f"GRANT {rights} ON {SCHEMA}.{table} TO {COLLECTOR}"))
            _create(connection, ALERTER)
            connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ALERTER}"))
            for table in READABLE:
                connection.execute(text(f"GRANT SELECT ON {SCHEMA}.{table} TO {ALERTER}"))
            for table, rights in ALERTS.items():
                connection.execute(text(f"GRANT {rights} ON {SCHEMA}.{table} TO {ALERTER}"))
            _create(connection, BI)
            connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {BI}"))
            for table in BI_READABLE:
                connection.execute(text(f"GRANT SELECT ON {SCHEMA}.{table} TO {BI}"))
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise
        cause = str(error.orig).strip().partition("\n")[0]
        return (f"role {READER} could not be set up ({cause}): create it as a superuser and migrate again",)
    return (
        f"role {READER} may read rollups: let the API log in as a role that is IN ROLE {READER}",
        f"role {COLLECTOR} may look keys up: let a collector log in as a role that is IN ROLE {COLLECTOR}",
        f"role {ALERTER} may judge budgets: let `spendstream alerts` log in as a role IN ROLE {ALERTER}",
        f"role {BI} may read figures: let Grafana and BI tools log in as roles that are IN ROLE {BI}",
        f"{', '.join(WRITERS)}: GRANT them to the API's login to let it change prices, adjustments, names",
    )


def _create(connection: Connection, role: str) -> None:
    exists = text("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = :name")
    if connection.scalar(exists, {"name": role}):
        return
    try:
        with connection.begin_nested():
            connection.execute(text(f"CREATE ROLE {role} NOLOGIN"))
    except DBAPIError:  # another database of this server was migrated at the same time
        if not connection.scalar(exists, {"name": role}):
            raise
