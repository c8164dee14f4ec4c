"""Routes of adjustments and of the price book."""

from __future__ import annotations

from typing import Final

from api.access.guard import ANALYTICS_ADMIN, USAGE_READ, Access
from api.answering import answers
from api.asking import params
from api.contract import bodies
from api.contract.operation import BASE, CURSOR, IDEMPOTENCY_KEY, ORG, Operation

OPERATIONS: Final = (
    Operation(
        method="GET",
        path=f"{ORG}/adjustments",
        access=Access(role=USAGE_READ),
        handler=lambda h: h.adjustments.page,
        name="listAdjustments",
        summary="Credits, refunds and corrections of what the org pays.",
        answer=answers.Adjustments,
        parameters=params.ADJUSTMENTS,
        problems=(400, 503),
        rules=f"end must be after start; {CURSOR}",
    ),
    Operation(
        method="POST",
        path=f"{ORG}/adjustments",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.adjustments.add,
        name="addAdjustment",
        summary="Record a credit, refund or correction. The same Idempotency-Key records it once.",
        answer=answers.Adjustment,
        success=201,
        body=bodies.ADJUSTMENT_BODY,
        headers=(IDEMPOTENCY_KEY,),
        problems=(400, 409, 413, 503),
        rules="the period must be whole hours of UTC and end after its start; a credit or refund is below 0,"
        " and a correction is not 0",
    ),
    Operation(
        method="POST",
        path=f"{ORG}/adjustments/{{adjustmentId}}/retract",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.adjustments.retract,
        name="retractAdjustment",
        summary="Retract an adjustment, so that it counts nowhere. The answer is the row that retracts it.",
        answer=answers.Adjustment,
        success=201,
        body=bodies.RETRACTION_BODY,
        headers=(IDEMPOTENCY_KEY,),
        problems=(400, 404, 409, 413, 503),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/prices",
        access=Access(role=USAGE_READ, own_orgs=True),
        handler=lambda h: h.prices.page,
        name="listPrices",
        summary="Rows of the price book: those of everyone and those of the caller's orgs; all of them for"
        " the role admin, whose reads are audited.",
        answer=answers.Prices,
        parameters=params.PRICES,
        problems=(400, 503),
        rules=f"the book must have had that version; {CURSOR}",
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.prices.append,
        name="appendPrices",
        summary="Append what these prices say and the book does not. If one price breaks a rule, nothing is"
        " appended, and every fault is named. Prices of everyone need the role admin. Past versions"
        " stay as they were.",
        answer=answers.BookChange,
        body=bodies.PRICES_BODY,
        problems=(400, 413, 503),
        rules="the rules of prices, as for an import from CSV; hours are whole hours of UTC",
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices/{{priceId}}/retract",
        access=Access(role=ANALYTICS_ADMIN, writes=True),
        handler=lambda h: h.prices.retract,
        name="retractPrice",
        summary="Retract a price: the book then says what it would say without that row."
        " A price of everyone needs the role admin.",
        answer=answers.BookChange,
        body=bodies.RETRACTION_BODY,
        problems=(400, 404, 409, 413, 503),
    ),
    Operation(
        method="POST",
        path=f"{BASE}/prices/diff",
        access=Access(role=ANALYTICS_ADMIN, all_orgs=True, writes=True),
        handler=lambda h: h.prices.diff,
        name="diffPrices",
        summary="What the calls of a range of hours cost at two versions of the book, or with some prices"
        " added to the newest one, by org and model. Nothing is changed. Without orgs it needs the"
        " role admin.",
        answer=answers.PriceDifferences,
        body=bodies.DIFF_BODY,
        problems=(400, 413, 503),
        rules="either prices or after; the book must have had these versions; end must be after start",
    ),
)
