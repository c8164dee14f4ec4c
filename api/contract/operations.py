"""The one table of routes: for each its path, who may ask, which handler answers, and its documentation.

The router, the guard (`api.access.guard`) and the OpenAPI document (`api.contract.openapi`) are all made from
`OPERATIONS`. A route is served only if it stands here, in one of the rooms of `api.contract.routes`.
"""

from __future__ import annotations

from typing import Final

from api.contract.operation import BASE, Handler, Operation
from api.contract.routes import budgets, exports, figures, money, server

__all__ = ["BASE", "OPERATIONS", "Handler", "Operation"]

OPERATIONS: Final[tuple[Operation, ...]] = (
    *figures.OPERATIONS,
    *exports.OPERATIONS,
    *money.OPERATIONS,
    *budgets.OPERATIONS,
    *server.OPERATIONS,
)
