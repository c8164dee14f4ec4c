"""The root of all errors that a command reports to its operator: one line each, and exit code 1."""

from __future__ import annotations


class OperatorError(Exception):
    """A command cannot do its work. The message gives the reason, the changes so far, and the remedy."""
