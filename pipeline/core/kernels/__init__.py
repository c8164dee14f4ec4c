"""The compiled loops of the core: plain functions over NumPy arrays, one idea each.

Each file has one owner: ``names`` numbers ids and names, ``ids`` is exact dedupe, ``rows`` adds up, and
``sketches`` are of latency. They share ``hashing``; ``compile`` tells how a loop becomes machine code.

Everything here is a loop that NumPy cannot say at speed: open addressing, adding into rows, sketch bins.
State belongs to the callers (`events`, `dedupe`, `windows`), which also grow the arrays: no kernel
allocates state or raises. In a loop over events no array is sliced and none is passed on, because numba
counts references to every array it hands over.

Loops are compiled once per machine and cached on disk by numba. Numba compiles a loop again when the loop's
own file has changed. Numba does not notice a change in ``hashing`` or ``compile``, whose functions are built
into the loops of other files: remove the cache (NUMBA_CACHE_DIR, or ``__pycache__``) after such a change.

Hash tables are open addressing with linear probing over a power of two; ``slots`` holds a row number
or -1. Callers keep them at most half full.

Senders choose what goes into these tables. So every hash of a table takes the process's ``secret``
(`pipeline.core.secret`), uint64[130], without which nobody can choose values that meet in one slot: the
values' halves of 32 bits, each times a number of the secret, are added up (Lemire and Kaser, "Strongly
universal string hashing is fast", 2014) and mixed. The secret is an argument, so that what is compiled
serves every process. `hashing.payload_checks` has none, because the database keeps them.
"""

from pipeline.core.kernels import hashing, ids, names, rows, sketches

__all__ = ["hashing", "ids", "names", "rows", "sketches"]
