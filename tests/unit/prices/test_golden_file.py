"""The golden file itself: the working of each cost is right, and accounts for every token.

The working is arithmetic in a notation for people, such as ``1,200 x $2.50/M + 1 x $0.006``. It is evaluated
here by a few lines that know no price, no tier and no event.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

import pytest

from pipeline.core.wire import check
from pipeline.prices import csv_file
from pipeline.prices.price import faults_of
from tests.support import golden_prices
from tests.support.golden_prices import Payload

PAYLOADS = golden_prices.payloads()


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_the_working_gives_the_cost_and_accounts_for_every_token(payload: Payload) -> None:
    assert check(payload.body) == []
    if payload.basis == "none":
        assert payload.cost is None
    elif payload.basis == "estimate":
        assert payload.cost == Decimal(payload.working.removesuffix(" cents")) / 100
    else:
        assert payload.cost == worked_out(payload.working)
        counts = re.findall(r"([\d,]+) x \$[\d.]+/M", payload.working)
        assert sum(int(count.replace(",", "")) for count in counts) == payload.tokens


def worked_out(text: str) -> Decimal:
    """The sum that a working stands for. A percentage applies to the parentheses before it."""
    total = Decimal(0)
    for part in re.split(r" \+ (?![^(]*\))", text):
        if discounted := re.fullmatch(r"\((.+)\) x ([\d.]+) %", part):
            total += worked_out(discounted[1]) * Decimal(discounted[2]) / 100
        elif term := re.fullmatch(r"([\d,]+) x \$([\d.]+)(/M)?", part):
            total += Decimal(term[1].replace(",", "")) * Decimal(term[2]) / (10**6 if term[3] else 1)
        else:
            total += Decimal(part)
    return total


def test_the_days_of_the_file_are_the_sums_of_their_payloads() -> None:
    days = golden_prices.days()
    for cell, (working, expected) in golden_prices.said_days().items():
        assert worked_out(working) == expected.cost
        assert days[cell] == expected


def test_the_book_keeps_the_rules_and_the_payloads_are_of_all_kinds() -> None:
    assert faults_of(csv_file.read(golden_prices.BOOK)) == []
    assert len({payload.name for payload in PAYLOADS}) == len(PAYLOADS) >= 45
    assert Counter(payload.basis for payload in PAYLOADS).keys() == {"book", "estimate", "none"}
    spellings = Counter(next(iter(payload.event)) for payload in PAYLOADS)
    assert spellings.keys() == {"eventId", "event_id", "specversion"}
    assert all(payload.at <= golden_prices.now() for payload in PAYLOADS)
