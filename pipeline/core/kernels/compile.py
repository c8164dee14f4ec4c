"""The compiler of the loops, with text access and machine instructions that numba does not offer.

A compiled loop reads text through a handle: `handle` makes the handle of an array of bytes, and `byte`,
`word`, `plain_chars` and `same_chars` read at a place. The handle is an address. With the array itself, numba
would count references wherever the array is passed on, and counting would take most of the time. Under
NUMBA_BOUNDSCHECK, as in the tests, the handle is the array, and every access is checked.

Compiled code is kept in numba's folders: ``NUMBA_CACHE_DIR`` where that is set, else beside the source or in
the user's folder. Here ``NUMBA_CACHE_DIR`` need not be writable. An image ships the folder full, on a root
file system that nobody may write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LOOPS: Final[list[Any]] = []


def compiled(function: _Function) -> _Function:
    """Compile a loop for machine arrays; it runs without the interpreter's lock."""
    return _compiled(function, inline=False)


def inlined(function: _Function) -> _Function:
    """As `compiled`, and built into the loops that call it: for small functions that are called per field."""
    return _compiled(function, inline=True)


def _compiled(function: _Function, *, inline: bool) -> _Function:
    made: _Function = numba.njit(nogil=True, forceinline=inline)(function)
    with suppress(RuntimeError):  # no folder at all: this process compiles for itself
        made._cache = _Cache(function)  # type: ignore[attr-defined]
    _LOOPS.append(made)
    return made


# --- the cache --------------------------------------------------------------------------------------


class NotCompiled(Exception):
    """The cache of this machine does not have a loop. The remedy: compile the loop."""


_from_cache: Final = ContextVar("from_cache", default=False)


@contextmanager
def from_cache_only() -> Iterator[None]:
    """Within the block, calls of this thread load their loops from the cache, and compile none.

    A call whose loop is not in the cache raises `NotCompiled` before the compiler has done anything. Numba
    itself decides what the cache has, so a loop counts as missing where its file has changed or another
    processor compiled it.
    """
    token = _from_cache.set(True)
    try:
        with event.install_listener("numba:compile", _Refusing()):
            yield
    finally:
        _from_cache.reset(token)


class _Refusing(event.Listener):  # type: ignore[misc]
    """Numba tells it of every compilation of this process, before the compilation begins."""

    def on_start(self, event: Any) -> None:
        if _from_cache.get():
            raise NotCompiled(f"the cache has no {event.data['dispatcher'].__name__}")

    def on_end(self, event: Any) -> None:
        pass


def counts() -> tuple[int, int]:
    """How many loops this process has loaded from a folder, and how many it has compiled itself."""
    stats = [loop.stats for loop in _LOOPS if hasattr(loop, "stats")]
    return sum(sum(one.cache_hits.values()) for one in stats), sum(
        sum(one.cache_misses.values()) for one in stats
    )


class _Given(UserProvidedCacheLocator):  # type: ignore[misc]
    """The folder NUMBA_CACHE_DIR. Numba itself passes over one that it cannot write, and so reads nothing."""

    def ensure_cache_path(self) -> None:
        with suppress(OSError):
            super().ensure_cache_path()


class _Files(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Given, *CompileResultCacheImpl._locator_classes[1:]]  # noqa: RUF012


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one loop. What cannot be saved is kept by this process alone."""

    _impl_class = _Files

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


# --- text ------------------------------------------------------------------------------------------


def _loader(bits: int) -> Any:
    """A function that loads an unsigned integer from an address plus ``at``."""

    def load(typing_context: Any, address: Any, at: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.add(arguments[0], arguments[1])
            loaded = builder.load(builder.inttoptr(place, ir.IntType(bits).as_pointer()))
            loaded.align = 1
            return loaded

        integer = numba.types.Integer.from_bitwidth(bits, signed=False)
        return integer(numba.types.int64, numba.types.int64), build

    return numba.extending.intrinsic(load)


@compiled
def _checked_word(text: Any, at: int) -> Any:
    word = np.uint64(0)
    for j in range(8):
        word |= np.uint64(text[at + j]) << np.uint64(8 * j)
    return word


@compiled
def _checked_byte(text: Any, at: int) -> Any:
    return text[at]


_CHECKED: Final = bool(numba.config.BOUNDSCHECK)
byte: Final = _checked_byte if _CHECKED else _loader(8)
word: Final = _checked_word if _CHECKED else _loader(64)
"""The byte, and the eight bytes (the first lowest), at a place in the text."""


# --- thirty-two characters at a time ---------------------------------------------------------------

VECTOR: Final = 32
"""How many characters the functions below look at. LLVM makes vector instructions of them."""
_CHARS: Final = ir.VectorType(ir.IntType(8), VECTOR)


def _chars(builder: Any, text: Any, at: Any) -> Any:
    loaded = builder.load(builder.inttoptr(builder.add(text, at), _CHARS.as_pointer()))
    loaded.align = 1
    return loaded


def _first(builder: Any, marks: Any) -> Any:
    """The place of the first mark, or `VECTOR` if there is none."""
    bits = builder.zext(builder.bitcast(marks, ir.IntType(VECTOR)), ir.IntType(64))
    return builder.cttz(
        builder.or_(bits, ir.Constant(ir.IntType(64), 1 << VECTOR)), ir.Constant(ir.IntType(1), 1)
    )


def _plain_chars(typing_context: Any, text: Any, at: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def all_are(char: str) -> Any:
            return ir.Constant(_CHARS, [ord(char)] * VECTOR)

        chars = _chars(builder, *arguments)
        # As signed numbers, the bytes of non-ASCII characters are negative, and so below the space too.
        odd = builder.icmp_signed("<", chars, all_are(" "))
        for char in '"\\':
            odd = builder.or_(odd, builder.icmp_unsigned("==", chars, all_are(char)))
        return _first(builder, odd)

    return numba.types.int64(numba.types.int64, numba.types.int64), build


def _same_chars(typing_context: Any, text: Any, at: Any, other: Any, other_at: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chars, others = _chars(builder, *arguments[:2]), _chars(builder, *arguments[2:])
        return _first(builder, builder.icmp_unsigned("!=", chars, others))

    return numba.types.int64(*[numba.types.int64] * 4), build


@compiled
def _checked_plain_chars(text: Any, at: int) -> int:
    plain = 0
    for j in range(VECTOR):
        char = text[at + j]
        if plain == j and 32 <= char < 128 and char != 34 and char != 92:
            plain += 1
    return plain


@compiled
def _checked_same_chars(text: Any, at: int, other: Any, other_at: int) -> int:
    same = 0
    for j in range(VECTOR):
        if text[at + j] == other[other_at + j] and same == j:
            same += 1
    return same


plain_chars: Final = _checked_plain_chars if _CHECKED else numba.extending.intrinsic(_plain_chars)
"""How many characters from a place on are plain: no quote, backslash, control or non-ASCII character.

At most `VECTOR`."""
same_chars: Final = _checked_same_chars if _CHECKED else numba.extending.intrinsic(_same_chars)
"""How many characters from one place on are those from another place on, also in another text.

At most `VECTOR`."""


def handle(text: Any) -> Any:
    """The handle by which compiled loops read ``text`` uint8[...]. Keep the array alive while they run."""
    if not _CHECKED:
        return text.ctypes.data
    read_only = text.view()  # read-only, so that numba sees one type for all owners of bytes
    read_only.flags.writeable = False
    return read_only


# --- instructions ------------------------------------------------------------------------------------


def _trailing_zeros(typing_context: Any, bits: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.int64(numba.types.uint64), build


trailing_zeros: Final = numba.extending.intrinsic(_trailing_zeros)
"""How many bits of an uint64 are 0 below its lowest 1, as int64. For 0 the answer is 64."""


def _prefetch(typing_context: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        to_write, keep_close, of_data = (ir.Constant(number, value) for value in (1, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), to_write, keep_close, of_data])
        return context.get_dummy_value()

    return numba.types.void(numba.types.int64), build


prefetch: Final = numba.extending.intrinsic(_prefetch)
"""Begin to load the cache line at an address (int64), so that a later access need not wait for it."""
