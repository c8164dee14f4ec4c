"""Usage events to publish: simulated events, and the events of a recorded trace."""
