"""Live figures by server-sent events."""
