"""The operator's work: streams, gaps, skipped records, keys, and the doctor."""
