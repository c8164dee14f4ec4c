"""The archive: every accepted event as Parquet, and the proof and the repair of the rollups by these files.

`archiver` moves the outbox into files, and the manifest makes sure that each event is in one file exactly
once. `recount` adds the files up again, with other code than the pipeline's. `reconcile` compares the rollups
with the sums of `recount`, and `rebuild` repairs the rows that differ.

Invariant: figures never depend on the archive. When the store is away, the outbox grows to its bound. After
that, events are left out of the archive and the service goes on. ``archive_spans`` records which events were
left out.
"""
