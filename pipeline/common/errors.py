"""The root of the exceptions of our servers, and those that every room of a server may raise or meet.

`pipeline.common.problems.Problem` tells a caller what is wrong with a request. `Unavailable` says that
another server which we need fails us. An exception that only one module raises stands in that module.
"""

from __future__ import annotations


class ServiceError(Exception):
    """A server of ours cannot do what was asked. Each subclass says who can mend it, and how."""


class Unavailable(ServiceError):
    """The database or the token issuer cannot answer now; the caller may ask again in a few seconds.

    The text is fit for a caller, who gets it with status 503. The log has the cause for the operator.
    """


class TooSlow(Unavailable):
    """The database is well, but this question takes too long: ask for a shorter range or a coarser one."""
