"""Bodies in, columns out: the fast reader of the wire contract.

This module owns speed and nothing else. The compiled `scan` reads the bodies that are plainly right. Ids and
names become small numbers. All other bodies go to `wire.read`, which has the last word. So the fast path may
pass on a body that is valid after all, but it must never accept a body that `wire.read` rejects.
``tests/unit/test_events.py`` compares the two.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core import kernels, scan, wire
from pipeline.core.bodies import KEPT_BYTES_MAX, PADDING, Bodies
from pipeline.core.dimensions import Dimension
from pipeline.core.kernels.compile import handle
from pipeline.core.rate_classes import RateClasses, in_order
from pipeline.core.secret import SECRET
from pipeline.core.wire import Event, Fault, Invalid

IntArray = npt.NDArray[Any]


DETAILS: Final = (
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "unestimated",
)
"""Measures of an event that most events have none of. ``unestimated`` is 1 for an event without an estimate
of its cost, else 0.

They are the first columns of `Columns.details`, one array that is copied as a whole.
"""
TIER: Final = len(DETAILS)
"""The last column of `Columns.details`: the service tier, a place in `wire.SERVICE_TIERS`."""
_UNESTIMATED: Final = DETAILS.index("unestimated")
PROVIDER, MODEL_NAME = range(2)
"""Columns of `Columns.labels`."""


class Names:
    """Numbers strings in the order in which they first come.

    '' has the number 0, and the overflow has the number `OVERFLOW`. ``texts`` and ``digests`` have the text
    and its digest by number.
    """

    OVERFLOW: Final = 1
    """The number of the name for everything over the cap of an org's hour. No event has this name."""
    OVERFLOW_VALUE: Final = 2
    """The same for the values of dimensions, which are numbered among the clients."""

    def __init__(self, *overflow: str) -> None:
        """``overflow``: texts that no event can hold, so that they stand for the overflow alone."""
        self.overflow = overflow
        self.texts: list[str] = [""]
        self.digests: IntArray = np.zeros(256, np.uint64)
        self._pool: IntArray = np.empty(4096, np.uint8)
        self._edges: IntArray = np.zeros(256, np.int64)
        self._slots: IntArray = np.full(1024, -1, np.int32)
        self._memo: IntArray = kernels.names.new_memo()
        self.numbers(overflow)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def memory_bytes(self) -> int:
        arrays = (self.digests, self._pool, self._edges, self._slots, self._memo)
        return sum(array.nbytes for array in arrays) + _TEXT_BYTES * len(self.texts)

    @property
    def pooled(self) -> tuple[IntArray, IntArray]:
        """The bytes of all strings, uint8[...], and where each begins and ends, int64[...].

        String ``k`` has the bytes from edge ``k`` up to edge ``k + 1``.
        """
        return self._pool, self._edges

    @property
    def memo(self) -> Any:
        """The handle of the names that came lately, for `kernels.names.recall`."""
        return handle(self._memo.reshape(-1).view(np.uint8))

    def complete(self, text: IntArray, ranges: IntArray, numbers: IntArray) -> IntArray:
        """Replace each -1 in ``numbers`` int32[n] by the number of the string, as `number` gives it."""
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            numbers[unknown] = self.number(text, ranges.take(unknown, axis=0))
        return numbers

    def numbers(self, texts: Sequence[str]) -> IntArray:
        """The numbers (int32[n]) of some strings. A new string gets the next number."""
        encoded = [text.encode() for text in texts]
        edges = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, count=len(encoded)), out=edges[1:])
        ranges = np.stack((edges[:-1], edges[1:]), axis=1)
        return self.number(np.frombuffer(b"".join((*encoded, PADDING)), np.uint8), ranges)

    def number(self, text: IntArray, ranges: IntArray) -> IntArray:
        """The numbers (int32[n]) of strings in a text. A new string gets the next number.

        ``ranges`` int64[n, 2] has (first, end) of each string in ``text``, which is UTF-8 and ends with
        `PADDING`.
        """
        known = len(self.texts)
        room = known + len(ranges) + 1
        if room > len(self._edges):
            self._edges = _grown(self._edges, 2 * room)
            self.digests = _grown(self.digests, 2 * room)
        if 2 * room > len(self._slots):
            self._slots = np.full(1 << (4 * room).bit_length(), -1, np.int32)
            edges = self._edges[: known + 1].copy()
            ranges_known = np.stack((edges[:-1], edges[1:]), axis=1)
            self._intern(self._pool.copy(), ranges_known, np.zeros(known, np.int32), used=1, done=0)
        out = np.empty(len(ranges), np.int32)
        used, done = self._intern(text, ranges, out, used=known, done=0)
        while done < len(ranges):
            self._pool = _grown(self._pool, 2 * len(self._pool))
            used, done = self._intern(text, ranges, out, used=used, done=done)
        for name in range(known, used):
            encoded = self._pool[self._edges[name] : self._edges[name + 1]].tobytes()
            self.texts.append(encoded.decode())
            self.digests[name] = int.from_bytes(blake2b(encoded, digest_size=8).digest(), "little")
        return out

    def _intern(
        self, text: IntArray, ranges: IntArray, out: IntArray, *, used: int, done: int
    ) -> tuple[int, int]:
        """Call `kernels.names.intern_texts`, which returns how many names there are and where it stopped."""
        pool, edges = self._pool, self._edges
        stopped: tuple[int, int] = kernels.names.intern_texts(
            SECRET,
            self._slots,
            self._memo,
            pool,
            handle(pool),
            edges,
            used,
            handle(text),
            ranges,
            out,
            done,
        )
        return stopped


_TEXT_BYTES: Final = 80
"""A short text takes about this much memory in Python."""


def _grown(array: IntArray, size: int) -> IntArray:
    grown = np.zeros(size, array.dtype)
    grown[: len(array)] = array
    return grown


class Uuids:
    """Numbers 128-bit ids in the order in which they first come.

    ``keys`` uint64[..., 2] holds (high, low) of each id by its number. A number means the same id until
    `keep` frees the number. Then the next new id may get it.
    """

    def __init__(self) -> None:
        self.keys: IntArray = np.empty((1024, 2), np.uint64)
        self._numbers: IntArray = np.arange(1024, dtype=np.int32)
        """All numbers; the first ``_used`` are taken."""
        self._slots: IntArray = np.full(4096, -1, np.int32)
        self._used = 0
        self._top = 0
        """All numbers that were ever taken are lower."""
        self._ranks: IntArray = np.empty(0, np.int64)
        self._ranked = 0

    def __len__(self) -> int:
        return self._used

    @property
    def memory_bytes(self) -> int:
        return self.keys.nbytes + self._numbers.nbytes + self._slots.nbytes + self._ranks.nbytes

    def ranks(self) -> IntArray:
        """Sort the ids: for each taken number, the place of its id among all ids (int64[numbers])."""
        if self._ranked != self._used:
            taken = self._numbers[: self._used]
            keys = self.keys[taken]
            self._ranks, self._ranked = np.zeros(self._top, np.int64), self._used
            self._ranks[taken[np.lexsort((keys[:, 1], keys[:, 0]))]] = np.arange(self._used)
        return self._ranks

    def number(self, wanted: IntArray) -> IntArray:
        """The numbers (int32[n]) of the ids ``wanted`` uint64[n, 2]. A new id gets a free number."""
        room = self._used + len(wanted)
        if room > len(self.keys):
            more = np.arange(len(self.keys), len(self.keys) + room, dtype=np.int32)
            self.keys = np.concatenate((self.keys, np.empty((room, 2), np.uint64)))
            self._numbers = np.concatenate((self._numbers, more))
        if 2 * room > len(self._slots):
            self._index(room)
        out = np.empty(len(wanted), np.int32)
        self._used = kernels.names.intern_pairs(
            SECRET, self._slots, self.keys, self._numbers, self._used, wanted, out
        )
        self._top = max(self._top, self._used)
        return out

    def keep(self, *used: IntArray) -> None:
        """Keep the numbers ``used`` (int[n] each, all taken), and free the others.

        Nobody may hold a number that is freed.
        """
        is_used = np.zeros(self._top, np.bool_)
        for numbers in used:
            is_used[numbers] = True
        kept = np.flatnonzero(is_used)
        self._numbers[: self._top] = np.concatenate((kept, np.flatnonzero(~is_used)))
        self._used, self._ranked = len(kept), -1
        self._index(max(1024, self._used))

    def _index(self, room: int) -> None:
        self._slots = np.full(1 << (4 * room).bit_length(), -1, np.int32)
        known = self.keys[self._numbers[: self._used]]
        kernels.names.intern_pairs(
            SECRET, self._slots, self.keys, self._numbers, 0, known, np.empty(len(known), np.int32)
        )


@dataclass(slots=True)
class Columns:
    """Valid events as arrays of one length, in stream order. Orgs, models and names are numbers."""

    source: IntArray
    """int64: place of the body in the batch."""
    event: IntArray
    """uint64[n, 2]"""
    org: IntArray
    model: IntArray
    client: IntArray
    error_code: IntArray
    """int32 each"""
    occurred_us: IntArray
    latency_ms: IntArray
    status: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    cost_microcents: IntArray
    """int64 each; the cost is 0 for an event without an estimate."""
    details: IntArray
    """int64[n, 6]: see `DETAILS` and `TIER`."""
    rate_class: IntArray
    """int32: see `pipeline.core.rate_classes`."""
    labels: IntArray
    """int32[n, 2]: the provider and the name of the model, 0 if absent."""
    values: IntArray
    """int32[n, d]: the value of each dimension, numbered as a client."""
    check: IntArray
    """uint64: see `kernels.hashing.payload_checks`."""

    def __len__(self) -> int:
        return len(self.source)

    def take(self, which: IntArray) -> Columns:
        """New columns with the events at some places, or with the events of a mask."""
        if which.dtype == np.bool_:
            which = np.flatnonzero(which)
        return Columns(*(getattr(self, f.name).take(which, axis=0) for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[Columns]) -> Columns:
        if len(parts) == 1:
            return parts[0]
        return Columns(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Columns)))


@dataclass(slots=True)
class Rejected:
    """A body that is no valid event: its place among the bodies, the reason and every fault."""

    source: int
    reason: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Scanned:
    """Bodies that the compiled scan has read: see `Reader.scan`."""

    bodies: Bodies
    columns: Columns
    """The events whose bodies are plainly right."""
    doubtful: IntArray
    """int64: the places of all other bodies, in ascending order. They are for `wire.read`."""


def _details(event: Event) -> tuple[int, ...]:
    """The event's row of `Columns.details`."""
    return (
        event.cache_read_tokens,
        event.cache_write_tokens,
        event.cache_write_1h_tokens,
        event.reasoning_tokens,
        int(event.cost_microcents is None),
        event.service_tier,
    )


def _halves(ids: Sequence[int]) -> IntArray:
    """Ids of 128 bits as uint64[n, 2]."""
    return np.array([(i >> 64, i & (2**64 - 1)) for i in ids], np.uint64).reshape(-1, 2)


class Reader:
    """Turns bodies into `Columns`, and numbers orgs, models, clients and error codes on the way."""

    OVERFLOW_MODEL: Final = 0
    """The number of `wire.OVERFLOW_MODEL`. No event has this model."""

    def __init__(self, rate_classes: RateClasses | None = None, dimensions: Sequence[Dimension] = ()) -> None:
        """``rate_classes`` tells the class of each event. None: `rate_classes.in_order` does.

        ``dimensions`` are those whose values are read.
        """
        self._rate_classes = rate_classes or in_order()
        self.orgs = Uuids()
        self.models = Uuids()
        self.models.number(_halves([wire.OVERFLOW_MODEL.int]))
        self.clients = Names(wire.OVERFLOW_CLIENT, wire.OVERFLOW_VALUE)
        self.error_codes = Names(wire.OVERFLOW_ERROR_CODE)
        self.labels = Names(wire.OVERFLOW_CLIENT)
        self._guesses = scan.new_guesses()
        self.dimensions = tuple(dimensions)
        keys = [(one.key or "").encode() for one in self.dimensions]
        self._keys: IntArray = np.frombuffer(b"".join((*keys, PADDING)), np.uint8)
        self._key_edges: IntArray = np.cumsum([0, *map(len, keys)])
        actors = [place for place, one in enumerate(self.dimensions) if one.key is None]
        self._actor_place = actors[0] if actors else scan.NO_ACTOR

    @property
    def memory_bytes(self) -> int:
        """About how much memory the numbered orgs, models and names take."""
        known = (self.orgs, self.models, self.clients, self.error_codes, self.labels)
        return sum(names.memory_bytes for names in known)

    @property
    def names_known(self) -> int:
        """How many orgs, models, clients, error codes and labels have a number."""
        names = (self.clients, self.error_codes, self.labels)
        return len(self.orgs) + len(self.models) + sum(map(len, names))

    def read(self, bodies: Sequence[bytes]) -> tuple[Columns, list[Rejected]]:
        """Read bodies in stream order. Each body becomes either an event of the columns or a `Rejected`."""
        return self.read_doubtful(self.scan(bodies))

    def scan(self, bodies: Sequence[bytes]) -> Scanned:
        """The quick half of `read`, in compiled code: about 0.7 µs a body.

        The slow half, `read_doubtful`, takes 10 to 50 µs for each body that the scan leaves over.
        """
        if not isinstance(bodies, Bodies) or not bodies.padded:
            bodies = Bodies.join([bodies])
        columns, doubtful = self._scan(bodies)
        reserved = columns.model == self.OVERFLOW_MODEL
        if reserved.any():
            doubtful = np.sort(np.concatenate((doubtful, columns.source[reserved])))
            columns = columns.take(~reserved)
        return Scanned(bodies, columns, doubtful)

    def read_doubtful(self, scanned: Scanned) -> tuple[Columns, list[Rejected]]:
        """The slow half of `read`: let `wire.read` decide about each body that the scan left over."""
        columns = scanned.columns
        rejected: list[Rejected] = []
        rescued: list[tuple[int, Event]] = []
        for source in scanned.doubtful.tolist():
            verdict = wire.read(bytes(scanned.bodies.view(source)[:KEPT_BYTES_MAX]))
            if isinstance(verdict, Invalid):
                rejected.append(Rejected(source, verdict.reason, verdict.faults))
            else:
                rescued.append((source, verdict))
        if rescued:
            columns = Columns.join((columns, self._columns_of_events(rescued)))
            columns = columns.take(np.argsort(columns.source, kind="stable"))
        return columns, rejected

    def older_checks(self, columns: Columns) -> IntArray:
        """The payload checks (uint64[n, 2]) that earlier versions stored of these events.

        Column 0 is the check of version 0.1.0, see `kernels.hashing.narrow_checks`. Column 1 is the check of
        the versions that did not look at the kinds of tokens and the service tier. So an event that counted
        without them, and comes again with them, is a duplicate.
        """

        def crcs(names: Names, numbers: IntArray) -> IntArray:
            return np.array([zlib.crc32(names.texts[n].encode()) for n in numbers.tolist()], np.uint32)

        figures = (
            columns.occurred_us,
            columns.latency_ms,
            columns.status,
            columns.input_tokens,
            columns.output_tokens,
            columns.cost_microcents,
        )
        narrow, wide = np.empty(len(columns), np.uint64), np.empty(len(columns), np.uint64)
        of_old = np.zeros_like(columns.details)
        of_old[:, _UNESTIMATED] = columns.details[:, _UNESTIMATED]
        kernels.hashing.narrow_checks(
            self.models.keys[columns.model],
            crcs(self.clients, columns.client),
            crcs(self.error_codes, columns.error_code),
            *figures,
            narrow,
        )
        kernels.hashing.payload_checks(
            self.models.keys[columns.model],
            columns.client,
            self.clients.digests,
            columns.error_code,
            self.error_codes.digests,
            *figures,
            of_old,
            wide,
        )
        return np.stack((narrow, wide), axis=1)

    def _scan(self, bodies: Bodies) -> tuple[Columns, IntArray]:
        """Read the bodies that are plainly right: their columns, and the places of the other bodies."""
        n = len(bodies)
        text: IntArray = np.frombuffer(bodies.text, np.uint8)
        event, org, model = (np.empty((n, 2), np.uint64) for _ in range(3))
        occurred_us, latency_ms, status = (np.empty(n, np.int64) for _ in range(3))
        input_tokens, output_tokens, cost_microcents = (np.empty(n, np.int64) for _ in range(3))
        details = np.empty((n, TIER + 1), np.int64)
        client, error_code, provider, model_name = (np.empty((n, 2), np.int64) for _ in range(4))
        numbers = np.empty((n, 4), np.int32)
        actor = np.empty((n, 2), np.uint64)
        values = np.empty((len(self.dimensions), n, 2), np.int64)
        source, doubtful = np.empty(n, np.int64), np.empty(n, np.int64)
        good = scan.scan(
            handle(text),
            bodies.begins,
            bodies.ends,
            self._guesses,
            event,
            org,
            model,
            occurred_us,
            latency_ms,
            status,
            input_tokens,
            output_tokens,
            cost_microcents,
            details,
            client,
            error_code,
            provider,
            model_name,
            self.clients.memo,
            self.error_codes.memo,
            self.labels.memo,
            numbers,
            self._keys,
            self._key_edges,
            self._actor_place,
            actor,
            values,
            source,
            doubtful,
        )
        labels = numbers[:good, 2:].copy()
        self.labels.complete(text, provider[:good], labels[:, 0])
        self.labels.complete(text, model_name[:good], labels[:, 1])
        columns = self._numbered(
            source[:good],
            event[:good],
            org[:good],
            model[:good],
            self.models.number(model[:good]),
            self.clients.complete(text, client[:good], numbers[:good, scan.NAMES_CLIENT].copy()),
            self.error_codes.complete(text, error_code[:good], numbers[:good, scan.NAMES_CODE].copy()),
            occurred_us[:good],
            latency_ms[:good],
            status[:good],
            input_tokens[:good],
            output_tokens[:good],
            cost_microcents[:good],
            details[:good],
            labels,
            self._numbered_values(text, actor[:good], values[:, :good]),
        )
        return columns, doubtful[: n - good]

    def _numbered_values(self, text: IntArray, actor: IntArray, ranges: IntArray) -> IntArray:
        """Number the values (int32[n, d]) whose ``ranges`` int64[d, n, 2] `scan.scan` has found."""
        numbers = np.empty((len(actor), len(ranges)), np.int32)
        for place, mine in enumerate(ranges):
            if place == self._actor_place:
                actors = np.zeros(scan.UUID_CHARS * len(actor) + len(PADDING), np.uint8)
                kernels.names.write_uuids(actor, actors)
                numbers[:, place] = self.clients.number(actors, mine)
            else:
                numbers[:, place] = self.clients.number(text, mine)
                numbers[mine[:, 0] == scan.TOO_LONG, place] = Names.OVERFLOW_VALUE
        return numbers

    def _columns_of_events(self, rescued: Sequence[tuple[int, Event]]) -> Columns:
        def column(values: Sequence[int]) -> IntArray:
            return np.array(values, np.int64)

        events = [event for _, event in rescued]
        model_ids = _halves([e.model_id.int for e in events])
        return self._numbered(
            column([source for source, _ in rescued]),
            _halves([e.event_id.int for e in events]),
            _halves([e.org_id.int for e in events]),
            model_ids,
            self.models.number(model_ids),
            self.clients.numbers([e.client_id for e in events]),
            self.error_codes.numbers([e.error_code for e in events]),
            column([e.occurred_us for e in events]),
            column([e.latency_ms for e in events]),
            column([e.status for e in events]),
            column([e.input_tokens for e in events]),
            column([e.output_tokens for e in events]),
            column([e.cost_microcents or 0 for e in events]),
            np.array([_details(e) for e in events], np.int64),
            self.labels.numbers([label for e in events for label in (e.provider, e.model_name)]).reshape(
                -1, 2
            ),
            self.clients.numbers([one.value_of(e) for e in events for one in self.dimensions]).reshape(
                len(events), len(self.dimensions)
            ),
        )

    def _numbered(
        self,
        source: IntArray,
        event: IntArray,
        org_id: IntArray,
        model_id: IntArray,
        model: IntArray,
        client: IntArray,
        error_code: IntArray,
        occurred_us: IntArray,
        latency_ms: IntArray,
        status: IntArray,
        input_tokens: IntArray,
        output_tokens: IntArray,
        cost_microcents: IntArray,
        details: IntArray,
        labels: IntArray,
        values: IntArray,
    ) -> Columns:
        """Make `Columns`: orgs get numbers, and payloads get checks. The ids are uint64[n, 2]."""
        check = np.empty(len(source), np.uint64)
        kernels.hashing.payload_checks(
            model_id,
            client,
            self.clients.digests,
            error_code,
            self.error_codes.digests,
            occurred_us,
            latency_ms,
            status,
            input_tokens,
            output_tokens,
            cost_microcents,
            details,
            check,
        )
        return Columns(
            source=source,
            event=event,
            org=self.orgs.number(org_id),
            model=model,
            client=client,
            error_code=error_code,
            occurred_us=occurred_us,
            latency_ms=latency_ms,
            status=status,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_microcents=cost_microcents,
            details=details,
            rate_class=self._rate_classes.of(details[:, TIER], input_tokens),
            labels=labels,
            values=values,
            check=check,
        )
