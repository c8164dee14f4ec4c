"""Named SQL blocks: each block begins with ``-- name:`` and a comment on its purpose.

There are two kinds of placeholders. psycopg binds a value to ``%(name)s``. The code fills an identifier in
for ``{name}``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def load(file: str) -> dict[str, str]:
    """The blocks of ``sql/queries/{file}.sql`` by name."""
    text = files(__package__).joinpath(f"{file}.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
