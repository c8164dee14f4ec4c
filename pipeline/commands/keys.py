"""``spendstream keys``: the API's keys, made, listed and revoked."""

from __future__ import annotations

import json
import os
from uuid import UUID

import click

from pipeline.commands.options import DURATION, ORG, VISIBLE, fail
from pipeline.common import settings
from pipeline.common.keys import ROLES


@click.group()
def keys() -> None:
    """Make, list and revoke API keys (X-API-Key). Needs DATABASE_URL of a role that owns the tables."""


@keys.command("create")
@click.option("--org", type=ORG, required=True, help="The org that the key belongs to.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    help=f"What it may do; can be repeated. There are {', '.join(ROLES)}.",
)
@click.option("--label", default="", help="What it is for, as shown by `keys list`.")
@click.option("--valid", type=DURATION, help="Ends after this long (90d); else when it is revoked.")
def create_key(*, org: UUID, roles: tuple[str, ...], label: str, valid: float | None) -> None:
    """Make a key and print it. The key cannot be shown again. Needs API_KEY_SECRET."""
    from pipeline.admin import keys as making

    for role in roles:
        if role not in ROLES:
            raise click.UsageError(f"no role {role!r} for keys; there are {', '.join(ROLES)}")
    values = settings.read(os.environ, required=("DATABASE_URL", "API_KEY_SECRET"))
    secret = values["API_KEY_SECRET"].encode()
    key = making.create(values["DATABASE_URL"], secret, org_id=org, roles=roles, label=label, valid_s=valid)
    click.echo(key)


@keys.command("list")
@click.option("--org", type=ORG, help="Only those of this org.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_keys(*, org: UUID | None, as_json: bool) -> None:
    """List keys by prefix, also revoked and expired keys, with their last use (right to the hour)."""
    from pipeline.admin import keys as making

    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    records = making.listed(database_url, org_id=org)
    for record in records:
        row = {name: getattr(record, name) for name in record.__slots__}
        if as_json:
            click.echo(json.dumps(row, default=str, ensure_ascii=False))
            continue
        state = "revoked" if record.revoked_at else "expires" if record.expires_at else "in use"
        at = record.revoked_at or record.expires_at
        used = f"{record.last_used_at:%Y-%m-%d %H:%M}" if record.last_used_at else "never"
        click.echo(
            f"{record.prefix} {record.org_id} {state}{f' {at:%Y-%m-%d %H:%M}' if at else ''}"
            f" used {used} [{', '.join(record.roles)}] {record.label.translate(VISIBLE)}".rstrip()
        )


@keys.command("revoke")
@click.argument("prefix")
def revoke_key(prefix: str) -> None:
    """Revoke the key with this prefix (ssk_PREFIX_…). The API turns the key away within API_KEY_CACHE."""
    from pipeline.admin import keys as making

    database_url = settings.read(os.environ, required=("DATABASE_URL",))["DATABASE_URL"]
    revoked_at = making.revoke(database_url, prefix)
    if revoked_at is None:
        fail(f"there is no key with the prefix {prefix!r}: see `spendstream keys list`")
    click.echo(f"key {prefix} revoked at {revoked_at:%Y-%m-%d %H:%M:%S%z}")
