"""SQL of the cells of a file: times, amounts, names, and texts that no spreadsheet runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

ISO: Final = """'YYYY-MM-DD"T"HH24:MI:SS"Z"'"""
"""How `to_char` writes a time of UTC."""

# A spreadsheet runs a cell as a formula if the cell begins with one of `_RUNS`, even behind blanks. Some
# spreadsheets split the file at other separators than the comma, so a cell of theirs may begin in the middle
# of ours. An apostrophe in front makes the cell a text. There are two steps, because the bar is a separator
# and begins a formula too.
_BLANKS: Final = (
    r"[:space:][:cntrl:]\u0085\u00a0\u00ad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff"
)
_RUNS: Final = "-=+@|%%＝＋－＠"
_QUOTES: Final = "\"''"  # as they stand in a text of SQL
_BEGINS: Final = rf"(?=[{_BLANKS}{_QUOTES}]*[{_RUNS}])"
_SPLITS: Final = rf"([,;|\t\r\n\v\f\u0085\u2028\u2029{_QUOTES}])"


def cell(column: str) -> str:
    """A text as a cell, defused; empty for no text."""
    return (
        rf"NULLIF(regexp_replace(regexp_replace({column}, '{_SPLITS}{_BEGINS}', '\1''', 'g'),"
        rf" '^{_BEGINS}', ''''), '')"
    )


def dollars(amount: str) -> str:
    """An exact amount with at least 8 decimals."""
    return f"round({amount}, GREATEST(8, min_scale({amount})))"


def selected(columns: Mapping[str, str], names: Iterable[str]) -> str:
    """The list of a SELECT: the named ones of the columns, whose SQL is by name."""
    return ", ".join(f'{columns[name]} AS "{name}"' for name in names)


# A join would lose the order of the rows.
PROVIDER: Final = "(%(export_labels)s::jsonb -> model_id::text ->> 0)"
MODEL_NAME: Final = "(%(export_labels)s::jsonb -> model_id::text ->> 1)"
"""The provider and the name of a row's model."""
ORG_NAME: Final = "%(export_org_name)s::text"
"""The name of the org, which is null if it has none."""
VALUE_NAME: Final = "(%(export_names)s::jsonb ->> client_id)"
"""The name of a row's client, or of its value of a dimension."""
