"""deploy/compose: every name in it exists, every secret is made, and nothing is reached from other hosts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.local.ways.compose import COMPOSE_FILE
from pipeline.common import settings
from pipeline.common.settings_table import SETTINGS
from pipeline.worker.service import LAST_FLUSH_S
from sql import roles
from tests.support import deployed, image

FOLDER: Final = image.ROOT / "deploy/compose"
COMPOSE: Final = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: Final[Mapping[str, Any]] = COMPOSE["services"]
IMAGE: Final = {name: one for name, one in SERVICES.items() if "spendstream" in one["image"]}
"""The services that run our image: the processes, and `cli`, which a person runs."""
OURS: Final = {name: one for name, one in IMAGE.items() if name != "cli"}
PAGES: Final = sorted(image.ROOT.glob("docs/**/*.md"))
BYTES: Final = {"m": 2**20, "g": 2**30}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "made"
    subprocess.run(("sh", str(FOLDER / "secrets.sh"), str(folder)), check=True)
    return folder


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a service where nobody has set a variable of the file's own."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for name, value in service["environment"].items()
    }


def named(secret: str | Mapping[str, str]) -> str:
    return secret if isinstance(secret, str) else secret["source"]


def test_every_process_is_there_under_its_own_command() -> None:
    assert {deployed.command(service["command"]) for service in OURS.values()} == deployed.PROCESSES.keys()
    assert {name: service["command"][0] for name, service in OURS.items()} == {name: name for name in OURS}


@pytest.mark.parametrize("name", IMAGE)
def test_every_variable_is_a_setting_and_all_together_are_a_configuration(name: str, secrets: Path) -> None:
    service = IMAGE[name]
    given = environment(service)
    assert given.keys() <= deployed.NAMES, given.keys() - deployed.NAMES
    inside = {key: value.replace("/run/secrets", str(secrets)) for key, value in given.items()}
    for key in {"DEDUPE_FOLDER", "COLLECTOR_SPOOL"} & inside.keys():
        inside[key] = str(secrets)
    for process in (name,) if name in OURS else ("worker", "api"):
        deployed.PROCESSES[process].load(inside)


def test_the_service_for_commands_has_the_owners_login_and_every_secret_and_is_not_started_by_up() -> None:
    """A secret that no process of ours reads as a setting is a server's own, and no command needs it."""
    assert SERVICES["cli"]["profiles"] == ["cli"]
    given = environment(SERVICES["cli"])
    files = {name for one in OURS.values() for name in environment(one) if name.endswith("_FILE")}
    assert {name for name in given if name.endswith("_FILE")} == files
    assert given["DATABASE_URL_FILE"] == environment(SERVICES["migrate"])["DATABASE_URL_FILE"]
    for name in files - {"DATABASE_URL_FILE"}:
        assert {environment(one).get(name, given[name]) for one in OURS.values()} == {given[name]}, name
    assert {"S3_ENDPOINT", "S3_BUCKET", "ARCHIVE_URL"} <= given.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(image.ROOT)))
def test_no_page_mounts_the_folder_of_secrets(page: Path) -> None:
    """The folder has mode 0700, and the image's user is another one, so it could read nothing."""
    for source in re.findall(r"(?:-v|--volume)[ =](\S+?):", page.read_text()):
        assert not source.rstrip("/").endswith("secrets"), f"mount the file, and not {source}"


def test_each_block_of_the_page_that_builds_gives_the_digest_and_checks_the_file() -> None:
    text = (image.ROOT / "docs/howto/compose.md").read_text()
    building = [
        block
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        if "yaml build" in block
    ]
    assert len(building) == 2, "the start and the upgrade"
    for block in building:
        order = [block.index(word) for word in ("secrets.sh", "BASE_DIGEST=", "config -q", "build", "up -d")]
        assert order == sorted(order)


def test_the_table_of_the_page_has_every_port_and_the_name_that_the_broker_tells_its_clients() -> None:
    text = (image.ROOT / "docs/howto/compose.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    listed = {port for row in rows for port in row.split(", ")}
    published = {one.rpartition(":")[2] for each in SERVICES.values() for one in each.get("ports", ())}
    assert listed == published
    (told,) = re.findall(r"stream\.advertised_host = (\S+)", COMPOSE["configs"]["rabbitmq_conf"]["content"])
    assert told in SERVICES, "containers resolve the name"
    assert f"127.0.0.1 {told}" in text, "the host does not"


@pytest.mark.parametrize("name", IMAGE)
def test_a_secret_is_always_a_file_and_a_file_is_always_handed_over(name: str) -> None:
    given = environment(IMAGE[name])
    assert not given.keys() & {setting.name for setting in SETTINGS if setting.secret}
    wanted = {value.removeprefix("/run/secrets/") for key, value in given.items() if key.endswith("_FILE")}
    assert wanted == {named(secret) for secret in IMAGE[name]["secrets"]}


def test_every_secret_is_made_and_every_made_secret_has_one_line_or_a_format_of_its_own(
    secrets: Path,
) -> None:
    declared = COMPOSE["secrets"]
    assert {one["file"] for one in declared.values()} == {f"./secrets/{name}" for name in declared}
    used = {named(secret) for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert used == declared.keys()
    made = {path.name for path in secrets.iterdir()}
    assert declared.keys() <= made
    assert made - declared.keys() == {"rabbitmq_password"}, "made, and handed over within other files"
    for path in secrets.iterdir():
        assert path.stat().st_mode & 0o777 == 0o444, path
        text = path.read_text()
        assert text.endswith("\n")
        if path.name not in ("rabbitmq_user", "redis_conf", "s3_identities"):
            assert text.count("\n") == 1, path
            assert len(text) > 40, path
    assert secrets.stat().st_mode & 0o777 == 0o700
    words = [path.read_text() for path in secrets.iterdir()]
    assert len({*words}) == len(words), "two secrets are the same"


def test_secrets_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "database_api_password").write_text("mine\n")
    subprocess.run(("sh", str(FOLDER / "secrets.sh"), str(tmp_path)), check=True)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "spendstream_api:mine@" in first["database_api_url"]
    subprocess.run(("sh", str(FOLDER / "secrets.sh"), str(tmp_path)), check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first


def test_secrets_are_not_in_the_history_and_not_in_the_image() -> None:
    assert "deploy/compose/secrets/" in (image.ROOT / ".gitignore").read_text().splitlines()
    assert not [path for path in image.context() if path.parts[0] == "deploy"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_bounds_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    once = name in ("migrate", "buckets", "cli")
    restart = {"migrate": "on-failure", "buckets": "on-failure", "cli": "no"}.get(name, "unless-stopped")
    assert service["restart"] == restart
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert once or service["healthcheck"]["test"][0].startswith("CMD")
    for published in service.get("ports", ()):
        host, _, inside = published.rpartition(":")
        assert host == f"127.0.0.1:{inside}", published


@pytest.mark.parametrize("name", IMAGE)
def test_our_processes_have_no_right_to_write_and_no_privilege(name: str) -> None:
    service = IMAGE[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "user" not in service, "the image's user, who is not root"
    stages = image.read()
    folders = re.findall(r"/var/lib/spendstream/\w+", " ".join(step.text for step in stages["base"].steps))
    for volume in service.get("volumes", ()):
        assert volume.partition(":")[2] in folders, "a new volume has the owner of the image's folder"


@pytest.mark.parametrize("name", [name for name in OURS if deployed.PROCESSES[name].port])
def test_every_check_of_health_asks_a_route_that_exists(name: str) -> None:
    service = OURS[name]
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", " ".join(service["healthcheck"]["test"]))
    assert int(url[0]) == deployed.port(name)
    assert url[1] in deployed.routes(name)
    assert url[1].endswith("/readyz")
    assert f"127.0.0.1:{url[0]}:{url[0]}" in service["ports"]
    assert service["environment"][deployed.PROCESSES[name].host] == "0.0.0.0"


def test_a_worker_has_time_for_its_last_flush() -> None:
    assert int(OURS["worker"]["stop_grace_period"].removesuffix("s")) > LAST_FLUSH_S + 10


def test_what_is_waited_for_has_a_check_of_health_or_ends() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], (name, other)
            else:
                assert wanted["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] == "on-failure"


def test_the_roles_of_a_new_database_are_those_that_migrate_grants_rights_to() -> None:
    text = (FOLDER / "roles.sql").read_text()
    groups = set(re.findall(r"CREATE ROLE (\w+) NOLOGIN", text))
    assert groups == {roles.READER, *roles.WRITERS, roles.COLLECTOR, roles.ALERTER, roles.BI}
    logins = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD :'\w+' IN ROLE (\w+)", text))
    assert logins == {
        "spendstream_api": roles.READER,
        "spendstream_collector_login": roles.COLLECTOR,
        "spendstream_alerts_login": roles.ALERTER,
        "spendstream_grafana": roles.BI,
    }
    read = set(re.findall(r"\$SECRETS/(\w+)", text))
    handed_over = {named(secret) for secret in SERVICES["postgres"]["secrets"]}
    assert read | {"postgres_password"} == handed_over


def test_the_servers_are_those_of_the_local_stack() -> None:
    local = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    for name in ("rabbitmq", "postgres", "redis", "s3"):
        assert SERVICES[name]["image"] == local[name]["image"]


def test_memory_limits_are_above_what_the_settings_let_a_process_hold() -> None:
    values = settings.read({})

    def limit(name: str) -> int:
        text = OURS[name]["mem_limit"]
        return int(text[:-1]) * BYTES[text[-1]]

    # deploy/CAPACITY.md: 200 MiB for the worker itself, 205 MiB for the collector.
    assert limit("worker") > 200 * 2**20 + 4 * values["BUFFER_BYTES_MAX"]
    assert limit("collector") > 205 * 2**20 + 2 * values["COLLECTOR_MEMORY_MAX"]


def test_prometheus_scrapes_every_process_that_has_metrics_and_the_broker() -> None:
    scrapes = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = {one["job_name"]: one["static_configs"][0]["targets"] for one in scrapes}
    with_port = [name for name, process in deployed.PROCESSES.items() if process.port]
    wanted = {f"spendstream-{name}": [f"{name}:{deployed.port(name)}"] for name in with_port}
    assert {job: where for job, where in targets.items() if job.startswith("spendstream")} == wanted
    assert targets["rabbitmq"] == ["rabbitmq:15692"]
    assert all("/metrics" in deployed.routes(name) for name in with_port)
    theirs = yaml.safe_load((image.ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert wanted.keys() == {one["job_name"] for one in theirs}, "rules and dashboards know the jobs by name"


def test_every_file_that_is_mounted_from_here_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            outside, inside, *options = volume.split(":")
            if not outside.startswith("."):
                assert outside in COMPOSE["volumes"], (name, outside)
                continue
            assert options == ["ro"], (name, inside)
            path = (FOLDER / outside).resolve()
            assert path.exists(), path


def test_grafana_has_what_its_data_sources_and_dashboards_need() -> None:
    provisioning = image.ROOT / "deploy/grafana/provisioning"
    service = SERVICES["grafana"]
    given = set(service["environment"]) | set(re.findall(r"(SPENDSTREAM_\w+)=", service["command"][0]))
    places = {volume.split(":")[1] for volume in service["volumes"]}
    assert {"SPENDSTREAM_DATABASE_USER", "SPENDSTREAM_DATABASE_PASSWORD"} <= given
    paths = sorted(provisioning.rglob("*.yaml"))
    assert len(paths) == 2
    for path in paths:
        text = path.read_text()
        assert set(re.findall(r"\$(SPENDSTREAM_\w+)", text)) <= given, path
        for provider in yaml.safe_load(text).get("providers", ()):
            assert provider["options"]["path"] in places
