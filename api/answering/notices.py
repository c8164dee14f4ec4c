"""The answers about notices: what an org asks for, and what was found."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from api.answering.answers import Answer, Cost, Count, Time
from api.answering.budgets import Number

NoticeKind = Literal["spend.unusual", "spend.daily"]


class UnusualSpendAsked(Answer):
    """An hour is unusual if it cost at least ``minimumAmount`` US dollars, and more than ``factor`` times the
    most that an hour about this time of the week cost in the four weeks before."""

    enabled: bool
    factor: Number
    minimum_amount: Number


class DailySummaryAsked(Answer):
    """A summary follows each day of the zone."""

    enabled: bool
    time_zone: str


class Notices(Answer):
    """What the org asks for. Every change raises ``version``; 0: nobody has asked for anything yet."""

    org_id: UUID
    org_name: str | None
    version: Count
    updated_at: Time | None
    unusual_spend: UnusualSpendAsked
    daily_summary: DailySummaryAsked


class UnusualWeek(Answer):
    """The dearest hour about this time of the week, of a week before: at most an hour earlier or later."""

    hour_start: Time
    spent: Number


class UnusualHour(Answer):
    """What made the hour unusual. ``usual`` is the most of the weeks before. ``unpriced`` counts the calls of
    the hour whose cost nobody knows: they are not in ``spent``."""

    spent: Number
    usual: Number
    factor: Number
    minimum_amount: Number
    unpriced: Count
    weeks: list[UnusualWeek]


class ComparedDay(Answer):
    """What a day before cost. ``cost`` is null if the rows of that day are kept no more."""

    start: Time
    cost: Cost | None


class SummaryModel(Answer):
    """A model by its labels, which are null if no event has said them."""

    model_id: UUID
    model_name: str | None
    provider: str | None
    invocations: Count
    cost: Cost


class DayFigures(Answer):
    """The figures of a day. ``topModels`` are the dearest five of ``modelCount``. ``unpriced`` counts the
    calls whose cost nobody knows, of ``unpricedModelCount`` models; ``unpricedModels`` are the five with the
    most of such calls."""

    day: str
    time_zone: str
    cost: Cost
    day_before: ComparedDay
    week_before: ComparedDay
    invocations: Count
    errors: Count
    error_rate: float | None
    input_tokens: Count
    output_tokens: Count
    top_models: list[SummaryModel]
    model_count: Count
    unpriced: Count
    unpriced_models: list[SummaryModel]
    unpriced_model_count: Count


class Notice(Answer):
    """An hour of unusual spend or a summary of a day: the other one of ``unusualSpend`` and ``dailySummary``
    is null. The figures are those of one snapshot: at ``watermark`` and by ``priceVersion``. ``final``: only
    a backfill can change them. A notice that was sent stays, whatever changes later."""

    notice_id: UUID
    kind: NoticeKind
    period_start: Time
    period_end: Time
    watermark: Time
    final: bool
    price_version: Count
    noticed_at: Time
    unusual_spend: UnusualHour | None
    daily_summary: DayFigures | None
