"""Traces, against a receiver of OTLP that runs."""
