"""The secret behind every hash table of this process: random numbers that no sender can know.

Nothing that is stored or shown depends on the secret; only where values lie in memory does.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_NUMBERS: Final = 130
"""As many as `kernels.names.intern_texts` takes for a name of 512 bytes; all other hashes take fewer."""


def new_secret() -> npt.NDArray[Any]:
    """Random numbers, uint64[130]."""
    return np.frombuffer(secrets.token_bytes(8 * _NUMBERS), np.uint64).copy()


SECRET: Final = new_secret()
"""That of this process."""
