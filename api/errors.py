"""The root of the API's exceptions, and those that every room may raise or meet.

`api.answering.problems.Problem` tells a caller what is wrong with a request. `Unavailable` says that a server
which we need fails us. An exception that only one module raises stands in that module.
"""

from __future__ import annotations


class ApiError(Exception):
    """The API cannot do what was asked. Each subclass says who can mend it, and how."""


class Unavailable(ApiError):
    """The database or the token issuer cannot answer now; the caller may ask again in a few seconds.

    The text is fit for a caller, who gets it with status 503. The log has the cause for the operator.
    """


class TooSlow(Unavailable):
    """The database is well, but this question takes too long: ask for a shorter range or a coarser one."""
