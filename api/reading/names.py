"""The names of an org, its clients and the values of its dimensions, as answers carry them.

Every query is by org, so an answer never has the name of another org.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg.rows import tuple_row

from api.reading.database import rows
from pipeline.common.connect import AsyncConnection
from pipeline.common.names import ORG, SQL

OF_ORG: Final = SQL["of_org"]
OF_ORGS: Final = SQL["of_orgs"]
AT_ONCE: Final = 1000
"""Names of an org that are read beside its figures. If there are more, those of the page are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an administrator calls an org, and some of its clients or some values of a dimension."""

    org: str | None
    values: Mapping[str, str]


NO_NAMES: Final = Names(org=None, values={})


def asked(org_id: UUID, dimension: str = ORG, values: Iterable[str | None] | None = ()) -> dict[str, Any]:
    """The values of `OF_ORG`. ``values`` None: the first values of the dimension, whichever."""
    named = None if values is None else sorted({value for value in values if value})
    names_max = AT_ONCE if named is None else len(named) + 1
    return {"org_id": org_id, "named_dimension": dimension, "named": named, "names_max": names_max}


def names_of(found: Iterable[Sequence[Any]]) -> Names:
    """The rows of `OF_ORG`."""
    by_value = {(dimension, value): name for dimension, value, name in found}
    org = by_value.pop((ORG, ORG), None)
    return Names(org=org, values={value: name for (_, value), name in by_value.items()})


async def read(
    connection: AsyncConnection, org_id: UUID, dimension: str = ORG, values: Iterable[str | None] = ()
) -> Names:
    """The name of the org, and those of some values of one of its dimensions."""
    return names_of(await rows(connection, OF_ORG, asked(org_id, dimension, values), tuple_row))


async def of_orgs(connection: AsyncConnection, org_ids: Iterable[UUID]) -> dict[UUID, str]:
    """The names of some orgs. An org without a name is absent."""
    return dict(await rows(connection, OF_ORGS, {"org_ids": list(org_ids)}, tuple_row))
