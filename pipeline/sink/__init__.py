"""Where batches go: one database transaction each, and back again at recovery."""
