"""Prices in words, as the commands print them, and in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from pipeline.commands.options import VISIBLE, plain
from pipeline.common.texts import counted

if TYPE_CHECKING:
    from pipeline.prices.book import Entry, Imported, Past
    from pipeline.prices.plan import Change
    from pipeline.prices.price import Price


def tell_past(
    past: Past, done: Imported, *, dry_run: bool = False, how: tuple[str, str] | None = None
) -> None:
    """Say that the cost of past calls may change, and which command says by how much."""
    holds = "holds" if past.prices == 1 else "hold"
    click.echo(
        f"the cost of past calls {'would change' if dry_run else 'changes'} where these calls have the tier"
        f" and size: {counted(past.prices, 'price')} {holds} for times since {past.start:%Y-%m-%d} from which"
        f" there are calls, of {counted(past.models, 'model')} and {counted(past.orgs, 'org')}"
    )
    if dry_run and how is None:
        return
    end = past.end.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    versions = how or ("--before", f"{done.version_before} --after {done.version}")
    click.echo(
        f"    by how much: spendstream prices diff --start {past.start:%Y-%m-%dT%H:00}"
        f" --end {end:%Y-%m-%dT%H:00} {' '.join(versions)}".translate(VISIBLE)
    )


def change_line(change: Change) -> str:
    """A price that comes into the book, with the rates in whose place it comes."""
    line = price_line(change.price)
    if not change.before:
        return line
    unit = _UNITS.get(change.price.kind, _UNIT)
    return f"{line}, in place of " + " and ".join(
        dict.fromkeys(f"{rate_text(one.rate)}{unit} [{one.source}]" for one in change.before)
    )


def entry_row(entry: Entry) -> dict[str, Any]:
    return {name: in_json(getattr(entry, name)) for name in entry.__slots__}


def price_row(price: Price) -> dict[str, Any]:
    return {name: in_json(getattr(price, name)) for name in price.__slots__ if name != "where"}


def in_json(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else plain(value)


def entry_line(entry: Entry, names: Mapping[UUID, str]) -> str:
    if entry.retracts is not None:
        line = f"{entry.id} retracts {entry.retracts}: {entry.basis}"
    else:
        line = f"{entry.id} {price_line(entry, names)}"
    line += f", by {entry.recorded_by} {entry.recorded_at.astimezone(UTC):%Y-%m-%d %H:%M}"
    if entry.retracted_by is not None:
        line += f" [retracted by {entry.retracted_by}]"
    return line.translate(VISIBLE)


def named_org(org_id: UUID, names: Mapping[UUID, str]) -> str:
    return f"org {org_id} ({names[org_id]})" if org_id in names else f"org {org_id}"


def rate_text(rate: Decimal) -> str:
    """A rate without zeros at its end."""
    text = f"{rate:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_UNIT: Final = " USD a million"
_UNITS: Final = {"discount": " %", "request": " USD a call"}


def price_line(price: Price | Entry, names: Mapping[UUID, str] | None = None) -> str:
    what = f"{price.provider or 'all providers'} {price.model_name or 'all models'}"
    if price.service_tier:
        what += f" {price.service_tier}"
    if price.context_from:
        what += f" from {price.context_from} tokens"
    unit = _UNITS.get(price.kind, _UNIT)
    whose = f", {named_org(price.org_id, names or {})}" if price.org_id else ""
    basis = f" ({price.basis})" if price.basis else ""
    assert price.rate is not None
    return (
        f"{what} {price.kind} {rate_text(price.rate)}{unit}, {span(price.valid_from, price.valid_to)}{whose}"
        f" [{price.source}]{basis}"
    )


def span(start: datetime | None, end: datetime | None) -> str:
    first = "since ever" if start is None or start.year == 1970 else f"from {_hour(start)}"
    return first if end is None else f"{first} up to {_hour(end)}"


def _hour(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d}" if at.hour == 0 else f"{at:%Y-%m-%d %H:%M}"
