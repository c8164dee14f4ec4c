"""Usage events to publish: simulated ones, and those of a recorded trace."""
