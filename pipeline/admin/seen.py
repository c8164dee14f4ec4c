"""What events have named so far, so that a command can say that it was given something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

from pipeline.common.connect import Session, connect
from sql import queries

_QUERIES: Final = queries.load("known")
_SESSION: Final = Session(application_name="spendstream-seen", lock_timeout_s=60.0)
_NOTES: Final = {
    "model": "no event has named this model yet: --provider and --model must be as events have them",
    "org": "no event of this org has been counted yet",
    "value": "no event of this org has had this value yet",
}


def notes(
    database_url: str,
    *,
    org_id: UUID | None = None,
    model: tuple[str, str] | None = None,
    value: tuple[str, str] | None = None,
) -> Iterator[str]:
    """A note on each of these that no counted event had. Raises `psycopg.Error`.

    ``model`` is a provider and a model name. ``value`` is a dimension and a value that the org has of it, or
    ``client`` and the id of a client.
    """
    provider, model_name = model or ("", "")
    dimension, named = value or ("", "")
    values = {
        "org_id": org_id,
        "provider": provider,
        "model_name": model_name,
        "dimension": dimension,
        "value": named,
    }
    asked = {"model": model_name, "org": org_id, "value": named}
    with connect(database_url, _SESSION) as connection:
        row = connection.execute(_QUERIES["known"], values).fetchone()
    assert row is not None
    for (what, given), is_known in zip(asked.items(), row, strict=True):
        if given and not is_known:
            yield _NOTES[what]
            return  # what is unknown of an unknown org goes without saying


def org_names(database_url: str, org_ids: Iterable[UUID | None]) -> dict[UUID, str]:
    """The names of those orgs that have one. Raises `psycopg.Error`."""
    wanted = sorted({org_id for org_id in org_ids if org_id is not None})
    if not wanted:
        return {}
    with connect(database_url, _SESSION) as connection:
        return dict(connection.execute(_QUERIES["names"], {"org_ids": wanted}).fetchall())
