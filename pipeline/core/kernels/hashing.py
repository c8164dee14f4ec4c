"""Hashes: the places of values in hash tables, and the checks of payloads.

A place in a table depends on the secret of the process. A check does not, because the database keeps it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.core.kernels.compile import compiled


@compiled
def mix(h: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    h = np.uint64(h)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@compiled
def pair_sum(high: Any, low: Any, k1: Any, k2: Any, k3: Any, k4: Any) -> Any:
    """Hash 128 bits with four numbers of the secret. The caller mixes the sum."""
    upper = k1 * (high >> np.uint64(32)) + k2 * (high & np.uint64(0xFFFFFFFF))
    return upper + k3 * (low >> np.uint64(32)) + k4 * (low & np.uint64(0xFFFFFFFF))


@compiled
def _hash_pair(high: Any, low: Any) -> Any:
    return mix(np.uint64(high) * np.uint64(0x9E3779B97F4A7C15) + mix(low))


WIDE: Final = np.uint64(1 << 63)
"""The bit that every payload check has, except the checks of 32 bits that version 0.1.0 stored."""


@compiled
def payload_checks(
    model: Any,
    client: Any,
    client_digests: Any,
    error_code: Any,
    error_digests: Any,
    occurred: Any,
    latency: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    details: Any,
    out: Any,
) -> None:
    """The check of each payload, 64 bits, which tells a duplicate from a conflict.

    A payload is everything that counts of an event, except its own id and the id of its org. ``model`` is
    uint64[n, 2]. ``client`` and ``error_code`` are places in their digests. ``details`` is int64[n, 6]. An
    event whose details are all 0 has the check that it had before events had details. ``out`` is uint64[n],
    with `WIDE` set. The database stores the checks. If this function gave other bits, every stored id would
    meet a conflict.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = mix(h ^ client_digests[client[i]])
        h = mix(h ^ error_digests[error_code[i]])
        h = mix(h ^ np.uint64(occurred[i]))
        h = mix(h ^ np.uint64(latency[i]))
        h = mix(h ^ np.uint64(status[i]))
        h = mix(h ^ np.uint64(tokens_in[i]))
        h = mix(h ^ np.uint64(tokens_out[i]))
        h = mix(h ^ np.uint64(cost[i]))
        some = np.int64(0)
        for j in range(details.shape[1]):
            some |= details[i, j]
        if some:
            for j in range(details.shape[1]):
                h = mix(h ^ np.uint64(details[i, j]))
        out[i] = h | WIDE


@compiled
def narrow_checks(
    model: Any,
    client_crcs: Any,
    error_crcs: Any,
    occurred: Any,
    latency: Any,
    status: Any,
    tokens_in: Any,
    tokens_out: Any,
    cost: Any,
    out: Any,
) -> None:
    """The payload checks of version 0.1.0: ``out`` uint64[n], below 2^32.

    An event needs this check when it meets an id that version 0.1.0 stored. ``client_crcs`` and
    ``error_crcs``, uint32[n] each, are the CRCs of the event's texts.
    """
    for i in range(len(out)):
        h = _hash_pair(model[i, 0], model[i, 1])
        h = mix(h ^ (np.uint64(client_crcs[i]) << np.uint64(32)) ^ np.uint64(error_crcs[i]))
        h = mix(h ^ np.uint64(occurred[i]))
        h = mix(h ^ np.uint64(latency[i]))
        h = mix(h ^ np.uint64(status[i]))
        h = mix(h ^ np.uint64(tokens_in[i]))
        h = mix(h ^ np.uint64(tokens_out[i]))
        h = mix(h ^ np.uint64(cost[i]))
        out[i] = h >> np.uint64(32)
