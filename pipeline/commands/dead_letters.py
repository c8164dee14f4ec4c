"""``spendstream dead-letters``: options, output and exit codes."""

from __future__ import annotations

import base64
import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pipeline.commands import options
from pipeline.commands.options import DURATION, OFFSET, ORG, TIME, VISIBLE, fail
from pipeline.common import settings
from pipeline.core.rules import REASONS

if TYPE_CHECKING:
    from pipeline.dead_letters.examine import Examined
    from pipeline.dead_letters.replay import Report, Setup
    from pipeline.dead_letters.table import StoredDeadLetter

BODY_SHOWN = 200
"""Characters of a body in a list."""


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at the events that were rejected, have them counted after all, or delete them."""


def _chosen(command: Any) -> Any:
    options = (
        click.option("--reason", type=click.Choice(REASONS), help="Only those rejected for this reason."),
        click.option("--stream", help="Only those of this stream (a partition of a super stream is one)."),
        click.option("--partition", type=click.IntRange(0), help="Only those of this partition."),
        click.option("--from", "start", type=TIME, help="Only those rejected at this time (UTC) or later."),
        click.option("--to", "end", type=TIME, help="Only those rejected before this time (UTC)."),
    )
    for option in reversed(options):
        command = option(command)
    return command


_OFFSET = click.option("--offset", type=OFFSET, help="Only the dead letter at this offset.")


@dead_letters.command("list")
@_chosen
@_OFFSET
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the bytes in base64.")
def list_dead_letters(*, limit: int, as_json: bool, **filters: Any) -> None:
    """List rejected events, the newest first: their place in the stream, the reason, and their bytes."""

    from pipeline.dead_letters import table

    database_url = options.database_url()
    chosen = table.Chosen(**filters)
    for record in table.newest(database_url, chosen, limit=limit):
        if as_json:
            click.echo(json.dumps(_row(record), ensure_ascii=False))
            continue
        state = "" if record.requested_at is None else f" [replay: {record.outcome or 'waits'}]"
        click.echo(f"{record.stream} {record.offsets} {record.reason}: {_faults(record.faults)}{state}")
        body = "(bytes not kept: read them from the stream)"
        if record.body is not None:
            body = record.body[:BODY_SHOWN].decode("utf-8", "backslashreplace").translate(VISIBLE)
            whole = record.body_bytes or len(record.body)
            body += f"… ({whole} bytes)" if whole > BODY_SHOWN else ""
        click.echo(f"    {body}")
    if not as_json:
        counts = table.count_by_reason(database_url, chosen)
        total = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        click.echo(f"in all: {total}")


@dead_letters.command("show")
@click.argument("offset", type=OFFSET)
@click.option("--stream", help="The stream of the event, if several streams have this offset.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; the bytes in base64.")
def show(*, offset: int, stream: str | None, as_json: bool) -> None:
    """Show one rejected event whole, and whether it would count now, or why not.

    Bytes that were left out in a flood are read back from the stream, if the stream still has them.
    """

    from pipeline.archive.rebuild import connected
    from pipeline.dead_letters import replay, table
    from pipeline.dead_letters.examine import REPLAY
    from pipeline.dead_letters.life import State

    setup = _setup()
    records = list(table.newest(setup.database_url, table.Chosen(stream=stream, offset=offset), limit=2))
    if not records:
        fail(f"there is no dead letter at offset {offset}{f' of {stream}' if stream else ''}")
    if len({record.stream for record in records}) > 1:
        fail(f"several streams have a dead letter at offset {offset}: name one with --stream")
    with connected(setup.database_url) as reading:
        terms = replay.terms_of(setup, reading)
        [letter] = replay.examined(setup, records[:1], terms)
        verdict = letter.verdict
        if verdict == REPLAY and letter.record.state is not State.COUNTED:
            verdict = replay.forecast(setup, letter, terms)
    if as_json:
        row = _row(letter.record)
        if letter.body is not None:
            row["body"] = base64.b64encode(letter.body).decode()
        row["wouldBe"] = None if letter.record.state is State.COUNTED else verdict
        row["because"] = letter.why
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
        return
    _tell_letter(letter, verdict)


def _tell_letter(letter: Examined, verdict: str) -> None:
    from pipeline.dead_letters.life import COUNTED_OUTCOMES, State

    record = letter.record
    lines = {
        "stream": f"{record.stream} (partition {record.partition})",
        "offset": f"{record.offset}, position {record.position}",
        "records": f"{record.records}: a batch that cannot be undone" if record.records > 1 else "",
        "broker time": _time(record.broker_time),
        "rejected at": _time(record.rejected_at),
        "reason": record.reason,
        "faults": _faults(record.faults),
    }
    if letter.event is not None:
        lines["event"] = f"{letter.event.event_id} of org {letter.event.org_id}"
    if record.requested_at is not None:
        state = "waits for the worker" if record.settled_at is None else f"{record.outcome}"
        lines["replay"] = f"asked for at {_time(record.requested_at)}: {state}"
    if record.state is State.COUNTED:
        lines["now"] = f"settled at {_time(record.settled_at)}: nothing is left to do"
    elif verdict in COUNTED_OUTCOMES:
        lines["now"] = f"a replay would make it {verdict}{f': {letter.why}' if letter.why else ''}"
    else:
        lines["now"] = f"a replay would leave it, as {verdict}{f': {letter.why}' if letter.why else ''}"
    for name, text in lines.items():
        if text or name == "faults":
            click.echo(f"{name + ':':<13}{text.translate(VISIBLE)}")
    if letter.body is None:
        click.echo("body:        (its bytes were left out in a flood, and the stream has them no more)")
        return
    if record.body_bytes is None or record.body_sha256 is None:
        click.echo(f"body:        {len(letter.body)} bytes")
    else:
        kept = f"the first {len(letter.body)} are kept, sha256 of all: {record.body_sha256.hex()}"
        click.echo(f"body:        {record.body_bytes} bytes; {kept}")
    for line in _pretty(letter.body).splitlines():
        click.echo(f"    {line.translate(VISIBLE)}")


def _pretty(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "backslashreplace").replace("\r", "\\x0d")


@dead_letters.command("replay")
@_chosen
@_OFFSET
@click.option("--org", type=ORG, help="Only events of this org.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest of each stream first.")
@click.option(
    "--accept",
    is_flag=True,
    help="Count also events of which neither ids nor archive tell whether they were counted before.",
)
@click.option("--dry-run", is_flag=True, help="Say what would become of the letters, and change nothing.")
@click.option("--no-wait", is_flag=True, help="Return once the workers are asked.")
@click.option(
    "--timeout", type=DURATION, default="60s", show_default=True, help="How long to wait for the workers."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay_letters(
    *,
    org: UUID | None,
    limit: int | None,
    accept: bool,
    dry_run: bool,
    no_wait: bool,
    timeout: float,
    as_json: bool,
    **filters: Any,
) -> None:
    """Have rejected events counted, each exactly once.

    Each event is validated again, and an event that still breaks a rule stays rejected. The reason `too_late`
    does not matter here: an event counts if ids, archive or earlier replays show that it did not count
    before. The worker that owns the partition counts the event and stores the outcome in one transaction, so
    a crash changes nothing.

    Exits with 1 if letters still wait after --timeout, or if a letter needs --accept.
    """
    import psycopg

    from pipeline.dead_letters import replay, table

    setup = _setup()
    report = replay.request(
        setup, table.Chosen(**filters), org=org, limit=limit, accept=accept, dry_run=dry_run
    )
    waited = report.requested > 0 and not dry_run and not no_wait
    if waited:
        try:
            replay.wait(setup, report, timeout_s=timeout)
        except psycopg.Error as error:
            fail(
                f"{report.requested} letters were asked for, and the workers go on;"
                f" the database cannot be read: {str(error).strip()}"
            )
    if as_json:
        click.echo(json.dumps(_report_row(report, waited=waited), indent=2, ensure_ascii=False))
    else:
        _tell_report(report, waited=waited)
    if report.waiting:
        why = "; ".join(report.silent) or f"not within {timeout:g} s"
        fail(f"{report.waiting} letters still wait, and are replayed once their worker can: {why}")
    if report.lost:
        fail(f"{report.lost} requests are no longer in the database (a failover lost them): ask again")
    if report.unknown:
        fail(f"{report.unknown} letters are left: nothing tells whether they were counted; see --accept")


def _tell_report(report: Report, *, waited: bool) -> None:
    for stream, offset, _, verdict, why in report.named:
        click.echo(f"{stream} offset {offset} is left, {verdict}: {why}".translate(VISIBLE))
    if not report.requested and not report.left:
        click.echo("no letter to replay")
    if report.waiting_before:
        click.echo(f"asked for before, and still waiting: {report.waiting_before}")
    if report.left:
        click.echo(f"left as they are: {_counts(report.left)}")
    if report.dry:
        click.echo(f"would be replayed: {report.requested} ({_counts(report.outcomes)})")
    elif waited:
        click.echo(f"replayed: {report.outcomes.total()} ({_counts(report.outcomes)})")
    elif report.requested:
        click.echo(f"asked for: {report.requested}, as run {report.run}")


def _report_row(report: Report, *, waited: bool) -> dict[str, Any]:
    return {
        "run": str(report.run),
        "dryRun": report.dry,
        "requested": report.requested,
        "waited": waited,
        "outcomes": dict(report.outcomes),
        "waiting": report.waiting,
        "lost": report.lost,
        "waitingBefore": report.waiting_before,
        "left": dict(report.left),
        "letters": [
            dict(zip(("stream", "offset", "position", "verdict", "why"), named, strict=True))
            for named in report.named
        ],
    }


@dead_letters.command("purge")
@click.option("--reason", type=click.Choice(REASONS), help="Only those rejected for this reason.")
@click.option("--stream", help="Only those of this stream.")
@click.option("--partition", type=click.IntRange(0), help="Only those of this partition.")
@click.option("--before", "end", type=TIME, help="Only those rejected before this time (UTC).")
@click.option("--replayed", is_flag=True, help="Only those that a replay has counted, or found counted.")
@click.option("--all", "everything", is_flag=True, help="All of them; without it, one filter is needed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    *,
    reason: str | None,
    stream: str | None,
    partition: int | None,
    end: datetime | None,
    replayed: bool,
    everything: bool,
    yes: bool,
) -> None:
    """Delete rejected events for good.

    Events that wait for a replay stay. The ids of the events that replays have counted stay, too, so another
    letter of the same event does not count again.
    """

    from pipeline.dead_letters import table

    chosen = table.Chosen(reason=reason, stream=stream, partition=partition, end=end)
    if chosen.everything and not replayed and not everything:
        raise click.UsageError(
            "say which: by --reason, --stream, --partition, --before, --replayed, or --all"
        )
    database_url = options.database_url()
    if not yes:
        found = table.count_to_purge(database_url, chosen, replayed=replayed)
        if found:
            click.confirm(f"delete {found} dead letters for good?", abort=True)
    deleted = table.purge(database_url, chosen, replayed=replayed)
    click.echo(f"deleted {deleted} dead letters")


def _setup() -> Setup:
    from pipeline.archive.store import open_store
    from pipeline.config import archive_config, stream_config
    from pipeline.dead_letters.replay import Setup

    values = settings.read(os.environ, required=("DATABASE_URL",))
    archive = archive_config(values)
    return Setup(
        database_url=values["DATABASE_URL"],
        stream=None if values["RABBITMQ_URL"] is None else stream_config(values),
        store=None if archive is None else open_store(archive),
        window_us=round(values["DEDUPE_WINDOW"] * 1e6),
        rollups_from_us=time.time_ns() // 1000 - round(values["RETENTION_ROLLUP"] * 1e6),
        silent_s=max(15.0, 5 * values["FLUSH_INTERVAL"]),
    )


def _row(record: StoredDeadLetter) -> dict[str, Any]:
    return {
        "stream": record.stream,
        "partition": record.partition,
        "offset": record.offset,
        "position": record.position,
        "records": record.records,
        "reason": record.reason,
        "faults": record.faults,
        "body": None if record.body is None else base64.b64encode(record.body).decode(),
        "bodyBytes": record.body_bytes,
        "bodySha256": None if record.body_sha256 is None else record.body_sha256.hex(),
        "rejectedAt": record.rejected_at.isoformat(),
        "brokerTime": record.broker_time.isoformat(),
        "replay": None
        if record.requested_at is None
        else {
            "requestedAt": record.requested_at.isoformat(),
            "settledAt": None if record.settled_at is None else record.settled_at.isoformat(),
            "outcome": record.outcome,
        },
    }


def _faults(faults: list[dict[str, str]]) -> str:
    text = "; ".join(f"{f['field']}: {f['message']}" if f["field"] else f["message"] for f in faults)
    return text.translate(VISIBLE)


def _counts(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _time(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M:%S%z}"
