"""One transaction that finds the notices of an org, and commits them with the messages that tell them.

All is of one snapshot: what the org asks for, the rows of usage, the watermark and the price book.

1. The process dies, at any statement. Nothing is committed, and whoever looks next finds the same.
2. The org asks for something else meanwhile. The transaction holds the org's row from its first statement on;
   a row that was changed since the snapshot fails the transaction (SQLSTATE 40001), and it is done again.
3. Another process looks at the same org. It waits for the row, and then fails as in 2, or finds nothing new.
   Besides, the key of a notice is unique: an org is told once of an hour, and once of a day.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg.rows import dict_row, scalar_row
from psycopg.types.json import Jsonb

from api.answering import notices as answers
from api.answering.money import UNIT_DECIMALS, dollars, dollars_of
from api.asking.buckets import HOUR, NO_QUARTERS, Span, to_datetime, to_minute
from api.asking.limits import Limits
from api.asking.questions import Pricing
from api.budgets import spending
from api.budgets.rules import is_final, plain, scaled
from api.notices import figures, kept, rules
from api.notices.figures import Measures
from api.notices.kept import DAILY, SQL, UNUSUAL
from api.notices.rules import Settings, Unusual
from api.reading import names, prices, seen
from api.reading.database import rows
from api.reading.figures import error_rate, spend_fields
from api.reading.prices import Book
from api.reading.seen import NO_LABEL
from api.webhooks import kept as webhooks
from api.webhooks import messages
from pipeline.common.connect import AsyncConnection

MODELS_SHOWN: Final = 5
"""How many models a summary names, so that its message has a bound."""


@dataclass(slots=True)
class Found:
    """What a transaction committed: how many hours and days it told of. ``faults`` are days that nobody can
    tell of, because their rows are kept no more."""

    hours: int = 0
    days: int = 0
    faults: int = 0

    def add(self, other: Found) -> None:
        """Count what another transaction found."""
        for name in Found.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What all notices of one transaction have in common."""

    connection: AsyncConnection
    org_id: UUID
    watermark: datetime
    limits: Limits
    told: list[Mapping[str, Any]] = field(default_factory=list)

    def final(self, span: Span) -> bool:
        return is_final(span, self.watermark, self.limits.ranges.dedupe_window_s)


async def judge(connection: AsyncConnection, org_id: UUID, limits: Limits) -> Found:
    """Find what the org is to be told. The transaction must be REPEATABLE READ, and the caller commits it.

    Raises:
        psycopg.errors.SerializationFailure: others were at the same org meanwhile; try again.
    """
    found = Found()
    held = await kept.settings(connection, "hold", {"org_id": org_id})
    watermark = (await spending.watermarks_of(connection, [org_id]))[0].get(org_id)
    if not held or watermark is None:
        return found
    (settings,) = held
    look = _Look(connection=connection, org_id=org_id, watermark=watermark, limits=limits)
    to = {"unusual_to": settings.unusual_to, "summary_to": settings.summary_to}
    if settings.asked.unusual.enabled:
        to["unusual_to"] = _later(settings.unusual_to, await _hours(look, settings))
    if settings.asked.summary.enabled:
        days = await _days(look, settings, found)
        to["summary_to"] = _later(settings.summary_to, days)
    found.hours = sum(row["kind"] == UNUSUAL for row in look.told)
    found.days = len(look.told) - found.hours
    if look.told:
        await _queue(look)
    if to != {"unusual_to": settings.unusual_to, "summary_to": settings.summary_to}:
        await connection.execute(SQL["come_to"], to | {"org_id": org_id})
    return found


def _later(before: datetime | None, minute: int | None) -> datetime | None:
    if minute is None:
        return before
    return to_datetime(minute) if before is None else max(before, to_datetime(minute))


# --- unusual spend ---


async def _hours(look: _Look, settings: Settings) -> int | None:
    """Judge the hours that are due, and commit a notice of each unusual one. The end of those hours."""
    connection, org_id, asked = look.connection, look.org_id, settings.asked.unusual
    due = rules.hours_due(settings.unusual_since, settings.unusual_to, look.watermark)
    (first,) = await rows(connection, SQL["first_event"], {"org_id": org_id}, scalar_row)
    if due.start >= due.end or first is None:
        return None
    spans = rules.hours_read(due)
    oldest = look.limits.now - int(look.limits.ranges.retention_rollup_s // 60)
    known_from = max(-(-oldest // HOUR) * HOUR, to_minute(first) // HOUR * HOUR)
    book = await prices.read(connection, Pricing(), [org_id], Span(spans[0].start, due.end))
    found = await figures.by_hour(connection, org_id, book, spans)
    spent = {hour: units for hour, (units, _) in found.items()}
    values = {"org_id": org_id, "kind": UNUSUAL, "since": to_datetime(due.start)}
    told = set(await rows(connection, SQL["sent_since"], values, scalar_row))
    minimum = scaled(asked.minimum, UNIT_DECIMALS)
    for hour in sorted(hour for hour in spent if due.start <= hour < due.end):
        weeks = rules.weeks_before(hour, spent, known_from)
        if rules.hour_name(hour) in told:
            continue
        if rules.is_unusual(spent[hour], weeks, factor=asked.factor, minimum=minimum):
            shown = _unusual(asked, weeks, *found[hour])
            await _add(look, UNUSUAL, rules.hour_name(hour), Span(hour, hour + HOUR), book, shown)
    return due.end


def _unusual(
    asked: Unusual, weeks: Sequence[rules.WeekBefore], units: int, unpriced: int
) -> answers.UnusualHour:
    return answers.UnusualHour(
        spent=dollars(units),
        usual=dollars(rules.usual(weeks) or 0),
        factor=plain(asked.factor),
        minimum_amount=dollars_of(asked.minimum),
        unpriced=unpriced,
        weeks=[
            answers.UnusualWeek(hour_start=to_datetime(week.hour), spent=dollars(week.units))
            for week in weeks
        ],
    )


# --- daily summaries ---


async def _days(look: _Look, settings: Settings, found: Found) -> int | None:
    """Commit a summary of each day that is due. The end of the last of these days."""
    zone = settings.asked.summary.zone
    due = rules.days_due(zone, settings.summary_since, settings.summary_to, look.watermark)
    for day in due:
        found.faults += not await _day(look, settings, day)
    return due[-1].end if due else None


async def _day(look: _Look, settings: Settings, day: Span) -> bool:
    """Commit the summary of a day. False: rows that it needs are kept no more."""
    connection, org_id, zone = look.connection, look.org_id, settings.asked.summary.zone
    spans = dict(rules.days_compared(zone, day))
    off = any(edge % HOUR for span in spans.values() for edge in (span.start, span.end))
    quarters = await seen.quarters(connection, org_id) if off else NO_QUARTERS
    known = {
        name: span
        for name, span in spans.items()
        if spending.lacking(span, look.limits, split_by="", quarters=quarters) is None
    }
    if "day" not in known:
        return False
    whole = Span(min(span.start for span in known.values()), day.end)
    book = await prices.read(connection, Pricing(), [org_id], whole)
    sums = await figures.by_model(connection, org_id, book, known.items(), quarters)
    models = sums.get("day", {})
    top = sorted(models, key=lambda model: (-models[model]["amount"], -models[model]["invocations"], model))
    unpriced = sorted(
        (model for model in models if models[model]["unpriced"]),
        key=lambda model: (-models[model]["unpriced"], model),
    )
    named = {*top[:MODELS_SHOWN], *unpriced[:MODELS_SHOWN]}
    labels = await seen.labels(connection, org_id, named)

    def compared(name: str) -> answers.ComparedDay:
        cost = _cost(figures.total(sums.get(name, {}).values())) if name in known else None
        return answers.ComparedDay(start=to_datetime(spans[name].start), cost=cost)

    def shown(model: UUID) -> answers.SummaryModel:
        label = labels.get(str(model), NO_LABEL)
        return answers.SummaryModel(
            model_id=model,
            model_name=label.model_name,
            provider=label.provider,
            invocations=models[model]["invocations"],
            cost=_cost(models[model]),
        )

    whole_day = figures.total(models.values())
    summary = answers.DayFigures(
        day=rules.day_name(zone, day),
        time_zone=zone.key,
        cost=_cost(whole_day),
        day_before=compared("before"),
        week_before=compared("week"),
        invocations=whole_day["invocations"],
        errors=sum(whole_day[name] for name in figures.FAILURES),
        error_rate=error_rate(whole_day),
        input_tokens=whole_day["input_tokens"],
        output_tokens=whole_day["output_tokens"],
        top_models=[shown(model) for model in top[:MODELS_SHOWN]],
        model_count=len(models),
        unpriced=whole_day["unpriced"],
        unpriced_models=[shown(model) for model in unpriced[:MODELS_SHOWN]],
        unpriced_model_count=len(unpriced),
    )
    await _add(look, DAILY, summary.day, day, book, summary)
    return True


def _cost(measures: Measures) -> Any:
    return spend_fields(measures)["cost"]


# --- what is committed ---


async def _add(
    look: _Look,
    kind: str,
    period: str,
    span: Span,
    book: Book,
    shown: answers.UnusualHour | answers.DayFigures,
) -> None:
    """Commit a notice, unless the org was told of that hour or day before."""
    values = {
        "notice_id": uuid.uuid4(),
        "org_id": look.org_id,
        "kind": kind,
        "period": period,
        "period_start": to_datetime(span.start),
        "period_end": to_datetime(span.end),
        "watermark": look.watermark,
        "final": look.final(span),
        "price_version": book.version,
        "figures": Jsonb(msgspec.to_builtins(shown)),
    }
    look.told.extend(await rows(look.connection, SQL["add"], values, dict_row))


async def _queue(look: _Look) -> None:
    """Put a message about each notice into the outbox, one for each webhook of the org."""
    told = await rows(look.connection, webhooks.SQL["enabled"], {"org_ids": [look.org_id]}, dict_row)
    named = await names.read(look.connection, look.org_id)
    for row in look.told:
        notice = kept.notice_shown(row)
        for webhook in told:
            body = messages.of_notice(webhook["format"], notice, look.org_id, named.org)
            queued = webhooks.queued(webhook, notice.kind, body, None) | {"notice_id": notice.notice_id}
            await look.connection.execute(SQL["queue"], queued)
