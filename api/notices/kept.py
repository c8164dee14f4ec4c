"""What orgs ask for and what was found as the database keeps them, and how answers show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from psycopg.rows import dict_row

from api.answering import notices as answers
from api.answering.money import dollars_of
from api.answering.notices import DayFigures, Notice, UnusualHour
from api.budgets.rules import plain
from api.notices.rules import NOTHING, Asked, Settings, Summary, Unusual
from api.reading.database import rows
from pipeline.common.connect import AsyncConnection
from sql import queries

UNUSUAL: Final = "spend.unusual"
DAILY: Final = "spend.daily"
COLUMNS: Final = (
    "org_id, version, unusual_enabled, unusual_factor, unusual_minimum, unusual_since, unusual_to,"
    " summary_enabled, summary_zone, summary_since, summary_to, updated_at"
)
SENT_COLUMNS: Final = (
    "notice_id, org_id, kind, period_start, period_end, watermark, final, price_version, figures, noticed_at"
)
SQL: Final = {
    name: text.replace("{columns}", COLUMNS).replace("{sent_columns}", SENT_COLUMNS)
    for name, text in queries.load("notices").items()
}


def values_of(asked: Asked) -> dict[str, Any]:
    """What an org asks for as values of the query ``set``."""
    return {
        "unusual_enabled": asked.unusual.enabled,
        "unusual_factor": asked.unusual.factor,
        "unusual_minimum": asked.unusual.minimum,
        "summary_enabled": asked.summary.enabled,
        "summary_zone": asked.summary.zone.key,
    }


async def settings(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> list[Settings]:
    """The settings that a query of `SQL` finds or writes."""
    return [_settings_of(row) for row in await rows(connection, SQL[name], values, dict_row)]


def _settings_of(row: Mapping[str, Any]) -> Settings:
    asked = Asked(
        unusual=Unusual(
            enabled=row["unusual_enabled"], factor=row["unusual_factor"], minimum=row["unusual_minimum"]
        ),
        summary=Summary(enabled=row["summary_enabled"], zone=ZoneInfo(row["summary_zone"])),
    )
    same = ("org_id", "version", "unusual_since", "unusual_to", "summary_since", "summary_to", "updated_at")
    return Settings(asked=asked, **{name: row[name] for name in same})


def settings_shown(org_id: UUID, org_name: str | None, kept: Settings | None) -> answers.Notices:
    """What an org asks for; None: nobody has said anything yet."""
    asked = kept.asked if kept else NOTHING
    return answers.Notices(
        org_id=org_id,
        org_name=org_name,
        version=kept.version if kept else 0,
        updated_at=kept.updated_at if kept else None,
        unusual_spend=answers.UnusualSpendAsked(
            enabled=asked.unusual.enabled,
            factor=plain(asked.unusual.factor),
            minimum_amount=dollars_of(asked.unusual.minimum),
        ),
        daily_summary=answers.DailySummaryAsked(
            enabled=asked.summary.enabled, time_zone=asked.summary.zone.key
        ),
    )


_SAME: Final = (
    "notice_id",
    "kind",
    "period_start",
    "period_end",
    "watermark",
    "final",
    "price_version",
    "noticed_at",
)


def notice_shown(row: Mapping[str, Any]) -> Notice:
    """A notice from a row with `SENT_COLUMNS`."""
    hour, day = None, None
    if row["kind"] == UNUSUAL:
        hour = msgspec.convert(row["figures"], UnusualHour)
    else:
        day = msgspec.convert(row["figures"], DayFigures)
    return Notice(unusual_spend=hour, daily_summary=day, **{name: row[name] for name in _SAME})
