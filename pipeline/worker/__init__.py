"""The worker's process: partitions that are read, counted and flushed."""
