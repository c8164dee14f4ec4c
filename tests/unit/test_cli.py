"""The commands as a shell sees them: output, exit codes, masks."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.commands.environment import masked
from pipeline.common.keys import ROLES
from pipeline.common.settings_table import SETTINGS
from tests.support import traces

DATABASE_URL = next(setting for setting in SETTINGS if setting.name == "DATABASE_URL")
S3_SECRET_KEY = next(setting for setting in SETTINGS if setting.name == "S3_SECRET_KEY")
HTTP_HOST = next(setting for setting in SETTINGS if setting.name == "HTTP_HOST")
CLEAN = {setting.name: None for setting in SETTINGS}


def invoke(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, env={**CLEAN, **environment}, prog_name="spendstream")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# --- help, version ----------------------------------------------------------------------------------


def test_every_command_and_option_has_a_help_text() -> None:
    exit_code, output, _ = invoke("--help")
    assert exit_code == 0
    for name in main.commands:
        assert name in output
        assert main.commands[name].help, name
        for parameter in main.commands[name].params:
            assert getattr(parameter, "help", "an argument"), (name, parameter.name)
        assert invoke(name, "--help")[0] == 0


def test_the_help_of_keys_names_every_role_of_a_key() -> None:
    _, output, _ = invoke("keys", "create", "--help")
    for role in ROLES:
        assert role in output
    exit_code, _, errors = invoke("keys", "create", "--org", str(UUID(int=1)), "--role", "admin")
    assert exit_code == 2
    assert "analytics:events:write" in errors


def test_version() -> None:
    exit_code, output, _ = invoke("version")
    assert exit_code == 0
    assert output.startswith("spendstream ")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert invoke("nonsense")[0] == 2


# --- config -------------------------------------------------------------------------------------------


def test_config_shows_every_setting_with_origin_and_help() -> None:
    exit_code, output, _ = invoke("config", HTTP_PORT="9000")
    assert exit_code == 0
    assert "HTTP_PORT=9000  [environment]" in output
    assert "HTTP_HOST=127.0.0.1  [default]" in output
    assert "REDIS_URL=(not set)  [default]" in output
    for setting in SETTINGS:
        assert f"{setting.name}=" in output
        assert setting.help in output


def test_config_warns_of_a_variable_that_resembles_a_setting() -> None:
    exit_code, output, errors = invoke("config", FLUSH_INTERVALL="100ms", OTHERS_FLUSH_INTERVAL="x")
    assert exit_code == 0
    assert "FLUSH_INTERVAL=1s  [default]" in output
    assert [line for line in errors.splitlines() if "FLUSH" in line] == [
        "warning: FLUSH_INTERVALL is not a setting and changes nothing: did you mean FLUSH_INTERVAL?"
    ]


def test_config_as_json() -> None:
    exit_code, output, _ = invoke("config", "--json", DATABASE_URL="postgresql://u:geheim@h/d")
    assert exit_code == 0
    shown = json.loads(output)
    assert set(shown) == set(CLEAN)
    assert shown["DATABASE_URL"]["value"] == "postgresql://u:***@h/d"
    assert shown["DATABASE_URL"]["origin"] == "environment"
    assert shown["S3_BUCKET"]["value"] is None


def test_config_shows_that_a_secret_is_in_a_file_and_masks_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "database_url"
    path.write_text("postgresql://u:geheim@h/d\n")
    exit_code, output, _ = invoke("config", DATABASE_URL_FILE=str(path))
    assert exit_code == 0
    assert "DATABASE_URL=postgresql://u:***@h/d  [file]" in output
    assert "geheim" not in output


def test_bad_configuration_lists_every_fault_and_exits_2() -> None:
    exit_code, output, errors = invoke("config", HTTP_PORT="x", FLUSH_INTERVAL="soon", AUTH_MODE="open")
    assert exit_code == 2
    assert output == ""
    assert len(errors.splitlines()) == 3
    assert all(name in errors for name in ("HTTP_PORT", "FLUSH_INTERVAL", "AUTH_MODE"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:secret@h:5432/d?sslmode=require", "postgresql://u:***@h:5432/d?sslmode=require"),
        ("postgresql://u:s@c@r/et@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=secret&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://h/d?sslkey=/k&sslpassword=secret", "postgresql://h/d?sslkey=***&sslpassword=***"),
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://token@h:6379/0", "redis://***@h:6379/0"),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql"),
        ("embedded:///var/stream", "embedded:///var/stream"),
        (None, None),
    ],
)
def test_credentials_in_urls_are_masked(text: str | None, shown: str | None) -> None:
    assert masked(DATABASE_URL, text) == shown


def test_secrets_are_masked_whole_and_the_rest_is_not() -> None:
    assert masked(S3_SECRET_KEY, "hunter2") == "***"
    assert masked(HTTP_HOST, "127.0.0.1") == "127.0.0.1"


# --- simulate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--rate", "-1"],
        ["--orgs", "0"],
        ["--models", "0"],
        ["--duration", "soon"],
        ["--duration", "0"],
        ["--bad", "1.1"],
        ["--duplicates", "0.7", "--bad", "0.7"],
        ["--seed", "-1"],
        ["--shape", "round"],
    ],
)
def test_wrong_options_of_simulate(tmp_path: Path, arguments: list[str]) -> None:
    exit_code, _, errors = invoke("simulate", *arguments, RABBITMQ_URL=f"embedded://{tmp_path}")
    assert exit_code == 2
    assert errors.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("command", [["simulate"], ["replay-trace", __file__]])
def test_a_missing_stream_url_is_a_configuration_fault(command: list[str]) -> None:
    exit_code, _, errors = invoke(*command)
    assert exit_code == 2
    assert errors.startswith("configuration: RABBITMQ_URL is not set")


def test_a_stream_url_without_a_folder_is_wrong_usage() -> None:
    exit_code, _, errors = invoke("simulate", RABBITMQ_URL="embedded://relative")
    assert exit_code == 2
    assert "embedded:///absolute/folder" in errors


# --- replay-trace -------------------------------------------------------------------------------------


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(traces.MINUTE, newline="")
    return path


def test_a_bad_row_is_one_line_and_exit_1(trace_file: Path, tmp_path: Path) -> None:
    trace_file.write_text(traces.MINUTE.replace("180,18", "180,many"), newline="")
    exit_code, _, errors = invoke("replay-trace", str(trace_file), RABBITMQ_URL=f"embedded://{tmp_path}")
    assert exit_code == 1
    assert "trace.csv, line 20: GeneratedTokens must be a whole number" in errors
    assert len(errors.splitlines()) == 1


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    exit_code, _, errors = invoke(
        "replay-trace", str(tmp_path / "no.csv"), RABBITMQ_URL=f"embedded://{tmp_path}"
    )
    assert exit_code == 2
    assert "no.csv" in errors


# --- api ----------------------------------------------------------------------------------------------


def test_api_becomes_the_api_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    assert invoke("api")[0] == 0
    ((path, argv, environment),) = calls
    assert path == sys.executable
    assert argv == [sys.executable, "-P", "-m", "api"]
    assert Path(environment["PYTHONPATH"].split(os.pathsep)[0]).joinpath("api").is_dir()


def test_the_published_ids_are_printed() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/ids.md").read_text()
    rows = re.findall(r"^\| (org|model|event) \| `(.*)` \| `([0-9a-f-]{36})` \|$", page, re.MULTILINE)
    assert {kind for kind, _, _ in rows} == {"org", "model", "event"}
    for kind, made_of, expected in rows:
        words = made_of.split("/", 2) if kind == "event" else [made_of]
        assert CliRunner().invoke(main, ["id", kind, *words]).stdout == f"{expected}\n", made_of
    assert CliRunner().invoke(main, ["id", "model", "llama3"]).exit_code == 2


@pytest.mark.parametrize("command", [["keys", "create", "--role", "x"], ["names", "list"], ["reconcile"]])
def test_the_name_of_an_org_in_place_of_its_uuid_is_answered_with_the_uuid(command: list[str]) -> None:
    said = CliRunner().invoke(main, [*command, "--org", "acme"])
    assert said.exit_code == 2
    assert "'acme' is not a UUID" in said.stderr
    assert "ce7e0997-6aac-5b75-91f5-029053806719" in said.stderr.replace("\n", " ")
