"""The compiled loops of the core: plain functions over NumPy arrays, one idea each.

Each file serves one purpose: ``names`` numbers ids and names, ``ids`` is exact dedupe, ``rows`` adds up, and
``sketches`` has the bins of latencies. They share ``hashing``. ``compile`` makes machine code of a loop.

Everything here is a loop for which NumPy is too slow: open addressing, adding into rows, sketch bins. State
belongs to the callers (`events`, `dedupe`, `windows`), which also grow the arrays. No kernel allocates state
or raises. In a loop over events no array is sliced and none is passed on, because numba counts references to
every array that it hands over.

Loops are compiled once per machine and cached on disk by numba. Numba compiles a loop again when the loop's
own file has changed. The functions of ``hashing`` and ``compile``, `names.recall` and the functions of
`pipeline.core.lexer` are built into the loops of other files, and numba does not notice a change in these.
Remove the cache (NUMBA_CACHE_DIR, or ``__pycache__``) after a change in one of them.

Hash tables are open addressing with linear probing over a power of two. ``slots`` holds a row number or -1.
Callers keep the slots at most half full. (The index of ``ids`` is different: see `ids.remember`.)

Senders choose the values that go into these tables. A sender who could choose values that meet in one slot
would make the worker slow. So every hash of a table takes the process's ``secret`` (`pipeline.core.secret`),
uint64[130], which no sender knows. The halves of the values, of 32 bits each, are multiplied by numbers of
the secret, added up (Lemire and Kaser, "Strongly universal string hashing is fast", 2014) and mixed. The
secret is an argument, so that the compiled code serves every process. `hashing.payload_checks` takes no
secret, because the database keeps the checks.
"""

from pipeline.core.kernels import hashing, ids, names, rows, sketches

__all__ = ["hashing", "ids", "names", "rows", "sketches"]
