"""What the pages and the README name must exist: links, commands, options, settings, metrics and tables."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from api.access import turns
from api.access.guard import ANALYTICS_ADMIN
from api.alerts import calls, deliver
from api.budgets.rules import BUDGETS_MAX, THRESHOLDS_MAX
from api.exports import jobs
from api.names import orders
from api.notices import judge, rules
from api.notices import watch as notices
from api.prices import orders as price_orders
from api.webhooks import messages
from api.webhooks.routes import WAITING_MAX, WEBHOOKS_MAX
from pipeline.cli import main
from pipeline.collector import admit, in_work, org_names, service
from pipeline.collector.dialects import gen_ai, otlp, usage_record
from pipeline.common import keys, problems
from pipeline.common.access.caller import ADMIN
from pipeline.common.names import NAMES_MAX
from pipeline.common.settings_table import SETTINGS
from pipeline.core import replay, rollups, wire
from pipeline.prices import source
from sql import migrate, roles, schema
from tests.support import expositions

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("deploy/*.md")])
_SETTING = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_NO_SETTINGS = re.compile(
    r"\b(?:SPENDSTREAM_[A-Z_]+|XDG_CACHE_HOME|PYTHON[A-Z]*|NUMBA_[A-Z_]+|OPENBLAS_[A-Z_]+|PG[A-Z]+|GENERIC_LOGGER_[A-Z]+|OTEL_[A-Z_]+|SMOKE_[A-Z_]+|YOUR_KEY|BASE_DIGEST|DAY_ZONES|FLUSH_INTERVALL)\b"
)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield text


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each ``spendstream`` command in the page's shell blocks and in its sentences.

    Those in containers count: ``docker compose run … cli keys list``, ``kubectl exec … -- spendstream …``.
    """
    written = re.findall(r"`((?:spendstream|docker compose run|kubectl .*exec) [^`\n]+)`", page.read_text())
    for block in (*code_blocks(page, "sh", "bash"), *written):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^docker compose run .*? (?:cli|migrate) ", "spendstream ", line.lstrip())
            line = re.sub(r"^kubectl .*exec .* -- (?=spendstream )", "", line)
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and words[0] == "spendstream":
                yield [
                    word for word in itertools.takewhile(lambda word: word != ">", words[1:]) if word != "&"
                ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


def test_the_page_of_authentication_describes_every_role() -> None:
    text = (ROOT / "docs/howto/authenticate.md").read_text()
    table = text[text.index("## Roles") :]
    for role in (*keys.ROLES, ANALYTICS_ADMIN, ADMIN):
        assert f"`{role}`" in table, role


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for words in commands(page):
        command: click.Command = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = [
                (name, command.get_command(click.Context(command), name)) for name in words[0].split("|")
            ]
            assert not [name for name, one in found if one is None], f"no such command: {words[0]!r}"
            assert found[0][1] is not None
            command, words = found[0][1], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        for parameter in command.params:  # without any option, a page only names the command
            if given and parameter.required and isinstance(parameter, click.Option):
                assert given & {*parameter.opts}, f"{command.name} needs {parameter.opts[0]}"
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {name for setting in SETTINGS for name in (setting.name, setting.file_name)}
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text()) + list(code_blocks(page, "sh", "bash")):
        wanted = {name for name in _SETTING.findall(quoted) if not _NO_SETTINGS.fullmatch(name)}
        assert wanted <= known, f"unknown settings: {wanted - known}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_with_an_event_of_a_past_day_says_that_such_an_event_does_not_count(page: Path) -> None:
    text = page.read_text()
    for fixed in re.finditer(r'"(?:occurredAt|timestamp|endTime)": ?"?\d', text):
        assert "`too_late`" in text[fixed.end() : fixed.end() + 3000]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_that_sends_a_file_with_an_event_says_how_to_write_one_of_today(page: Path) -> None:
    text = page.read_text()
    if "@event.json" in text:
        assert "cat > event.json" in text or "collector.md#send)" in text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_placeholder_in_a_header_can_be_sent(page: Path) -> None:
    """A header is ASCII: with another placeholder the snippet ends with a UnicodeEncodeError."""
    for block in code_blocks(page, "sh", "python", "js", "ts", "yaml"):
        for header in re.findall(r"(?i)\bx-api-key.*", block):
            assert header.isascii(), header


_BOUND = re.compile(
    r"_MAX$|^RETENTION_|_RETENTION$|_TIMEOUT$|_RATE_LIMIT$|^STREAM_MAX_|_WINDOW$|_LEASE$|_SLOW$|_DURATION$|_POOL_SIZE$"
)


def test_every_bound_is_on_the_page_of_bounds_with_its_default_and_what_happens_there() -> None:
    text = (ROOT / "docs/faults-and-bounds.md").read_text()
    table = text.partition("<!-- bounds -->")[2].partition("<!-- /bounds -->")[0]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| `([^`]*)` \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert len(rows) == table.strip().count("\n") - 1, "a row that is not read"
    defaults = {setting.name: setting.default for setting in SETTINGS}
    for name, default, counts, then in rows:
        assert default == defaults.get(name), f"{name}: the default is {defaults.get(name)}"
        assert counts.strip(), name
        assert then.strip().endswith("."), name
    bounds = {name for name in defaults if _BOUND.search(name)}
    assert bounds <= {row[0] for row in rows}, f"bounds without a word: {bounds - {row[0] for row in rows}}"


@pytest.mark.parametrize(
    "words",
    [
        f"| a record | {wire.BODY_BYTES_MAX // 1024} KiB |",
        f"| {BUDGETS_MAX}, with {THRESHOLDS_MAX} thresholds each |",
        f"| {WEBHOOKS_MAX}, with {WAITING_MAX} deliveries that somebody asked for |",
        f"| {messages.BODY_BYTES_MAX:,} bytes |",
        f"| weeks that an hour is compared with | {rules.WEEKS}, at least {rules.WEEKS_MIN} |",
        f"notices go back to after a pause | {rules.CATCH_UP_DAYS} days |",
        f"judged again for late events and prices | {rules.AGAIN // 60} hours |",
        f"| models that a summary names | {judge.MODELS_SHOWN}, and {judge.MODELS_SHOWN} of those",
        f"| notices that are listed | {notices.KEPT_DAYS} days |",
        f"| {deliver.SENDS_MAX}, of which {deliver.APART_MAX} for endpoints that fail or are slow;"
        f" for an org {deliver.ORG_MAX}, and {deliver.ORG_APART_MAX} more for such endpoints |",
        f"| an answer of an endpoint | {calls.ANSWER_BYTES_MAX // 1024} KiB |",
        f"| nesting of a record | {wire.DEPTH_MAX} levels |",
        f"{wire.CLIENT_ID_CHARS_MAX} and {wire.ERROR_CODE_CHARS_MAX} characters",
        f"error codes by name, per org and hour | {rollups.ERROR_CODES_PER_ORG_HOUR_MAX} |",
        f"| {turns.WAITING_MAX}, each for {turns.WAIT_S:g} s |",
        f"| {problems.FAULTS_MAX}, with {problems.FIELD_CHARS_MAX} characters",
        f"of an org that have names | {NAMES_MAX:,}; {orders.ITEMS_MAX:,} in one request |",
        f"| {otlp.PARTS_MAX:,} fields of protobuf, or {otlp.JSON_VALUES_MAX:,} values of JSON |",
        f"{gen_ai.METADATA_MAX} keys of a span's metadata, {usage_record.METADATA_MAX} of a usage record's",
        f"| a file of prices, a CSV or LiteLLM's map | {source.FILE_BYTES_MAX // 2**20} MiB |",
        f"and orgs that one `/prices/diff` asks for | {price_orders.PRICES_MAX} of each |",
        f"range of an hourly export | {jobs.HOURLY_DAYS_MAX} days |",
        f"dead letters that a flush counts after all | {replay.LETTERS_MAX:,} |",
        f"wait of `migrate` for another one | {migrate.LOCK_WAIT_S:g} s |",
        f"before any that is right | {admit.FUTILE:,} |",
        f"explained in full | {admit.EXPLAINED_MAX}, with {admit.FAULTS_MAX} faults each",
        f"large bodies (more than {admit.LARGE_BYTES // 1024} KiB) that a collector reads at once | 1;",
        f"another one waits for up to {admit.LARGE_WAIT_S:g} s |",
        f"an idle connection | {service.KEEPALIVE_S:g} s |",
        f"| {service.KEY_GRACE_S / 60:g} minutes after the database confirmed it |",
        f"wait to be written by a collector | {org_names.WAITING_MAX:,} |",
        f"waits for {in_work.WAIT_S:g} s, the oldest that waits for {in_work.OLDEST_WAIT_S:g} s",
    ],
)
def test_a_bound_without_a_setting_is_on_the_page_as_it_is(words: str) -> None:
    assert words in (ROOT / "docs/faults-and-bounds.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_metric_and_table_that_a_page_names_exists(page: Path) -> None:
    exposed = set(re.findall(r"^# HELP (\S+)", expositions.text(), re.MULTILINE))
    exposed |= {name.removesuffix("_total") for name in exposed}
    tables = {table.name for table in (*schema.metadata.sorted_tables, *schema.views.sorted_tables)}
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text()):
        for name in re.findall(r"\banalytics_[a-z_]+\b", quoted):
            assert name in exposed, f"there is no metric {name}"
        for name in re.findall(r"\banalytics\.([a-z_]+)\b", quoted):
            assert name in tables or name == "usage", f"there is no table {name}"


def test_the_table_of_the_processes_has_the_ports_and_logins_that_they_have() -> None:
    text = (ROOT / "docs/howto/run.md").read_text()
    table = text.partition("## What each process needs")[2].partition("\n\n## ")[0]
    defaults = {setting.name: setting.default for setting in SETTINGS}
    for process, port, login in (
        ("[worker](scale-out.md)", "METRICS_PORT", "owner"),
        ("API", "HTTP_PORT", roles.READER),
        ("exporter", "EXPORT_METRICS_PORT", roles.READER),
        ("[alerts](budgets.md)", "ALERTS_METRICS_PORT", roles.ALERTER),
        ("[collector](collector.md)", "COLLECTOR_PORT", roles.COLLECTOR),
    ):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {process} |")]
        assert f"`{port}`, {defaults[port] or 'if set'} |" in row
        assert login in row


def test_the_table_of_the_event_is_the_wire_contract() -> None:
    """Without a field, or with null there, an event counts exactly where the page says so."""
    text = (ROOT / "docs/concepts.md").read_text()
    example = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    assert isinstance(wire.read(json.dumps(example).encode()), wire.Event)
    rules = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*) \|$", text, re.MULTILINE))
    fields = {name: rule for names, rule in rules.items() for name in re.findall(r"\w+", names)}
    assert fields.keys() == wire.CAMEL_NAMES.keys()
    for name, rule in fields.items():
        without = {key: value for key, value in example.items() if key != name}
        for event, counts in ((without, "optional" in rule), ({**example, name: None}, "null" in rule)):
            assert isinstance(wire.read(json.dumps(event).encode()), wire.Event) is counts, (name, rule)


def test_the_versions_of_the_database_that_were_run_are_said_and_no_test_takes_an_edition_for_granted() -> (
    None
):
    said = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    for version in ("PostgreSQL 17.12", "TimescaleDB 2.19.3", "PostgreSQL 18.6", "2.28.3", "2.29.2", "15.18"):
        assert version in said, version
    for path in ROOT.glob("tests/**/test_*.py"):
        assert not re.search(r"== Edition\.APACHE", path.read_text()), path


def test_the_page_on_compression_says_what_was_measured_and_keeps_the_window_out() -> None:
    page = " ".join((ROOT / "docs/howto/compression.md").read_text().split())
    for words in ("661 MB", "128 MB", "segmentby", "DEDUPE_WINDOW", "timescaledb_pre_restore()"):
        assert words in page, words
    after = re.search(r"compress_after => INTERVAL '(\d+) days'", page)
    assert after is not None
    assert int(after[1]) > 7 + 1, "a chunk of hours has seven days, and the window a day"
