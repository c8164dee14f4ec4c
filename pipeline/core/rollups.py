"""The rollup rows of one partition that are in memory, and the events that wait for other rows.

Accepted events are gathered in cells (`pipeline.core.cells`). The cells are added to the tables
(`pipeline.core.windows`) once their blocks are in memory. A block is all rows of one org and bucket of a
table. A block leaves memory when its end lies well behind the watermark. The block is *cold* then: only late
events still touch it. A cell that touches a cold block waits, until `missing` has named the block and `adopt`
has brought its rows. For example, an event of 09:10 comes at 12:00. Its day is in memory, but its minute and
its hour have left memory. The event waits for the rows of both, and is then added to all tables at once.

The rollups know nothing of duplicates, dead letters or offsets. Events are judged before they are added here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import numbering
from pipeline.core.batch import Block, SeenRows, StoredRows, Tally
from pipeline.core.cells import FIRST_US, LABEL, LAST_US, MINUTE, Cells, Gathering, buckets, row_keys
from pipeline.core.events import Columns, Names, Reader
from pipeline.core.room import SUMS, Day
from pipeline.core.rules import Rules
from pipeline.core.watermark import DAY_US
from pipeline.core.windows import (
    BREAKDOWNS,
    BUCKET,
    CLIENT,
    CODE,
    ERRORS,
    GRAINS,
    LATE_MINUTE,
    MODEL,
    ORG,
    USAGE_DAY,
    USAGE_QUARTER,
    Grain,
    Labels,
    NameCap,
    Spans,
    Table,
    TableRows,
)

IntArray = npt.NDArray[Any]

ERROR_CODES_PER_ORG_HOUR_MAX: Final = 100
LOADED_BLOCKS_MAX: Final = 20_000
NAMES_MAX: Final = 200_000
"""With more orgs (or models, clients, error codes) than this, a batch ends by forgetting the unused ones."""

_CELL_ROWS: Final = len(GRAINS) + 3
"""Rows that one cell of events can change: one in each table, and one each of orgs, models and clients.

With split hours, there is one more: a quarter.
"""
_VALUE_CELL_ROWS: Final = len(BREAKDOWNS) + 1
"""The same for a cell of a dimension: one row in each of its tables, and one of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The rollups' part of a `Batch`: changed rows, and when each org, model, client and value was seen."""

    tables: list[StoredRows]
    orgs: SeenRows
    models: SeenRows
    clients: SeenRows
    values: list[SeenRows]


class Rollups:
    """All rollup rows of one partition that are in memory. Not thread-safe."""

    def __init__(self, rules: Rules, reader: Reader, tally: Tally) -> None:
        """``reader`` numbers the orgs and names. Late events and capped names are counted in ``tally``."""
        self._reader = reader
        self._tally = tally
        self._dimensions = [one.name for one in reader.dimensions]
        self._is_split = np.isin(np.arange(24), rules.split_hours)
        quarters = (USAGE_QUARTER,) if rules.split_hours else ()
        self._cell_rows = _CELL_ROWS + len(quarters)
        self._tables_of = [
            {grain: Table(grain) for grain in (*GRAINS, *quarters, ERRORS)},
            *(
                {grain: Table(grain) for grain in breakdowns}
                for breakdowns in map(_grains_of, self._dimensions)
            ),
        ]
        """The tables of the cells by client, and then those of each dimension."""
        self._tables = {grain: table for tables in self._tables_of for grain, table in tables.items()}
        self.caps: Final = {
            MODEL: NameCap(rules.models_per_org_hour_max, overflow=Reader.OVERFLOW_MODEL),
            CLIENT: NameCap(rules.clients_per_org_hour_max, overflow=Names.OVERFLOW),
            CODE: NameCap(ERROR_CODES_PER_ORG_HOUR_MAX, overflow=Names.OVERFLOW),
        }
        self.value_caps: Final = [
            NameCap(rules.values_per_org_hour_max, overflow=Names.OVERFLOW_VALUE) for _ in self._dimensions
        ]
        self._dirty_rows: int | None = 0
        """How many rows of the tables are dirty. None: they must be counted."""
        self._gathering = Gathering(reader)
        self._cold: list[list[Cells]] = []
        """Cells that wait: by client, and then by each dimension."""
        self._orgs, self._models, self._clients = Spans(1), Spans(2), Spans(2)
        self._values = [Spans(2) for _ in self._dimensions]
        self._labels = Labels()
        self._sweep_at = dict.fromkeys(("orgs", "models", "clients", "error_codes", "labels"), NAMES_MAX)

    @property
    def dirty_rows(self) -> int:
        """At most how many rows the next drain writes. Exact after `gather`, if no event waits for blocks."""
        if self._dirty_rows is None:
            self._dirty_rows = sum(table.dirty_count for table in self._tables.values())
        seen = len(self._orgs) + len(self._models) + len(self._clients) + sum(map(len, self._values))
        counts, failures = [self._gathering.cell_counts], self._gathering.failure_count
        for held in self._cold:
            counts.append([len(cells) for cells in held])
            failures += len(held[0].failure_keys)
        rows = sum(
            self._cell_rows * by_client + _VALUE_CELL_ROWS * sum(by_value) for by_client, *by_value in counts
        )
        return self._dirty_rows + seen + rows + failures

    @property
    def memory_bytes(self) -> int:
        tables = sum(table.memory_bytes for table in self._tables.values())
        return tables + self._labels.memory_bytes + sum(cap.memory_bytes for cap in self._all_caps)

    # --- events in -----------------------------------------------------------------------------------

    def add(self, columns: Columns, met_us: IntArray) -> None:
        """Add accepted events. ``met_us`` int64[n] is the watermark that each event met on arrival."""
        self._gathering.add(columns, met_us)

    def gather(self) -> None:
        """Add the gathered cells to the tables. A cell with a cold block waits until the block is loaded."""
        gathered = self._gathering.take()
        if gathered is None:
            return
        # The first names of an hour get rows of their own, so the caps must be applied in stream order. Where
        # the hour is in memory, they are applied now, even if the event then waits for its minute or day.
        # Otherwise the moment of a flush would decide which name came first.
        ready = self._hold_cold(gathered, [table for grain, table in self._tables.items() if grain.capped])
        self._apply_caps(ready)
        self._add(self._hold_cold(ready, self._tables.values()))

    def _hold_cold(self, gathered: list[Cells], tables: Collection[Table]) -> list[Cells]:
        """Let the cells wait whose org and minute lie in a cold block of one of the tables; the other cells.

        The cells by client and by value of an event have the same org and minute, so they wait together.
        """
        masks = [
            (self._is_cold(cells.keys, tables), self._is_cold(cells.failure_keys, tables))
            for cells in gathered
        ]
        if not masks[0][0].any():
            return gathered
        pairs = list(zip(gathered, masks, strict=True))
        self._cold.append([cells.take(cold, failures) for cells, (cold, failures) in pairs])
        return [cells.take(~cold, ~failures) for cells, (cold, failures) in pairs]

    def _apply_caps(self, gathered: Sequence[Cells]) -> None:
        """Decide which models, clients, values and error codes keep a row of their own, in order.

        The caps of the org and hour decide. The other names are replaced by the number of the overflow.
        """
        by_client, *by_value = gathered
        if by_client.named:
            return
        for cells in gathered:
            cells.named = True
        over = _apply_cap(self.caps[MODEL], by_client.keys, MODEL)
        self._tally.capped_models += int(by_client.totals[over, 0].sum())
        _apply_cap(self.caps[MODEL], by_client.failure_keys, MODEL)
        over = _apply_cap(self.caps[CLIENT], by_client.keys, CLIENT)
        self._tally.capped_clients += int(by_client.totals[over, 0].sum())
        _apply_cap(self.caps[CLIENT], by_client.failure_keys, CLIENT)
        _apply_cap(self.caps[CODE], by_client.failure_keys, CODE)
        for cells, cap in zip(by_value, self.value_caps, strict=True):
            _apply_cap(self.caps[MODEL], cells.keys, MODEL)  # all of them have been decided above
            _apply_cap(cap, cells.keys, CLIENT)
            self._tally.capped_values += int(cells.totals[cells.keys[:, CLIENT] == cap.overflow, 0].sum())

    def _add(self, gathered: Sequence[Cells]) -> None:
        """Add cells of resident blocks, with the caps applied, to every table."""
        by_client, *by_value = gathered
        if not len(by_client):
            return
        self._dirty_rows = None
        for cells, tables in zip(gathered, self._tables_of, strict=True):
            pairs = cells.pair_cells, cells.pair_bins, cells.pair_counts
            for grain, table in tables.items():
                if grain.split_only:
                    self._add_quarters(cells, table)
                elif not grain.counts_only:
                    table.add(row_keys(cells.keys, grain), cells.totals, pairs)
                elif len(cells.failure_keys):
                    table.count(row_keys(cells.failure_keys, grain), cells.failure_counts)
        self._tally.late += int(by_client.totals[:, LATE_MINUTE].sum())
        _see(self._orgs, by_client, ORG)
        _see(self._models, by_client, ORG, MODEL)
        _see(self._clients, by_client, ORG, CLIENT)
        for cells, spans in zip(by_value, self._values, strict=True):
            _see(spans, cells, ORG, CLIENT)
        labels = by_client.totals[:, LABEL]
        labelled = np.flatnonzero((labels[:, 0] > 0) & (by_client.keys[:, MODEL] != Reader.OVERFLOW_MODEL))
        if len(labelled):
            keys = by_client.keys[labelled].take([ORG, MODEL], axis=1)
            self._labels.add(keys, labels[labelled], self._reader.labels.pooled)

    def _add_quarters(self, cells: Cells, table: Table) -> None:
        """Add the cells of split hours to the table of quarters."""
        mine = cells.take(self._in_split_hours(cells.keys), np.zeros(len(cells.failure_keys), np.bool_))
        if len(mine):
            pairs = mine.pair_cells, mine.pair_bins, mine.pair_counts
            table.add(row_keys(mine.keys, table.grain), mine.totals, pairs)

    def _in_split_hours(self, keys: IntArray) -> IntArray:
        """Mask (bool[n]) of the cells or failures that lie in split hours."""
        split: IntArray = self._is_split[keys[:, MINUTE] // 60 % 24]
        return split

    # --- blocks that are not in memory -------------------------------------------------------------------

    def _is_cold(self, keys: IntArray, tables: Iterable[Table]) -> IntArray:
        """Mask (bool[n]) of the cells or failures that touch a cold block of one of the tables."""
        cold = np.zeros(len(keys), np.bool_)
        for table in tables:
            touched = table.cold(keys[:, ORG], buckets(keys, table.grain))
            cold |= touched & self._in_split_hours(keys) if table.grain.split_only else touched
        return cold

    @property
    def waits(self) -> bool:
        """Do gathered events wait for cold blocks? `missing` names the blocks, and `adopt` brings them."""
        return bool(self._cold)

    def missing(self, days: Collection[Day] = ()) -> list[Block]:
        """The cold blocks that waiting events need, and the blocks of ``days``."""
        wanted: list[Block] = []
        orgs = self._reader.orgs.keys
        for grain, table in self._tables.items():
            blocks = set(days) if grain is USAGE_DAY else set()
            for by_client, *_ in self._cold:
                keys = by_client.keys
                if grain.split_only:
                    keys = keys[self._in_split_hours(keys)]
                blocks |= _cold_blocks(table, keys[:, ORG], buckets(keys, grain))
            wanted.extend(
                Block(grain=grain, org=(int(orgs[org, 0]), int(orgs[org, 1])), bucket=bucket)
                for org, bucket in sorted(blocks)
            )
        return wanted

    def adopt(self, stored: Sequence[StoredRows], blocks: Sequence[Block] = ()) -> tuple[list[Day], IntArray]:
        """Take in rows from the database, then add the events that waited for these rows.

        ``blocks`` are resident from now on, also a block for which ``stored`` has no row. In recovery
        ``blocks`` is empty, and ``stored`` has the rows of all buckets that `resident_from` names.

        Returns the days among the blocks, and the sums of the days' rows (int64[n, 4]).
        """
        self._dirty_rows = None
        by_grain: dict[Grain, list[tuple[int, int]]] = {}
        for org, block in zip(numbering.numbered_orgs(self._reader, blocks).tolist(), blocks, strict=True):
            by_grain.setdefault(block.grain, []).append((org, block.bucket))
        rows_by_grain = {rows.grain: numbering.numbered(self._reader, rows) for rows in stored}
        for grain, table in self._tables.items():
            if grain not in rows_by_grain and grain not in by_grain:
                continue
            rows = rows_by_grain.get(grain, _no_rows(grain))
            for column in grain.capped:
                cap = self._cap(grain, column)
                cap.restore(rows.keys[:, ORG], rows.keys[:, BUCKET], rows.keys[:, column])
            table.adopt(rows, by_grain.get(grain, ()))
        held, self._cold = self._cold, []
        for gathered in held:
            self._apply_caps(gathered)
            self._add(gathered)
        days = rows_by_grain.get(USAGE_DAY, _no_rows(USAGE_DAY))
        return by_grain.get(USAGE_DAY, []), days.measures[:, SUMS]

    # --- days, for the judge of the room in their sums -----------------------------------------------------

    def cold_days(self, org: IntArray, day: IntArray) -> IntArray:
        """Mask (bool[n]) of the days that are not in memory."""
        return self._tables[USAGE_DAY].cold(org, day)

    def missing_days(self, columns: Columns) -> set[Day]:
        """The days of the events that are not in memory."""
        return _cold_blocks(self._tables[USAGE_DAY], columns.org, columns.occurred_us // DAY_US)

    def sums_by_day(self) -> list[tuple[IntArray, IntArray]]:
        """The sums of all events that were added, in parts: (org, day) int[n, 2] and sums int64[n, 4].

        Waiting events make parts of their own.
        """
        self.gather()
        keys, measures = self._tables[USAGE_DAY].measures_before(2**31)
        held = [(row_keys(cells.keys, USAGE_DAY)[:, :2], cells.totals[:, SUMS]) for cells, *_ in self._cold]
        return [(keys[:, :2], measures[:, SUMS]), *held]

    # --- batches out ----------------------------------------------------------------------------------------

    def drain(self) -> Changes:
        """Hand out the rows that have changed since the last drain. No event may wait for blocks."""
        reader, self._dirty_rows = self._reader, None

        def in_key_order(keys: IntArray) -> IntArray:
            return numbering.key_order(reader, keys)

        return Changes(
            tables=[numbering.stored(reader, table.drain(in_key_order)) for table in self._tables.values()],
            orgs=numbering.seen_orgs(reader, self._orgs.drain()),
            models=numbering.seen_models(reader, self._models.drain(), self._labels),
            clients=numbering.seen_clients(reader, self._clients.drain()),
            values=[
                numbering.seen_clients(reader, spans.drain(), dimension)
                for dimension, spans in zip(self._dimensions, self._values, strict=True)
            ],
        )

    # --- memory -------------------------------------------------------------------------------------------

    def resident_from(self) -> list[tuple[Grain, int]]:
        """First resident bucket of every table."""
        return [(grain, table.horizon) for grain, table in self._tables.items()]

    def let_go(self, watermark_us: int) -> tuple[IntArray, IntArray] | None:
        """Drop the blocks from memory that only late events can still touch. No row may be dirty.

        Returns the days that leave memory, row by row: org and day int[n, 2], and sums int64[n, 4]. Returns
        None when the table of days kept all its blocks.
        """
        days = None
        for grain, table in self._tables.items():
            horizon = (watermark_us - grain.resident_us) // grain.length_us
            if horizon <= table.horizon and table.loaded_count <= LOADED_BLOCKS_MAX:
                continue
            if grain is USAGE_DAY:
                keys, measures = table.measures_before(max(horizon, table.horizon))
                days = keys[:, :2], measures[:, SUMS]
            table.evict(horizon)
            for column in grain.capped:
                self._cap(grain, column).evict(table.horizon)
        return days

    # --- forgetting orgs, models, clients and error codes, each time their number has doubled ---------------

    @property
    def has_orgs_to_forget(self) -> bool:
        """Are there enough orgs to make `forget_orgs` worth its time?"""
        return self._must_sweep("orgs", len(self._reader.orgs))

    def forget_orgs(self, *in_use: IntArray) -> None:
        """Forget the orgs that no row refers to. Orgs ``in_use`` elsewhere (int[n] each) are kept.

        The number of a forgotten org is free for the next new org.
        """
        orgs = self._reader.orgs
        of_rows = (table.orgs() for table in self._tables.values())
        of_caps = (cap.orgs() for cap in self._all_caps)
        orgs.keep(*in_use, *of_rows, *of_caps)
        self._swept("orgs", len(orgs))

    def forget_names(self) -> None:
        """Forget the models, clients, values and error codes that no row refers to. No event may wait."""
        reader = self._reader
        if self._must_sweep("models", len(reader.models)):
            of_rows = (table.column(MODEL) for table in self._tables.values())
            reader.models.keep(np.array([Reader.OVERFLOW_MODEL]), self.caps[MODEL].names(), *of_rows)
            self._swept("models", len(reader.models))
        if self._must_sweep("clients", len(reader.clients)):
            reader.clients = self._renumbered(reader.clients, CLIENT)
            self._swept("clients", len(reader.clients))
        if self._must_sweep("error_codes", len(reader.error_codes)):
            reader.error_codes = self._renumbered(reader.error_codes, CODE)
            self._swept("error_codes", len(reader.error_codes))
        if self._must_sweep("labels", len(reader.labels)):
            reader.labels = Names(*reader.labels.overflow)  # the drain has handed all of them out
            self._swept("labels", len(reader.labels))

    def _must_sweep(self, kind: str, count: int) -> bool:
        return count > self._sweep_at[kind]

    def _swept(self, kind: str, left: int) -> None:
        self._sweep_at[kind] = max(NAMES_MAX, 2 * left)

    def _renumbered(self, names: Names, column: int) -> Names:
        """The names that a key column uses, with new numbers, which the tables and the caps take."""
        caps = [self.caps[column], *(self.value_caps if column == CLIENT else ())]
        tables = [table for table in self._tables.values() if column in table.grain.key]
        used = np.unique(
            np.concatenate([*(cap.names() for cap in caps), *(table.column(column) for table in tables)])
        )
        kept = Names(*names.overflow)
        numbers = np.zeros(len(names.texts), np.int32)
        numbers[used] = kept.numbers([names.texts[old] for old in used.tolist()])
        for table in tables:
            table.renumber(column, numbers)
        for cap in caps:
            cap.renumber(numbers)
        return kept

    def _cap(self, grain: Grain, column: int) -> NameCap:
        """The cap of a key column of a grain."""
        return (
            self.value_caps[self._dimensions.index(grain.dimension)] if grain.dimension else self.caps[column]
        )

    @property
    def _all_caps(self) -> Sequence[NameCap]:
        return [*self.caps.values(), *self.value_caps]


def _grains_of(dimension: str) -> list[Grain]:
    return [grain.of(dimension) for grain in BREAKDOWNS]


def _apply_cap(cap: NameCap, keys: IntArray, column: int) -> IntArray:
    return cap.apply(keys[:, ORG], keys[:, MINUTE] // 60, keys[:, column])


def _see(spans: Spans, cells: Cells, *columns: int) -> None:
    """Note the first and the last event of the cells' orgs, models, clients or values."""
    # take() and copy() make C-ordered arrays, the one kind that the kernels are compiled for.
    first_us, last_us = cells.totals[:, FIRST_US].copy(), cells.totals[:, LAST_US].copy()
    spans.add(cells.keys.take(columns, axis=1), first_us, last_us)


def _cold_blocks(table: Table, org: IntArray, bucket: IntArray) -> set[tuple[int, int]]:
    """The blocks among (org, bucket), int[n] each, that the table does not have in memory."""
    cold = table.cold(org, bucket)
    return set(zip(org[cold].tolist(), bucket[cold].tolist(), strict=True))


def _no_rows(grain: Grain) -> TableRows:
    no_keys = np.empty((0, len(grain.key)), np.int32)
    return TableRows(grain, no_keys, np.empty((0, len(grain.measures)), np.int64), ())
