"""What an operator asked for and cannot have: one root of errors, each one line with exit code 1."""

from __future__ import annotations


class OperatorError(Exception):
    """A command cannot do what it was asked for. The message says why, what was changed, and the remedy."""
