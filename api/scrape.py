"""What the database says at a scrape of Prometheus, in one snapshot."""

from __future__ import annotations

from psycopg.rows import tuple_row

from api.exports.jobs import SQL
from api.metrics import OPEN, Facts
from api.reading import seen
from api.reading.database import rows
from pipeline.common.connect import AsyncConnection


async def facts(connection: AsyncConnection) -> Facts:
    """How far each partition has come, and which export jobs have not ended."""
    watermarks = await seen.watermarks(connection)
    found = await rows(connection, SQL["waiting"], {}, tuple_row)
    counts = {status: count for status, count, _ in found}
    return Facts(
        watermarks=watermarks,
        open_exports={status: counts.get(status, 0) for status in OPEN},
        oldest_export_at=min((oldest_at for _, _, oldest_at in found), default=None),
    )
