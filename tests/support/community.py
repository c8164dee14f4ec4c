"""A plain PostgreSQL in the shape of TimescaleDB Community, because no package may bring the Community parts.

The extension is written into the catalog. Its functions do on plain tables as much as our code asks of them,
and ``timescaledb_information`` has the columns of the views. The functions are in a schema of their own, as
an operator may have set it up.
"""

from __future__ import annotations

import psycopg

FUNCTIONS = "ext"

_SHAPE = """
SET allow_system_table_mods = on;
CREATE SCHEMA ext;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    SELECT 99999, 'timescaledb', datdba, 'ext'::regnamespace, false, '2.28.3'
    FROM pg_database WHERE datname = current_database();
CREATE SCHEMA timescaledb_information;
CREATE TABLE timescaledb_information.jobs (job_id int GENERATED ALWAYS AS IDENTITY (START 1000),
    proc_name name, config jsonb, hypertable_schema name, hypertable_name name);
CREATE TABLE timescaledb_information.hypertables (hypertable_schema name, hypertable_name name);
CREATE TABLE timescaledb_information.job_stats (job_id int, last_run_status text, total_runs bigint,
    total_failures bigint);
CREATE TABLE timescaledb_information.job_errors (job_id int, start_time timestamptz, err_message text);
CREATE FUNCTION ext.create_hypertable(relation regclass, time_column_name name, chunk_time_interval interval,
    create_default_indexes boolean, if_not_exists boolean, migrate_data boolean) RETURNS void
    LANGUAGE sql AS $$
    INSERT INTO timescaledb_information.hypertables SELECT relnamespace::regnamespace::name, relname
    FROM pg_class WHERE oid = relation $$;
CREATE FUNCTION ext.drop_chunks(relation regclass, older_than timestamptz) RETURNS SETOF text
    LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format('DELETE FROM %s WHERE bucket_start < $1 RETURNING %L', relation, 'chunk')
        USING older_than;
END $$;
CREATE FUNCTION ext.add_retention_policy(relation regclass, drop_after interval) RETURNS int
    LANGUAGE sql AS $$
    INSERT INTO timescaledb_information.jobs (proc_name, config, hypertable_schema, hypertable_name)
    SELECT 'policy_retention', jsonb_build_object('drop_after', drop_after::text),
        relnamespace::regnamespace::name, relname FROM pg_class WHERE oid = relation RETURNING job_id $$;
CREATE FUNCTION ext.remove_retention_policy(relation regclass, if_exists boolean) RETURNS void
    LANGUAGE sql AS $$
    DELETE FROM timescaledb_information.jobs AS j USING pg_class AS c
    WHERE c.oid = relation AND j.hypertable_name = c.relname AND j.proc_name = 'policy_retention' $$;
"""


def shape(url: str) -> None:
    """Give a new database of plain PostgreSQL the shape. Its user must be a superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SHAPE.encode())
        database = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{database}\" SET timescaledb.license = 'timescale'".encode())


def add_retention(url: str, table: str, interval: str) -> None:
    """Add a retention policy to one of our tables, with the interval in the given spelling."""
    with psycopg.connect(url) as connection:
        query = f"SELECT {FUNCTIONS}.add_retention_policy(('analytics.' || %s)::regclass, %s::interval)"
        connection.execute(query.encode(), (table, interval))


def retentions(url: str) -> dict[str, str]:
    """The interval of each table's policy."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT hypertable_name, config ->> 'drop_after' FROM timescaledb_information.jobs"
        ).fetchall()
    return dict(rows)


def fail_a_job(url: str, table: str, message: str) -> int:
    """Add a compression job on the table that has failed twice; returns its number."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "INSERT INTO timescaledb_information.jobs (proc_name, config, hypertable_schema, hypertable_name)"
            " VALUES ('policy_compression', '{}', 'analytics', %s) RETURNING job_id",
            (table,),
        ).fetchone()
        assert row is not None
        values = (row[0], message)
        connection.execute(
            "INSERT INTO timescaledb_information.job_stats VALUES (%s, 'Failed', 5, 2)", values[:1]
        )
        connection.execute("INSERT INTO timescaledb_information.job_errors VALUES (%s, now(), %s)", values)
        connection.execute(
            "INSERT INTO timescaledb_information.job_errors VALUES (%s, now() - interval '1 day', 'older')",
            values[:1],
        )
    return int(row[0])
