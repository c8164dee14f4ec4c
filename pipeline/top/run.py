"""What ``spendstream top`` does: it finds out what to show, and shows it live or once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import UUID

from pipeline.collector import ids
from pipeline.common.operator import OperatorError
from pipeline.common.texts import counted
from pipeline.top import layout
from pipeline.top.client import Api, ApiConfig, Away, Refused
from pipeline.top.figures import Figures, Row, View, ordered
from pipeline.top.reading import MODEL, ORG, OneOrg, Orgs
from pipeline.top.texts import safe


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    """What to show. ``org`` is a UUID or a name; None: the only org of the caller, or all orgs. ``by`` None:
    by model, or all orgs."""

    org: str | None
    by: str | None
    interval_s: float
    sort: str


class NeedsOrg(OperatorError):
    """The caller has several orgs, and must name the one that is meant."""


def run(config: ApiConfig, options: TopOptions) -> None:
    """Show live figures until somebody quits.

    Raises:
        OperatorError: the API refuses the caller, or the package that draws is missing.
    """
    try:
        import textual  # noqa: F401
    except ImportError:
        raise OperatorError(
            "the screen needs the package textual: pip install 'spendstream[top]'; --once prints a snapshot"
            " without it"
        ) from None
    asyncio.run(_live(config, options))


async def _live(config: ApiConfig, options: TopOptions) -> None:
    from pipeline.top.screen import Top

    async with Api(config) as api:
        try:
            reading = await _reading(api, options)
        except Refused as refused:
            raise _explained(refused, options) from None
        top = Top(api, reading, interval_s=options.interval_s, sort=options.sort)
        for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is restored on the way out
            asyncio.get_running_loop().add_signal_handler(number, top.exit)
        await top.run_async(mouse=False)  # so that text can be selected as anywhere
        if top.refused is not None:
            raise _explained(top.refused, options)


def once(
    config: ApiConfig, options: TopOptions, *, width: int, as_json: bool, echo: Callable[[str], None]
) -> None:
    """Print one snapshot.

    Raises:
        OperatorError: the API refuses the caller, or does not answer.
    """
    view = asyncio.run(_read(config, options))
    rows = ordered(view.rows, options.sort)
    echo(
        json.dumps(_fields(view, rows), ensure_ascii=False)
        if as_json
        else layout.plain(view, options.sort, rows, width)
    )


async def _read(config: ApiConfig, options: TopOptions) -> View:
    async with Api(config) as api:
        try:
            reading = await _reading(api, options)
            if isinstance(reading, Orgs):
                reading.trend_minutes = 1  # each minute of a trend costs a question
            return await reading.read()
        except Refused as refused:
            raise _explained(refused, options) from None
        except Away as away:
            raise OperatorError(str(away)) from None


async def _reading(api: Api, options: TopOptions) -> Orgs | OneOrg:
    if options.by == ORG:
        return Orgs(api)
    org_id = await _only_org(api) if options.org is None else str(await _org_id(api, options.org))
    if org_id is not None:
        return OneOrg(api, org_id, options.by or MODEL)
    if options.by is not None:
        raise NeedsOrg(f"--by {options.by} is of one org: name it by --org")
    return Orgs(api)


async def _only_org(api: Api) -> str | None:
    """The org of a caller who has one. None: the caller has several, or the API cannot say so now."""
    try:
        caller = (await api.get("/caller")).body
        orgs = [] if caller["allOrgs"] else caller["orgs"]
    except Away:
        return None
    except Refused as refused:
        if refused.status == HTTPStatus.NOT_FOUND:
            return None  # an API from before this question
        raise
    except (KeyError, TypeError):
        raise Refused(HTTPStatus.OK, f"{api.config.url} does not say who asks: is it the API?") from None
    return str(orgs[0]) if orgs and len(orgs) == 1 else None


async def _org_id(api: Api, org: str) -> UUID:
    """The org that a text means: a UUID, the name that an administrator has set, or one that makes a UUID.

    Raises OperatorError: the API does not answer, or several orgs have the name.
    """
    given = ids.uuid_of(org)
    if given is not None:
        return given
    try:
        _, items, _ = await api.pages("/orgs", [("last", "1h"), ("limit", "1000")], "items", 10)
    except Refused:
        return ids.org_id(org)  # only administrators may look names up
    except Away as away:
        raise OperatorError(str(away)) from None
    found = [item["orgId"] for item in items if item["orgName"] == org]
    if len(found) > 1:
        raise OperatorError(f"{counted(len(found), 'org')} are called {safe(org)}: {', '.join(found[:5])}")
    return UUID(found[0]) if found else ids.org_id(org)


def _explained(refused: Refused, options: TopOptions) -> OperatorError:
    """The refusal, with what to do about it."""
    if refused.status == HTTPStatus.UNAUTHORIZED:
        return OperatorError(f"{refused}; set SPENDSTREAM_API_KEY or SPENDSTREAM_TOKEN, or a file of one")
    if refused.status == HTTPStatus.FORBIDDEN and options.org is None:
        return OperatorError(f"{refused}; all orgs are for administrators: name your org by --org")
    return refused


# --- a snapshot for programs -------------------------------------------------------------------------


def _fields(view: View, rows: list[Row]) -> dict[str, Any]:
    fresh = view.total.freshness
    return {
        "title": view.title,
        "by": view.by,
        "at": view.read_at.isoformat(),
        "minuteStart": view.minute_start and view.minute_start.isoformat(),
        "hourCovers": view.hour_words,
        "freshness": None
        if fresh is None
        else {
            "status": fresh.status,
            "lagSeconds": fresh.lag_now_s(view.read_s),
            "watermark": fresh.watermark and fresh.watermark.isoformat(),
        },
        "total": _row_fields(view.total),
        "rows": [{"key": row.key, "name": row.name, **_row_fields(row)} for row in rows],
        "notes": list(view.notes),
    }


def _row_fields(row: Row) -> dict[str, Any]:
    return {
        "minute": None if row.minute is None else _figure_fields(row.minute),
        "hour": _figure_fields(row.hour),
        "today": _figure_fields(row.today),
    }


def _figure_fields(figures: Figures) -> dict[str, Any]:
    amount = figures.spend.amount
    return {
        "invocations": figures.requests,
        "inputTokens": figures.tokens_in,
        "outputTokens": figures.tokens_out,
        "cacheReadTokens": figures.cached,
        "cost": {"amount": None if amount is None else f"{amount:f}", "basis": figures.spend.basis},
        "unpriced": figures.spend.unpriced,
        "errorRate": figures.error_share,
        "p95Ms": figures.p95_ms,
    }
