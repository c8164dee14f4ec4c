"""Settings: parsing, every fault at once, and the README's table of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import api.config
from pipeline import config
from pipeline.common import lookalikes, parsers, settings
from pipeline.common.settings_table import GROUPS, SETTINGS
from pipeline.core.dimensions import Dimension
from pipeline.core.rules import Rules
from tests.support import settings_page

NEEDED = {"DATABASE_URL": "postgresql://h/d", "RABBITMQ_URL": "rabbitmq-stream://h"}


def test_the_page_of_settings_is_made_from_their_declarations() -> None:
    assert settings_page.PAGE.read_text() == settings_page.text()


def test_every_setting_is_declared_once_and_its_help_is_a_sentence() -> None:
    names = [setting.name for group in GROUPS for setting in group.settings]
    assert len(names) == len(set(names))
    assert len(GROUPS[0].settings) == 12
    for setting in SETTINGS:
        assert re.match(r"[A-Z].*\.$", setting.help), setting.name


def test_the_numbers_of_the_core_are_the_defaults_of_their_settings() -> None:
    assert config.rules(settings.read({})) == Rules()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("5m", 300), ("24h", 86_400), ("7d", 604_800), ("2.5", 2.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parsers.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1y", "1 s s", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parsers.duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65_536), ("64KiB", 65_536), ("20GB", 20 * 2**30), ("1m", 2**20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parsers.size_bytes(text) == size


def test_all_defaults_are_valid() -> None:
    values = settings.read({})
    assert set(values.by_name) == {setting.name for setting in SETTINGS}
    assert set(values.origins.values()) == {"default"}


def test_every_fault_is_listed_at_once() -> None:
    environment = {
        "HTTP_PORT": "http",
        "HTTP_HOST": "0.0.0.0",
        "FLUSH_INTERVAL": "soon",
        "FRESH_LAG": "10m",
        "RABBITMQ_URL": "amqp://h",
        "TRUSTED_PROXIES": "10.0.0.1/8",
        "S3_BUCKET": "b",
    }
    with pytest.raises(settings.ConfigError) as caught:
        settings.read(environment, required=["DATABASE_URL"])
    faults = "\n".join(caught.value.faults)
    for name in (*list(environment)[:-1], "DATABASE_URL", "AUTH_MODE", "STALE_LAG", "S3_ACCESS_KEY"):
        assert name in faults, name


def test_dimensions_are_names_with_sources() -> None:
    values = settings.read({"DIMENSIONS": " user=actorId, team=metadata.team,feature=metadata.x.y-z"})
    assert values["DIMENSIONS"] == (
        Dimension("user", "actorId"),
        Dimension("team", "metadata.team"),
        Dimension("feature", "metadata.x.y-z"),
    )
    assert settings.read({"DIMENSIONS": ""})["DIMENSIONS"] == ()


@pytest.mark.parametrize(
    ("entries", "faults"),
    [
        ("Team=metadata.team", ["entry 1: expected a name"]),
        (f"{'t' * 33}=metadata.team", ["entry 1: expected a name"]),
        ("1st=actorId", ["entry 1: expected a name"]),
        ("client=actorId", ["entry 1: the name is reserved"]),
        ("model=actorId", ["entry 1: the name is reserved"]),
        ("none=actorId", ["entry 1: the name is reserved"]),
        ("a=actorId,a=metadata.a", ["entry 2: the name has come before"]),
        ("a=metadata.a,b=metadata.a", ["entry 2: the source has come before"]),
        ("team", ["entry 1: expected actorId or metadata.KEY"]),
        ("team=", ["entry 1: expected actorId or metadata.KEY"]),
        ("team=metadata.", ["entry 1: expected actorId or metadata.KEY"]),
        ("team=metadata.a b", ["entry 1: expected actorId or metadata.KEY"]),
        (f"team=metadata.{'k' * 65}", ["entry 1: expected actorId or metadata.KEY"]),
        ("team=orgId", ["entry 1: expected actorId or metadata.KEY"]),
        (",".join(f"d{i}=metadata.k{i}" for i in range(9)), ["at most 8"]),
        ("A=x,b=y,b=actorId", ["entry 1: expected a name", "entry 2: expected actorId", "entry 3: the name"]),
    ],
)
def test_every_fault_of_the_dimensions_is_listed(entries: str, faults: list[str]) -> None:
    with pytest.raises(settings.ConfigError) as caught:
        settings.read({"DIMENSIONS": entries, "HTTP_PORT": "x"})
    assert any("HTTP_PORT" in fault for fault in caught.value.faults)
    (told,) = (fault for fault in caught.value.faults if fault.startswith("DIMENSIONS="))
    for fault in faults:
        assert fault in told


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@h/d",
        "postgresql://user:hunter2/x@h/d",
        "postgresql://user:hunter2%zz@h/d",
        "postgresql://user:hunter2%00@h/d",
        "postgresql://user:hunter2@h/d?pasword=hunter2",
        "postgresql://user:hunter2@h:0/d",
    ],
)
def test_a_secret_is_not_repeated_in_its_fault(url: str) -> None:
    with pytest.raises(settings.ConfigError) as caught:
        settings.read({"DATABASE_URL": url})
    assert "hunter2" not in str(caught.value)


# --- secrets in files ---------------------------------------------------------------------------------


def test_every_secret_may_stand_in_a_file_and_nothing_else(tmp_path: Path) -> None:
    """Written out: a secret that somebody adds is in this list, or its declaration forgot ``secret``."""
    assert {setting.file_name for setting in SETTINGS} - {None} == {
        "DATABASE_URL_FILE",
        "RABBITMQ_URL_FILE",
        "REDIS_URL_FILE",
        "JWT_SECRET_FILE",
        "API_KEY_SECRET_FILE",
        "CURSOR_SECRET_FILE",
        "S3_ACCESS_KEY_FILE",
        "S3_SECRET_KEY_FILE",
        "CHECK_KEY_FILE",
        "OTEL_EXPORTER_OTLP_HEADERS_FILE",
        "SPENDSTREAM_API_KEY_FILE",
        "SPENDSTREAM_TOKEN_FILE",
        "WEBHOOK_KEY_FILE",
    }
    assert not {s.file_name for s in SETTINGS} & {s.name for s in SETTINGS}
    (tmp_path / "port").write_text("9000")
    values = settings.read({"HTTP_PORT_FILE": str(tmp_path / "port")})
    assert values["HTTP_PORT"] == 8084
    assert lookalikes.find({"HTTP_PORT_FILE": "x"}) == [lookalikes.Lookalike("HTTP_PORT_FILE", "HTTP_PORT")]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"postgresql://u:p@h/d", "postgresql://u:p@h/d"),
        (b"postgresql://u:p@h/d\n", "postgresql://u:p@h/d"),
        (b"postgresql://u:p@h/d\r\n", "postgresql://u:p@h/d"),
    ],
)
def test_a_file_has_the_text_of_its_setting_and_a_newline_that_does_not_count(
    tmp_path: Path, content: bytes, value: str
) -> None:
    path = tmp_path / "database_url"
    path.write_bytes(content)
    values = settings.read({"DATABASE_URL_FILE": str(path)}, required=["DATABASE_URL"])
    assert values["DATABASE_URL"] == values.texts["DATABASE_URL"] == value
    assert values.origins["DATABASE_URL"] == "file"
    assert value in values.secrets()
    assert value not in repr(values)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_only_the_last_newline_of_a_file_goes(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "key"
    text = f" two{newline}lines of more than thirty-two {newline}"
    path.write_bytes(f"{text}{newline}".encode())
    values = settings.read({"API_KEY_SECRET_FILE": str(path)})
    assert values.texts["API_KEY_SECRET"] == text


@pytest.mark.parametrize("name", [s.name for s in SETTINGS if s.secret])
def test_a_secret_in_a_file_is_the_same_as_one_in_the_environment(tmp_path: Path, name: str) -> None:
    urls = {"DATABASE_URL": "postgresql", "RABBITMQ_URL": "rabbitmq-stream", "REDIS_URL": "redis"}
    text = f"{urls[name]}://u:hunter22@h" if name in urls else "hunter22" * 5
    text = f"x-api-key={text}" if name.endswith("_HEADERS") else text
    store = {"S3_ENDPOINT": "http://s3", "S3_BUCKET": "b", "S3_ACCESS_KEY": "a" * 8, "S3_SECRET_KEY": "s" * 8}
    others = {key: value for key, value in store.items() if name in store and key != name}
    path = tmp_path / "secret"
    path.write_text(f"{text}\n")
    from_file = settings.read({**others, f"{name}_FILE": str(path)})
    given = settings.read({**others, name: text})
    assert from_file.by_name == given.by_name
    assert from_file.secrets() == given.secrets()


def test_every_fault_of_a_file_names_its_variable_and_shows_nothing_of_the_secret(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "newline": b"\n",
        "bytes": b"\xff\n",
        "wrong": b"mysql://u:hunter2@h/d\n",
        "long": b"hunter2" * settings.SECRET_BYTES_MAX,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    environment = {
        "DATABASE_URL_FILE": f"{tmp_path}/wrong",
        "RABBITMQ_URL": "rabbitmq-stream://h",
        "RABBITMQ_URL_FILE": f"{tmp_path}/wrong",
        "REDIS_URL_FILE": f"{tmp_path}/bytes",
        "JWT_SECRET_FILE": f"{tmp_path}/nowhere",
        "API_KEY_SECRET_FILE": f"{tmp_path}/empty",
        "CURSOR_SECRET_FILE": f"{tmp_path}/newline",
        "S3_ENDPOINT": "http://s3",
        "S3_BUCKET": "b",
        "S3_ACCESS_KEY_FILE": str(tmp_path),
        "S3_SECRET_KEY_FILE": f"{tmp_path}/long",
        "HTTP_PORT": "x",
    }
    with pytest.raises(settings.ConfigError) as caught:
        settings.read(environment, required=["DATABASE_URL", "RABBITMQ_URL"])
    assert caught.value.faults == [
        "DATABASE_URL_FILE=…: expected a URL with postgresql:// or postgres://",
        "RABBITMQ_URL and RABBITMQ_URL_FILE are both set: remove one of them",
        "REDIS_URL_FILE holds bytes that are no text in UTF-8",
        "HTTP_PORT='x': expected a port from 0 to 65535",
        f"JWT_SECRET_FILE='{tmp_path}/nowhere': the file cannot be read: No such file or directory",
        f"API_KEY_SECRET_FILE='{tmp_path}/empty': the file is empty",
        f"CURSOR_SECRET_FILE='{tmp_path}/newline': the file is empty",
        f"S3_ACCESS_KEY_FILE='{tmp_path}': the file cannot be read: Is a directory",
        f"S3_SECRET_KEY_FILE='{tmp_path}/long': the file has more than 64 KiB",
    ]


def test_an_empty_variable_of_a_file_counts_as_unset() -> None:
    values = settings.read({"DATABASE_URL": "postgresql://h/d", "DATABASE_URL_FILE": ""})
    assert values.origins["DATABASE_URL"] == "environment"


def test_a_child_without_a_setting_has_no_file_of_the_setting_either() -> None:
    environment = {
        "REDIS_URL": "a",
        "REDIS_URL_FILE": "b",
        "HTTP_PORT": "1",
        "HTTP_PORT_FILE": "c",
        "PATH": "p",
    }
    assert settings.without(environment, ["REDIS_URL", "HTTP_PORT"]) == {"HTTP_PORT_FILE": "c", "PATH": "p"}


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"REDIS_URL": "redis://h?foo=bar"}, "behind the ? may stand db, password"),
        ({"REDIS_URL": "redis://h?db=x"}, "expected a number as db"),
        ({"SERVICE_NAME": "a\udcff"}, "SERVICE_NAME holds bytes that are no text in UTF-8"),
        ({"RABBITMQ_URL": "rabbitmq-stream://h:0"}, "expected a port from 1 to 65535"),
        ({"DATABASE_URL": "postgresql://h/d?foo=bar"}, "only parameters of libpq such as sslmode=require"),
    ],
)
def test_an_address_that_its_client_would_refuse_later_is_refused_at_once(
    environment: dict[str, str], fault: str
) -> None:
    with pytest.raises(settings.ConfigError) as caught:
        settings.read(environment)
    assert fault in str(caught.value)


def test_an_address_with_parameters_of_its_client_is_taken() -> None:
    environment = {
        "REDIS_URL": "rediss://:word@h:6380/2?ssl_cert_reqs=required",
        "DATABASE_URL": "postgresql://u:p%2525@h1,h2:5433/d?target_session_attrs=read-write&sslmode=require",
    }
    values = settings.read(environment)
    assert {name: values[name] for name in environment} == environment


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("FLUSH_INTERVALL", "FLUSH_INTERVAL"),
        ("FLUSHINTERVAL", "FLUSH_INTERVAL"),
        ("DEDUPE_WINDWO", "DEDUPE_WINDOW"),
        ("dedupe_window", "DEDUPE_WINDOW"),
        ("REDIS_URI", "REDIS_URL"),
        ("SPENDSTREAM_DATABASE_URL", "DATABASE_URL"),
    ],
)
def test_a_variable_that_resembles_a_setting_is_found(variable: str, meant: str) -> None:
    assert lookalikes.find({variable: "x"}) == [lookalikes.Lookalike(variable, meant)]
    assert lookalikes.find({variable: ""}) == [], "an empty variable is unset"


def test_variables_of_others_and_settings_resemble_nothing() -> None:
    others = re.findall(
        r"\w+",
        "PATH HOME LANG LC_ALL TZ PWD SHELL TERM USER HOSTNAME HTTP_PROXY HTTPS_PROXY NO_PROXY PGHOST PGPORT"
        " PGPASSWORD DATABASE_HOST DATABASE_PORT RABBITMQ_NODE_PORT RABBITMQ_SERVICE_HOST REDIS_PORT S3_HOST"
        " AWS_REGION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY KUBERNETES_SERVICE_HOST JWT_KEY API_URL"
        " PYTHONPATH SPENDSTREAM_TRACES SPENDSTREAM_OUTAGE_S OTEL_TRACES_EXPORTER"
        " OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_INSECURE LIVE EXPORT STREAM",
    )
    environment = dict.fromkeys([*others, "X" * 100_000, *(s.name for s in SETTINGS)], "x")
    assert lookalikes.find(environment) == []


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"DEDUPE_WINDOW": "24"}, "DEDUPE_WINDOW=24 is 24 s; at least 1h, at most 3650d"),
        ({"DEDUPE_WINDOW": "30m"}, "DEDUPE_WINDOW=30m is too short; at least 1h, at most 3650d"),
        ({"FLUSH_INTERVAL": "2m"}, "FLUSH_INTERVAL=2m is too long; at least 50ms, at most 1m"),
        ({"RABBITMQ_HEARTBEAT": "0"}, "RABBITMQ_HEARTBEAT=0 is 0 s; at least 1s, at most 5m"),
        ({"FRESH_LAG": "10m"}, "FRESH_LAG (10m) must be below STALE_LAG (5m)"),
    ],
)
def test_bounds_are_said_as_people_write_them(environment: dict[str, str], fault: str) -> None:
    with pytest.raises(settings.ConfigError) as caught:
        settings.read(environment)
    assert caught.value.faults == [fault]


def test_the_file_of_keys_must_be_there_for_the_api_alone() -> None:
    """The worker's host may share the environment without the file."""
    jwt = {**NEEDED, "AUTH_MODE": "jwt", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_JWKS_FILE": "/nowhere"}
    config.load(jwt)
    with pytest.raises(settings.ConfigError, match="JWT_JWKS_FILE='/nowhere': expected a file"):
        api.config.load(jwt)
    assert api.config.load({**jwt, "JWT_JWKS_FILE": __file__}).auth.tokens is not None


def test_a_value_that_is_wrong_by_itself_is_one_fault_and_not_missed_elsewhere_too() -> None:
    tokens = {"AUTH_MODE": "jwt", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_SECRET": "short"}
    store = {"S3_ENDPOINT": "ftp://s3", "S3_BUCKET": "b", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "s"}
    for environment, name in ((tokens, "JWT_SECRET"), (store, "S3_ENDPOINT")):
        with pytest.raises(settings.ConfigError) as caught:
            settings.read(environment)
        assert [fault.partition("=")[0] for fault in caught.value.faults] == [name]


def test_a_duration_is_written_as_it_is_read() -> None:
    for text in ("50ms", "1s", "90s", "5m", "1h", "36h", "1d", "400d", "3650d"):
        assert parsers.written(parsers.duration_s(text)) == text
    assert parsers.written(0) == "0s"


def test_a_heartbeat_is_whole_seconds() -> None:
    url = {"RABBITMQ_URL": NEEDED["RABBITMQ_URL"]}
    values = settings.read({**url, "RABBITMQ_HEARTBEAT": "3s"})
    assert config.stream_config(values).heartbeat_s == 3
    for wrong in ("1500ms", "0s", "10m"):
        with pytest.raises(settings.ConfigError, match="RABBITMQ_HEARTBEAT"):
            settings.read({**url, "RABBITMQ_HEARTBEAT": wrong})


def test_the_folder_for_ids_must_be_there(tmp_path: Path) -> None:
    assert config.load({**NEEDED, "DEDUPE_FOLDER": str(tmp_path)}).dedupe_folder == tmp_path
    (tmp_path / "file").touch()
    for wrong in ("relative", str(tmp_path / "none"), str(tmp_path / "file")):
        with pytest.raises(settings.ConfigError, match="DEDUPE_FOLDER"):
            config.load({**NEEDED, "DEDUPE_FOLDER": wrong})


def test_a_database_may_have_several_hosts() -> None:
    url = "postgresql://u:p@h1:5432,h2:6432/d?target_session_attrs=read-write"
    assert settings.read({"DATABASE_URL": url})["DATABASE_URL"] == url
    for wrong in ("postgresql://u:p@h1:5432,h2:x/d", "mysql://h1,h2/d"):
        with pytest.raises(settings.ConfigError):
            settings.read({"DATABASE_URL": wrong})


def test_the_worker_gets_what_the_environment_says() -> None:
    loaded = config.load(
        {**NEEDED, "DEDUPE_WINDOW": "48h", "ALLOWED_LATENESS": "500ms", "FLUSH_INTERVAL": "2s"}
    )
    assert loaded.rules.dedupe_window_us == 48 * 3_600_000_000
    assert loaded.rules.allowed_lateness_us == 500_000
    assert loaded.flush.interval_s == 2
    with pytest.raises(settings.ConfigError, match="RABBITMQ_URL"):
        config.load({"DATABASE_URL": "postgresql://h/d"})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert parsers.is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("roles", ("roles",)),
        ("realm_access.roles", ("realm_access", "roles")),
        ("https://example.com/orgs", ("https://example.com/orgs",)),
        (r"groups\.v2", ("groups.v2",)),
        (r"a\.b.c\\.d", ("a.b", "c\\", "d")),
        (r"https\://host/claims.orgs", ("https://host/claims", "orgs")),
        (r"https://example\.com/claims.orgs", ("https://example.com/claims", "orgs")),
    ],
)
def test_a_claim_is_a_path_of_names_and_is_written_as_it_is_read(text: str, path: tuple[str, ...]) -> None:
    assert parsers.claim(text) == path
    assert parsers.written_claim(path) == text


NAMES = st.lists(st.sampled_from(("a", ".", "\\", ":", "://")), min_size=1, max_size=4).map("".join)


@given(st.lists(NAMES, min_size=1, max_size=3).map(tuple))
def test_every_path_of_claims_can_be_written(path: tuple[str, ...]) -> None:
    assert parsers.claim(parsers.written_claim(path)) == path


@pytest.mark.parametrize("text", [".", "a.", ".a", "a..b", "a\\", r"a\b", "a\x00", "x" * 201, " "])
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parsers.claim(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example.com",
        "http://localhost:3000",
        "http://[::1]:3000",
        "http://127.0.0.1, https://a.b",
    ],
)
def test_origins_are_taken_as_browsers_send_them(text: str) -> None:
    assert parsers.origins(text) == tuple(text.split(", "))


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "https://*.example.com",
        "app.example.com",
        "https://app.example.com/",
        "https://App.example.com",
        "HTTPS://app.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://app.example.com:0443",
        "https://ana@app.example.com",
        "https://app.example.com?x",
        "https://exämple.com",
        "https://",
        "http://[::0:1]",
        "http://[::1",
        "file:///x",
        "http://localhost:3000 http://localhost:3001",
    ],
)
def test_what_no_browser_would_send_as_an_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected origins"):
        parsers.origins(f"https://fine.example.com,{text}")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("127.0.0.1", ("127.0.0.1",)),
        ("127.0.0.1, ::1", ("127.0.0.1", "::1")),
        ("::", ("::",)),
        ("localhost,api-1.example.com,localhost", ("localhost", "api-1.example.com")),
    ],
)
def test_a_server_may_listen_at_several_addresses(text: str, hosts: tuple[str, ...]) -> None:
    assert parsers.hosts(text) == hosts


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]", "::1,", ",", "a b", "http://h", "::x", "h/8", "*"])
def test_what_is_no_address_to_listen_at_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected addresses"):
        parsers.hosts(text)


def test_every_fault_of_who_may_ask_is_listed_with_the_others() -> None:
    environment = {
        "HTTP_HOST": "127.0.0.1,0.0.0.0,::1,::,host.example.com",
        "CORS_ORIGINS": "http://localhost:3000,https://app.example.com",
        "JWT_ROLES_CLAIM": "a..b",
        "JWT_ORGS_CLAIM": "a\\",
        "METRICS_HOST": "::1:x",
    }
    with pytest.raises(settings.ConfigError) as caught:
        settings.read(environment)
    faults = caught.value.faults
    assert [fault.partition("=")[0] for fault in faults[:3]] == [
        "METRICS_HOST",
        "JWT_ROLES_CLAIM",
        "JWT_ORGS_CLAIM",
    ]
    assert [fault.partition("not '")[2].partition("'")[0] for fault in faults[3:6]] == [
        "0.0.0.0",
        "::",
        "host.example.com",
    ]
    assert "must not name https://app.example.com" in faults[6]
    assert len(faults) == 7


def test_one_claim_cannot_have_both_roles_and_orgs() -> None:
    tokens = {"AUTH_MODE": "jwt", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_SECRET": "s" * 32}
    with pytest.raises(settings.ConfigError, match="must not be the same claim"):
        settings.read({**tokens, "JWT_ROLES_CLAIM": "scope", "JWT_ORGS_CLAIM": "scope"})


def test_a_stream_url_may_name_several_nodes_and_each_needs_a_host() -> None:
    several = "rabbitmq-stream://u:p@one,two:5553,[::1]:5554/vhost"
    assert settings.read({"RABBITMQ_URL": several})["RABBITMQ_URL"] == several
    wrong = {"RABBITMQ_URL": "rabbitmq-stream://u:p@one,:5553/vhost", "RABBITMQ_ADDRESS": "mine"}
    with pytest.raises(settings.ConfigError) as error:
        settings.read(wrong)
    assert [fault.partition("=")[0] for fault in error.value.faults] == ["RABBITMQ_URL", "RABBITMQ_ADDRESS"]
    with pytest.raises(settings.ConfigError, match="not a URL"):
        settings.read({"RABBITMQ_URL": "rabbitmq-stream://u:p@one:port,two/vhost"})
