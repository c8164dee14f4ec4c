"""The public traces that tests replay: excerpts in tests/data, or the whole files in SPENDSTREAM_TRACES."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NAMES: Final = ("azure_llm_trace_2023_code.csv", "azure_llm_trace_2023_conv.csv")
EXCERPTS: Final = Path(__file__).parent.with_name("data")


def path(name: str) -> Path:
    """The path of a trace: its whole file if SPENDSTREAM_TRACES names a folder, else its excerpt.

    The folder must have the file.
    """
    found = Path(os.environ.get("SPENDSTREAM_TRACES") or EXCERPTS) / name
    assert found.is_file(), f"no trace {found}: unset SPENDSTREAM_TRACES, and the excerpts are used"
    return found


MINUTE: Final = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(
    f"2023-11-16 18:17:{second:02d}.9799609,{second * 10},{second}" for second in range(60)
)
"""A trace of one minute in the format of the public ones: a row a second."""
