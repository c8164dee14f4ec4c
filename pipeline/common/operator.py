"""The root of all errors that a command reports to its operator: one line each, and exit code 1."""

from __future__ import annotations


class OperatorError(Exception):
    """A command cannot do what it was asked for. The message says why, what was changed, and the remedy."""
