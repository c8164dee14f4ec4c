"""``spendstream webhooks reseal``: every webhook is encrypted with the first key of WEBHOOK_KEY.

Each webhook is read and written by itself, and is written only if nobody has changed it meanwhile. So API and
``spendstream alerts`` go on, and a run that ends early is taken up by the next one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import psycopg

from api.config import Config
from api.webhooks.kept import SQL
from api.webhooks.sealed import Sealer, Unreadable
from pipeline.common.actor import actor
from pipeline.common.connect import Refused, Session, connect

_SESSION: Final = Session(application_name="spendstream-webhooks", lock_timeout_s=60.0)


@dataclass(slots=True)
class Resealed:
    """How many webhooks there are, how many were encrypted anew, and the ids of those that no key opens."""

    webhooks: int
    anew: int
    unreadable: list[str]


def reseal(database_url: str, sealer: Sealer) -> Resealed:
    """Encrypt every webhook with the newest key, and record in the audit log how many that were.

    Raises:
        psycopg.Error: the database cannot be used; what was encrypted anew until then stays so.
    """
    with connect(database_url, _SESSION) as connection:
        ids = [webhook_id for (webhook_id,) in connection.execute(SQL["ids"]).fetchall()]
        done = Resealed(len(ids), 0, [])
        for webhook_id in ids:
            row = connection.execute(SQL["lock_sealed"], {"webhook_id": webhook_id}).fetchone()
            if row is not None and not sealer.is_newest(bytes(row[0])):
                try:
                    endpoint = sealer.open(webhook_id, bytes(row[0]))
                except Unreadable:
                    done.unreadable.append(str(webhook_id))
                else:
                    values = {"webhook_id": webhook_id, "sealed": sealer.seal(webhook_id, endpoint)}
                    connection.execute(SQL["reseal"], values)
                    done.anew += 1
            connection.commit()
        connection.execute(SQL["resealed"], {"actor": actor(), "webhooks": done.anew})
    return done


def main(config: Config) -> int:
    """Say what was done. 1: the database cannot be used, or no key opens some webhook; 2: there is no key."""
    if not config.webhooks.keys:
        print("configuration: WEBHOOK_KEY is required: the new key, a comma and the old one", file=sys.stderr)
        return 2
    try:
        done = reseal(config.database.url, Sealer(config.webhooks.keys))
    except (psycopg.Error, Refused) as error:
        print(str(error).strip().partition("\n")[0], file=sys.stderr)
        return 1
    print(f"{done.anew} of {done.webhooks} webhooks were encrypted anew with the first key of WEBHOOK_KEY.")
    for webhook_id in done.unreadable:
        print(f"No key of WEBHOOK_KEY opens webhook {webhook_id}.", file=sys.stderr)
    return 1 if done.unreadable else 0
