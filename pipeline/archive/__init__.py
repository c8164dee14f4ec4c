"""The archive: every accepted event as Parquet, and what can be proved and repaired with it.

`archiver` moves the outbox into files, exactly once by the manifest; `recount` adds the files up again, with
other code than the pipeline's; `reconcile` holds the rollups to that, and `rebuild` writes what differs.

Invariant: figures never depend on the archive. When it is away, the outbox grows to its bound, then events
are left out of the archive, on record (``archive_spans``), and the service goes on.
"""
