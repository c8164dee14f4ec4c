"""Bodies in, columns out: the fast reader of the wire contract.

It owns speed and nothing else: msgspec decodes each body by a typed struct of one of the wire variants,
compiled kernels turn the text columns into numbers, and whatever is not plainly right goes to
`wire.read`, which has the last word. So the fast path may refuse too much, and never too little
(``tests/unit/test_events.py`` holds the two together).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.core import kernels, wire
from pipeline.core.wire import Event, Fault, Invalid

IntArray = npt.NDArray[Any]

_UUIDText = Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
_Client = Annotated[str, msgspec.Meta(max_length=wire.CLIENT_ID_CHARS_MAX)]
_Code = Annotated[str, msgspec.Meta(max_length=wire.ERROR_CODE_CHARS_MAX)]
_Time = Annotated[str, msgspec.Meta(max_length=wire.NUMBER_CHARS_MAX)]
_Latency = Annotated[int, msgspec.Meta(ge=0, le=wire.LATENCY_MS_MAX)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=wire.TOKENS_MAX)]
_Status = Literal["success", "error", "timeout", "throttled"]


_FIELDS: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("eventId", _UUIDText, msgspec.NODEFAULT),
    ("orgId", _UUIDText, msgspec.NODEFAULT),
    ("modelId", _UUIDText, msgspec.NODEFAULT),
    ("occurredAt", _Time, msgspec.NODEFAULT),
    ("latencyMs", _Latency, msgspec.NODEFAULT),
    ("status", _Status, msgspec.NODEFAULT),
    ("inputTokens", _Tokens, msgspec.NODEFAULT),
    ("outputTokens", _Tokens, msgspec.NODEFAULT),
    ("costEstimateCents", msgspec.Raw, msgspec.NODEFAULT),
    ("actorId", _UUIDText | None, None),
    ("clientId", _Client | None, None),
    ("errorCode", _Code | None, None),
    ("metadata", dict[str, str] | None, None),
)


def _variant(name: str, spelling: Mapping[str, str], absent: Sequence[str] = ()) -> Any:
    """A struct that reads the contract's fields as ``spelling`` has them, and only where ``absent`` are."""
    attributes = [
        (wire.SNAKE_NAMES[field], kind, msgspec.field(name=spelling[field], default=default))
        for field, kind, default in _FIELDS
    ]
    ruled_out = [
        (f"absent_{field}", msgspec.UnsetType, msgspec.field(name=field, default=msgspec.UNSET))
        for field in absent
    ]
    return msgspec.defstruct(name, attributes + ruled_out, gc=False)


def _envelope(data: Any) -> Any:
    return msgspec.defstruct(
        f"_Envelope{data.__name__}",
        [
            ("specversion", Literal["1.0"]),
            ("type", Literal["analytics.usage.v1"]),
            ("data", data),
            ("eventId", msgspec.UnsetType, msgspec.UNSET),
            ("event_id", msgspec.UnsetType, msgspec.UNSET),
        ],
        gc=False,
    )


_VARIANTS: Final = (
    _variant("Camel", wire.CAMEL_NAMES),
    _variant("Snake", wire.SNAKE_NAMES, absent=("eventId",)),
    _variant("SnakeShortCost", wire.SHORT_COST_NAMES, absent=("eventId", "cost_estimate_cents")),
)
_DECODERS: Final = tuple(msgspec.json.Decoder(variant) for variant in _VARIANTS) + tuple(
    msgspec.json.Decoder(_envelope(variant)) for variant in _VARIANTS
)

_STATUS_NUMBERS: Final = {word: number for number, word in enumerate(wire.STATUSES)}


class Names(dict[str | None, int]):
    """Strings numbered in order of first sight; None and '' are 0, `OTHER` is 1.

    ``UNSTORABLE`` marks strings that no event may hold; such events go to `wire.read`.
    """

    OTHER: Final = 1
    UNSTORABLE: Final = -1

    def __init__(self) -> None:
        super().__init__({None: 0, "": 0, "other": self.OTHER})
        self.texts: list[str] = ["", "other"]
        self.crcs: list[int] = [0, zlib.crc32(b"other")]

    def __missing__(self, text: str) -> int:
        if "\0" in text:
            return self.UNSTORABLE
        number = self[text] = len(self.texts)
        self.texts.append(text)
        self.crcs.append(zlib.crc32(text.encode()))
        return number


class Uuids:
    """128-bit ids numbered in order of first sight. ``keys`` uint64[..., 2] holds (high, low) by number."""

    def __init__(self) -> None:
        self.keys: IntArray = np.empty((1024, 2), np.uint64)
        self._slots: IntArray = np.full(4096, -1, np.int32)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def number(self, wanted: IntArray) -> IntArray:
        """Numbers (int32[n]) of ``wanted`` uint64[n, 2]."""
        room = self._used + len(wanted)
        if room > len(self.keys):
            self.keys = np.concatenate((self.keys, np.empty((room, 2), np.uint64)))
        if 2 * room > len(self._slots):
            self._slots = np.full(1 << (4 * room).bit_length(), -1, np.int32)
            known = self.keys[: self._used].copy()
            kernels.intern_pairs(self._slots, self.keys, 0, known, np.empty(len(known), np.int32))
        out = np.empty(len(wanted), np.int32)
        self._used = kernels.intern_pairs(self._slots, self.keys, self._used, wanted, out)
        return out


@dataclass(slots=True)
class Columns:
    """Valid events as arrays of one length, in stream order; ids and names are numbers."""

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
    """int64 each"""
    check: IntArray
    """uint32: see `kernels.payload_checks`."""

    def __len__(self) -> int:
        return len(self.source)

    def take(self, which: IntArray) -> Columns:
        """The events at some places (or of a mask), as new columns."""
        return Columns(*(getattr(self, f.name)[which] for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[Columns]) -> Columns:
        if len(parts) == 1:
            return parts[0]
        return Columns(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Columns)))


@dataclass(frozen=True, slots=True)
class Refused:
    """A body that is no valid event: its place in the batch, the reason and every fault."""

    source: int
    reason: str
    faults: tuple[Fault, ...]


class Reader:
    """Turns bodies into `Columns`; numbers orgs, models, clients and error codes as it meets them."""

    def __init__(self) -> None:
        self.orgs = Uuids()
        self.models = Uuids()
        self.clients = Names()
        self.error_codes = Names()
        self._variant = 0

    def read(self, bodies: Sequence[bytes]) -> tuple[Columns, list[Refused]]:
        """Read bodies in stream order. Every body is in the columns or among the refused, never in both."""
        structs, sources, doubtful = self._decode(bodies)
        columns, more_doubtful = self._columns(structs, sources)
        doubtful.extend(more_doubtful)
        if not doubtful:
            return columns, []
        refused: list[Refused] = []
        rescued: list[tuple[int, Event]] = []
        for source in sorted(doubtful):
            verdict = wire.read(bodies[source])
            if isinstance(verdict, Invalid):
                refused.append(Refused(source, verdict.reason, verdict.faults))
            else:
                rescued.append((source, verdict))
        if rescued:
            columns = Columns.join((columns, self._columns_of_events(rescued)))
            columns = columns.take(np.argsort(columns.source, kind="stable"))
        return columns, refused

    def _decode(self, bodies: Sequence[bytes]) -> tuple[list[Any], IntArray | None, list[int]]:
        """Typed structs, their places (None: all, in order), and the places no struct fits."""
        bodies_max = wire.BODY_BYTES_MAX
        if len(bodies) and max(map(len, bodies)) <= bodies_max:
            decode = _DECODERS[self._variant].decode
            try:
                structs: list[Any] = [decode(body) for body in bodies]
                b"".join(bodies).decode()  # msgspec does not look into strings that it skips
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass
            else:
                if self._variant >= len(_VARIANTS):
                    structs = [envelope.data for envelope in structs]
                return structs, None, []
        structs, sources, doubtful = [], [], []
        for source, body in enumerate(bodies):
            struct = self._decode_one(body) if len(body) <= bodies_max else None
            if struct is None:
                doubtful.append(source)
            else:
                structs.append(struct)
                sources.append(source)
        return structs, np.array(sources, np.int64), doubtful

    def _decode_one(self, body: bytes) -> Any:
        """One body by the variant that fitted last, then by the others."""
        if not body.isascii():
            try:
                body.decode()
            except UnicodeDecodeError:
                return None
        for variant in (self._variant, *range(len(_DECODERS))):
            try:
                struct: Any = _DECODERS[variant].decode(body)
            except msgspec.ValidationError:
                continue
            except (msgspec.DecodeError, RecursionError):
                return None
            self._variant = variant
            return struct.data if variant >= len(_VARIANTS) else struct
        return None

    def _columns(self, structs: Sequence[Any], sources: IntArray | None) -> tuple[Columns, list[int]]:
        n = len(structs)
        if sources is None:
            sources = np.arange(n, dtype=np.int64)
        ok = np.ones(n, np.bool_)
        event = self._uuid_column([s.event_id for s in structs], ok)
        org = self._uuid_column([s.org_id for s in structs], ok)
        model = self._uuid_column([s.model_id for s in structs], ok)
        actors = [(i, s.actor_id) for i, s in enumerate(structs) if s.actor_id is not None]
        if actors:
            actor_ok = np.ones(len(actors), np.bool_)
            self._uuid_column([actor for _, actor in actors], actor_ok)
            ok[[i for i, _ in actors]] &= actor_ok
        occurred_us, cost = np.zeros(n, np.int64), np.zeros(n, np.int64)
        times = [s.occurred_at for s in structs]
        _parse(kernels.parse_times, "".join(times).encode("ascii", errors="replace"), times, occurred_us, ok)
        costs = [bytes(s.cost_estimate_cents) for s in structs]
        _parse(kernels.parse_costs, b"".join(costs), costs, cost, ok)
        number_client, number_code = self.clients.__getitem__, self.error_codes.__getitem__
        client = np.array([number_client(s.client_id) for s in structs], np.int32)
        error_code = np.array([number_code(s.error_code) for s in structs], np.int32)
        ok &= (client >= 0) & (error_code >= 0)
        columns = Columns(
            source=sources,
            event=event,
            org=np.empty(0, np.int32),
            model=np.empty(0, np.int32),
            client=client,
            error_code=error_code,
            occurred_us=occurred_us,
            latency_ms=np.array([s.latency_ms for s in structs], np.int64),
            status=np.array([_STATUS_NUMBERS[s.status] for s in structs], np.int64),
            input_tokens=np.array([s.input_tokens for s in structs], np.int64),
            output_tokens=np.array([s.output_tokens for s in structs], np.int64),
            cost_microcents=cost,
            check=np.empty(0, np.uint32),
        )
        if not ok.all():
            bad = sources[~ok].tolist()
            org, model = org[ok], model[ok]
            columns.org = columns.model = columns.check = ok  # replaced below; any array of n will do
            columns = columns.take(ok)
        else:
            bad = []
        self._finish(columns, org, model)
        return columns, bad

    def _columns_of_events(self, rescued: Sequence[tuple[int, Event]]) -> Columns:
        def halves(ids: Sequence[int]) -> IntArray:
            return np.array([(i >> 64, i & (2**64 - 1)) for i in ids], np.uint64).reshape(-1, 2)

        events = [event for _, event in rescued]
        columns = Columns(
            source=np.array([source for source, _ in rescued], np.int64),
            event=halves([e.event_id.int for e in events]),
            org=np.empty(0, np.int32),
            model=np.empty(0, np.int32),
            client=np.array([self.clients[e.client_id] for e in events], np.int32),
            error_code=np.array([self.error_codes[e.error_code] for e in events], np.int32),
            occurred_us=np.array([e.occurred_us for e in events], np.int64),
            latency_ms=np.array([e.latency_ms for e in events], np.int64),
            status=np.array([e.status for e in events], np.int64),
            input_tokens=np.array([e.input_tokens for e in events], np.int64),
            output_tokens=np.array([e.output_tokens for e in events], np.int64),
            cost_microcents=np.array([e.cost_microcents for e in events], np.int64),
            check=np.empty(0, np.uint32),
        )
        self._finish(
            columns, halves([e.org_id.int for e in events]), halves([e.model_id.int for e in events])
        )
        return columns

    def _finish(self, columns: Columns, org: IntArray, model: IntArray) -> None:
        """Fill in the numbers of orgs and models (given as uint64[n, 2]) and the payload checks."""
        columns.org = self.orgs.number(org)
        columns.model = self.models.number(model)
        columns.check = np.empty(len(columns), np.uint32)
        numbers = np.stack(
            (
                columns.latency_ms,
                columns.status,
                columns.input_tokens,
                columns.output_tokens,
                columns.cost_microcents,
            ),
            axis=1,
        )
        kernels.payload_checks(
            model,
            np.array(self.clients.crcs, np.uint32)[columns.client],
            np.array(self.error_codes.crcs, np.uint32)[columns.error_code],
            columns.occurred_us,
            numbers,
            columns.check,
        )

    @staticmethod
    def _uuid_column(texts: Sequence[str], ok: IntArray) -> IntArray:
        out = np.zeros((len(texts), 2), np.uint64)
        text = "".join(texts).encode("ascii", errors="replace")  # one byte a character, so 36 each
        kernels.parse_uuids(np.frombuffer(text, np.uint8), out, ok)
        return out


def _parse(kernel: Any, text: bytes, parts: Sequence[Any], out: IntArray, ok: IntArray) -> None:
    ends = np.fromiter(accumulate(map(len, parts)), np.int64, count=len(parts))
    kernel(np.frombuffer(text, np.uint8), ends, out, ok)
