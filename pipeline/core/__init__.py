"""Every decision of the pipeline, as plain data and functions: no I/O, no asyncio, no clock.

``ledger`` holds one partition together: chunks go in, and one batch a flush comes out. It composes ``intake``
(chunks that wait), ``events`` (bytes to columns), ``judge`` (accepted, duplicate or rejected) and ``rollups``
(rows in memory). ``batch`` has the data that come out. Below these are ``dedupe`` (exact), ``room`` (sums
that are full), ``windows`` (tables), ``sketches`` (latency) and ``watermark``. Times are integer UTC
microseconds. Callers pass the time in.
"""
