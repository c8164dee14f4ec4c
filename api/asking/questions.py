"""Questions: what the parameters of a request ask for together, or every fault in them at once.

A question that leaves this module can be answered in full. Its range is whole minutes and within the limits,
and the rows that it needs are still kept. So a partial answer never passes for a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from multidict import MultiMapping

from api.asking import params
from api.asking.buckets import (
    DAY,
    NO_QUARTERS,
    Calendar,
    Granularity,
    Last,
    Quarters,
    Span,
    to_datetime,
    to_minute,
)
from api.asking.cursors import CursorError, Cursors
from api.asking.limits import Limits, Report, shown
from api.asking.params import CLIENT, DIMENSION, MINUTE_US, CostBasis, Parameter, Percentile, Reader
from api.config import RangeConfig
from pipeline.common import ids
from pipeline.common.problems import Fault, invalid_parameters

T = TypeVar("T")
_ACTOR: Final = "actorId"
"""The source of dimensions whose values are the ids of actors."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the bucket and the keys of its last point. A key that does not group is None."""

    bucket: int
    model_id: UUID | None
    client_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """How calls are to be priced. ``version`` None: by the newest version of the book."""

    version: int | None = None
    basis: CostBasis = CostBasis.AUTO

    @property
    def bound_to(self) -> str:
        """What a cursor is signed for; empty for what it means to say nothing about prices."""
        return "" if self == Pricing() else f"|{self.version}|{self.basis}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresQuestion:
    """A page of the usage or reliability of one org.

    ``client_ids`` may hold '' for events without a client. ``bound_to`` is what a cursor is signed for.

    With a ``dimension``, its values are in the place of the clients: ``by_client`` and ``client_ids`` are
    about these values, and so is `Position.client_id`. ``pricing`` matters to usage alone, and
    ``percentiles`` to reliability; none of these: all. With ``needs_quarters`` it can be answered only by
    rows of quarters: `Parser.with_quarters` adds those. ``moves``: see `sealed`.
    """

    org_id: UUID
    span: Span
    calendar: Calendar
    model_ids: tuple[UUID, ...]
    client_ids: tuple[str, ...]
    by_model: bool
    by_client: bool
    limit: int
    after: Position | None
    bound_to: str
    pricing: Pricing
    dimension: str = ""
    needs_quarters: bool = False
    quarters: Quarters = NO_QUARTERS
    percentiles: tuple[Percentile, ...] = ()
    moves: bool = False

    @property
    def needs_clients(self) -> bool:
        return self.by_client or bool(self.client_ids)

    @property
    def named_by(self) -> str:
        """Whose values the points have names of: the clients, a dimension, or '' for neither."""
        return (self.dimension or CLIENT) if self.by_client else ""

    @property
    def by_value(self) -> bool:
        """Are the clients of the points the values of a dimension?"""
        return self.by_client and bool(self.dimension)

    @property
    def of_whole_org(self) -> bool:
        """Is no usage of the org left out by a filter?"""
        return not (self.model_ids or self.client_ids)


@dataclass(frozen=True, slots=True)
class Counted:
    """A dimension: its source, and the time from which on all events of the org are counted by it.

    ``since`` is None while some partition of the org does not count the dimension yet.
    """

    name: str
    source: str
    since: datetime | None

    def narrow(self, question: FiguresQuestion) -> FiguresQuestion:
        """The part of the question that can be answered in full. Raises `Problem` 400 if there is none."""
        if lacking := self.lacking(question.span):
            raise invalid_parameters([lacking])
        assert self.since is not None
        since = max(question.span.start, to_minute(self.since))
        return self.folded(replace(question, span=Span(since, question.span.end)))

    def folded(self, question: FiguresQuestion) -> FiguresQuestion:
        """The question with the values as events have them: ids of actors are in lower case."""
        values = {self.as_counted(value) for value in question.client_ids}
        return replace(question, client_ids=tuple(sorted(values)))

    def as_counted(self, value: str) -> str:
        """A value as events have it."""
        return ids.folded(value) if self.source == _ACTOR else value

    def lacking(self, span: Span, *, whole: bool = False) -> Fault | None:
        """Why there are no figures of any part of the range, or with ``whole`` not of all of it."""
        if self.since is None:
            message = f"{self.name} is not counted yet in every partition of this org; ask later"
            return Fault(DIMENSION.name, message)
        since = to_minute(self.since)
        if since <= span.start or (since < span.end and not whole):
            return None
        message = f"{self.name} is counted since {shown(since)}: there are no figures before"
        return Fault("start" if whole else "end", message)


def counted(known: Sequence[Counted], name: str, asked_by: str) -> Counted:
    """The dimension of that name. Raises `Problem` 400 about the field ``asked_by`` if it is not set."""
    for one in known:
        if one.name == name:
            return one
    raise invalid_parameters([Fault(asked_by, f"the dimensions are {listed(known)}")])


def listed(known: Sequence[Counted]) -> str:
    """The dimensions that can be asked for."""
    return ", ".join((CLIENT, *(one.name for one in known)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgsQuestion:
    """A page of all orgs with totals of a range."""

    span: Span
    limit: int
    after: UUID | None
    bound_to: str
    pricing: Pricing
    moves: bool = False


def sealed(question: FiguresQuestion | OrgsQuestion, position: Any) -> Any:
    """What the cursor of a page holds that ended at a position.

    The range of ``last`` moves with the clock. So its cursor has the first page's range too, and all pages
    are of one range.
    """
    return (position, question.span.start, question.span.end) if question.moves else position


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingQuestion:
    """A page of what an org has; ``after`` is the key of the last item of the page before.

    ``chosen`` are the values that the route's filter names; none: all items.
    """

    limit: int
    after: Any
    bound_to: str
    chosen: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentsQuestion:
    """A page of an org's adjustments, by the instant at which their periods begin; None: any.

    ``retracted``: also those that are retracted, and the rows that retract them. ``after`` is the id of the
    last row of the page before.
    """

    org_id: UUID
    start: datetime | None
    end: datetime | None
    retracted: bool
    limit: int
    after: int
    bound_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesQuestion:
    """A page of the price book. ``sees`` are the orgs whose own prices the caller may see; None: all orgs.

    ``after`` is the id of the last row of the page before.
    """

    provider: str | None
    model_name: str | None
    org_id: UUID | None
    kind: str | None
    service_tier: str | None
    at: datetime | None
    version: int | None
    retracted: bool
    sees: Sequence[UUID] | None
    limit: int
    after: int
    bound_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """Makes questions of query strings. ``clock`` gives the time, which decides which rows are still kept.

    Every method raises `Problem` 400 with all faults of the query.
    """

    ranges: RangeConfig
    cursors: Cursors
    clock: Callable[[], datetime]

    @property
    def limits(self) -> Limits:
        """The limits of ranges now."""
        return Limits(ranges=self.ranges, now=to_minute(self.clock()))

    def figures(self, route: str, org_id: UUID, query: MultiMapping[str]) -> FiguresQuestion:
        """A question of the route for usage or reliability."""
        reader = Reader(query, params.USAGE if route == "usage" else params.RELIABILITY)
        period = _period(reader)
        granularity = reader.one(params.GRANULARITY, params.one_of(Granularity)) or Granularity.DAY
        zone = reader.one(params.TIME_ZONE, params.zone) or ZoneInfo("UTC")
        model_ids = reader.many(params.MODEL_ID, ids.uuid)
        client_ids = reader.many(params.CLIENT_ID, params.client_id)
        group_by = reader.all(params.GROUP_BY, params.group_by)
        groups = frozenset((params.MODEL,)) if group_by is None else group_by
        chosen = reader.many(DIMENSION, params.dimension)
        limit = self._limit(reader)
        pricing = _pricing(reader)
        percentiles = reader.many(params.PERCENTILE, params.one_of(Percentile))
        calendar = Calendar(granularity, zone)
        asked = {
            params.GROUP_BY.name: groups - {params.MODEL},
            params.CLIENT_ID.name: {CLIENT} if client_ids else set(),
            DIMENSION.name: {name for name, _ in chosen},
        }
        split_by = one_dimension(reader.fault, asked, granularity)
        bound_to = "|".join(
            (
                route,
                str(org_id),
                repr((*period.bound_to, granularity.value, zone.key, sorted(groups))),
                repr((model_ids, client_ids, *chosen)) + pricing.bound_to,
            )
        )

        def check(span: Span) -> None:
            if not (split_by and granularity is Granularity.MINUTE):
                self._check_rows_exist(reader, span, calendar, split_by=split_by)

        form = tuple[int, UUID | None, str | None]
        span, position = self._page_of(
            reader, period, zone, bound_to, form, check, whole_hours=bool(split_by)
        )
        reader.finish()
        assert span is not None
        return FiguresQuestion(
            org_id=org_id,
            span=span,
            calendar=calendar,
            model_ids=model_ids,
            client_ids=client_ids or tuple(value for _, value in chosen),
            by_model=params.MODEL in groups,
            by_client=bool(groups - {params.MODEL}),
            limit=limit,
            after=Position(*position) if position else None,
            bound_to=bound_to,
            pricing=pricing,
            dimension="" if split_by == CLIENT else split_by,
            needs_quarters=self.limits.needs_quarters(span, calendar, split_by=split_by),
            percentiles=percentiles,
            moves=period.last is not None,
        )

    def with_quarters(self, question: FiguresQuestion, quarters: Quarters) -> FiguresQuestion:
        """The question with the quarters that the database has. Raises `Problem` 400 if they are too few."""
        if faults := self.limits.lacking(question.span, question.calendar, split_by="", quarters=quarters):
            raise invalid_parameters(faults)
        return replace(question, quarters=quarters)

    def orgs(self, query: MultiMapping[str]) -> OrgsQuestion:
        """A question of the route for all orgs."""
        reader = Reader(query, params.ORGS)
        period = _period(reader)
        limit = self._limit(reader)
        pricing = _pricing(reader)
        zone = ZoneInfo("UTC")
        bound_to = "|".join(("orgs", *map(str, period.bound_to))) + pricing.bound_to

        def check(span: Span) -> None:
            calendar = Calendar(Granularity.DAY, zone)
            reader.faults += self.limits.lacking(span, calendar, split_by="", quarters=NO_QUARTERS)

        span, after = self._page_of(reader, period, zone, bound_to, UUID, check, whole_hours=False)
        reader.finish()
        assert span is not None
        return OrgsQuestion(
            span=span,
            limit=limit,
            after=after,
            bound_to=bound_to,
            pricing=pricing,
            moves=period.last is not None,
        )

    def listing(
        self,
        route: str,
        org_id: UUID,
        query: MultiMapping[str],
        key: type,
        *,
        chosen_by: tuple[Parameter, Callable[[str], Any]] | None = None,
    ) -> ListingQuestion:
        """A question of a route that lists what an org has; ``key`` is the type of its cursor's position.

        ``chosen_by`` is the parameter that filters the items, and the parser of one value.
        """
        reader = Reader(query, (*(chosen_by or ())[:1], *params.LISTING))
        chosen = reader.many(*chosen_by) if chosen_by else ()
        limit = self._limit(reader)
        bound_to = f"{route}|{org_id}" + (f"|{[*map(str, chosen)]}" if chosen else "")
        after = self._after(reader, bound_to, key)
        reader.finish()
        return ListingQuestion(limit=limit, after=after, bound_to=bound_to, chosen=chosen)

    def prices(self, query: MultiMapping[str], *, sees: Sequence[UUID] | None) -> PricesQuestion:
        """A question of the route for the price book."""
        reader = Reader(query, params.PRICES)
        at = reader.one(params.AT, params.whole_minute)
        filters: dict[str, Any] = {
            "provider": reader.one(params.PROVIDER, params.text_up_to(64)),
            "model_name": reader.one(params.MODEL_NAME, params.text_up_to(128)),
            "org_id": reader.one(params.ORG_ID, ids.uuid),
            "kind": reader.one(params.KIND, params.price_kind),
            "service_tier": reader.one(params.SERVICE_TIER, params.service_tier),
            "at": None if at is None else to_datetime(at),
            "version": reader.one(params.VERSION, params.version),
            "retracted": reader.one(params.RETRACTED, params.boolean) or False,
        }
        limit = self._limit(reader)
        seen = None if sees is None else [*map(str, sees)]
        bound_to = f"prices|{seen}|{filters}"
        after = self._after(reader, bound_to, int)
        reader.finish()
        return PricesQuestion(**filters, sees=sees, limit=limit, after=after or 0, bound_to=bound_to)

    def adjustments(self, org_id: UUID, query: MultiMapping[str]) -> AdjustmentsQuestion:
        """A question of the route for an org's adjustments."""
        reader = Reader(query, params.ADJUSTMENTS)
        start = reader.one(params.PERIOD_FROM, params.whole_minute)
        end = reader.one(params.PERIOD_TO, params.whole_minute)
        retracted = reader.one(params.WITH_RETRACTED, params.boolean) or False
        if start is not None and end is not None and end <= start:
            reader.fault("end", "must be after start")
        limit = self._limit(reader)
        bound_to = f"adjustments|{org_id}|{start}|{end}|{retracted}"
        after = self._after(reader, bound_to, int)
        reader.finish()
        return AdjustmentsQuestion(
            org_id=org_id,
            start=None if start is None else to_datetime(start),
            end=None if end is None else to_datetime(end),
            retracted=retracted,
            limit=limit,
            after=after or 0,
            bound_to=bound_to,
        )

    def nothing(self, query: MultiMapping[str]) -> None:
        """For routes without parameters: every parameter is a fault."""
        Reader(query, params.NONE).finish()

    def _limit(self, reader: Reader) -> int:
        maximum = self.ranges.points_max
        given = reader.one(params.LIMIT, params.limit_up_to(maximum))
        return given or min(params.LIMIT_DEFAULT, maximum)

    def _page_of(
        self,
        reader: Reader,
        period: Period,
        zone: ZoneInfo,
        bound_to: str,
        form: Any,
        check: Callable[[Span], None],
        *,
        whole_hours: bool,
    ) -> tuple[Span | None, Any]:
        """The range of a question, if it is right, and where the page before ended.

        ``check`` reports what is lacking in a range. ``form`` is the type of a position.
        """
        limits = self.limits
        if period.last is None:
            span = None
            if period.start is not None and period.end is not None:
                span = limits.span(reader.fault, period.start, period.end, zone)
            if span:
                check(span)
            return span, self._after(reader, bound_to, form)
        found: Any = self._after(reader, bound_to, tuple[form, int, int])
        if found is None:
            position, asked = None, period.last.span(limits.now, zone, whole_hours=whole_hours)
        else:
            position, asked = found[0], Span(found[1], found[2])
        span = limits.span(reader.fault, asked.start, asked.end, zone)
        if span:
            check(span)
        return span, position

    def _check_rows_exist(self, reader: Reader, span: Span, calendar: Calendar, *, split_by: str) -> None:
        if calendar.granularity is Granularity.MINUTE and span.end - span.start > DAY:
            reader.fault("end", "must be at most 24 hours after start for granularity=minute")
        else:
            reader.faults += self.limits.lacking(span, calendar, split_by=split_by)

    def _after(self, reader: Reader, bound_to: str, form: type[T]) -> T | None:
        if reader.faults:  # the cursor is bound to all parameters, and one of them is faulty
            reader.one(params.CURSOR, str)
            return None

        def opened(text: str) -> T:
            try:
                return self.cursors.open(text, bound_to, form)
            except CursorError:
                raise ValueError(
                    "was not given out for this org and these parameters, or is no longer valid; start over"
                    " without it"
                ) from None

        return reader.one(params.CURSOR, opened)


@dataclass(frozen=True, slots=True)
class Period:
    """The range that a query asks for: whole minutes, or one that ends now. All None: there is a fault."""

    start: int | None = None
    end: int | None = None
    last: Last | None = None

    @property
    def bound_to(self) -> tuple[Any, ...]:
        """What a cursor is signed for."""
        return (self.start, self.end) if self.last is None else (self.last.value,)


def whole_minutes(fault: Report, start_us: int, end_us: int) -> tuple[int, int] | None:
    """The minutes that a range touches: from 12:34:56 to 12:35:01 it is 12:34 to 12:36. None: it is empty."""
    if end_us <= start_us:
        fault("end", "must be after start")
        return None
    return start_us // MINUTE_US, -(-end_us // MINUTE_US)


def _period(reader: Reader) -> Period:
    start, end = (reader.one(params.START, params.instant), reader.one(params.END, params.instant))
    last = reader.one(params.LAST, params.one_of(Last))
    edges = [edge for edge in (params.START, params.END) if reader.has(edge)]
    if reader.has(params.LAST):
        if edges:
            reader.fault(params.LAST.name, "is in the place of start and end: give it without them")
            return Period()
        return Period(last=last)
    for edge in (params.START, params.END):
        if edge not in edges:
            reader.fault(edge.name, "is required")
    minutes = None if start is None or end is None else whole_minutes(reader.fault, start, end)
    return Period(*(minutes or ()))


def _pricing(reader: Reader) -> Pricing:
    version = reader.one(params.PRICE_VERSION, params.version)
    basis = reader.one(params.COST_BASIS, params.one_of(CostBasis))
    return Pricing(version=version, basis=basis or CostBasis.AUTO)


def one_dimension(fault: Report, asked: Mapping[str, Set[str]], granularity: Granularity) -> str:
    """What the rows must be split by beside the model: the client, or one dimension, or '' for neither.

    ``asked`` has, by parameter, what the question names. Orders of exports ask here, too.
    """
    given = {parameter: names for parameter, names in asked.items() if names}
    found = sorted(set().union(*given.values()))
    if len(found) > 1:
        fault(list(given)[-1], params.ONE_DIMENSION)
    elif found and granularity is Granularity.MINUTE:
        for parameter in given:
            fault(parameter, f"figures by {found[0]} exist from the hour grain up, not by minute")
    return found[0] if found else ""
