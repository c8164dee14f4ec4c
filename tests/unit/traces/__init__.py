"""Traces: settings and the queue, without a receiver."""
