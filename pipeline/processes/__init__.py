"""Starts, watches and stops processes of our own."""
