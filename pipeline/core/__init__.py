"""Every decision of the pipeline, as plain data and functions: no I/O, no asyncio, no clock.

``ledger`` is the whole of it for one partition: chunks in, flush batches out. It composes ``intake`` (chunks
that wait), ``events`` (bytes to columns), ``judge`` (what becomes of each event) and ``rollups`` (rows in
memory); ``batch`` is what comes out. Below them: ``dedupe`` (exact), ``room`` (sums that are full),
``windows`` (tables), ``sketches`` (latency), ``watermark``. Time is integer UTC microseconds; callers pass it
in.
"""
