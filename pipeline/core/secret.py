"""The secret behind every hash table of this process: random numbers that no sender can know.

The secret decides where values lie in memory. No stored value and no shown value depends on it.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_NUMBERS: Final = 130
"""`kernels.names.intern_texts` takes this many for a name of 512 bytes. All other hashes take fewer."""


def new_secret() -> npt.NDArray[Any]:
    """Random numbers, uint64[130]."""
    return np.frombuffer(secrets.token_bytes(8 * _NUMBERS), np.uint64).copy()


SECRET: Final = new_secret()
"""The secret of this process."""
