"""Every decision of the pipeline, as plain data and functions: no I/O, no asyncio, no clock.

``ledger`` is the whole of it for one partition: chunks in, flush batches out. Below it: ``events``
(bytes to columns), ``dedupe`` (exact), ``windows`` (rollup rows), ``sketches`` (latency), ``watermark``.
Time is integer UTC microseconds; callers pass it in.
"""
