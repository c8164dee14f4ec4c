"""docs/howto/kubernetes.md: its overlay with every addition renders, and its commands name what is there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from pipeline.common import settings
from tests.support import image, manifests
from tests.support.manifests import OVERLAYS, SECRETS, Object, files, process

PAGE: Final = image.ROOT / "docs/howto/kubernetes.md"


def blocks(language: str) -> list[str]:
    """The blocks of the page on Kubernetes in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Object, ...]:
    """The objects of the page's own overlay, with every addition that the page shows."""
    folder = tmp_path_factory.mktemp("mine")
    own: dict[str, Any] = {}
    for text in blocks("yaml"):
        block = yaml.safe_load(text.partition("\n---\n")[0])
        if block.get("kind", "Kustomization") == "Kustomization":
            for key, value in block.items():
                own[key] = [*own.get(key, []), *value] if isinstance(value, list) else value
        elif (name := re.match(r"# deploy/kubernetes/overlays/mine/(\S+)\n", text)) is not None:
            (folder / name[1]).write_text(text)
    for key in ("resources", "components"):
        for number, path in enumerate(own[key]):
            if path.startswith("../"):
                there = (manifests.FOLDER / "overlays/mine" / path).resolve()
                assert there.exists(), path
                own[key][number] = os.path.relpath(there, folder)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return manifests.render(folder)


def test_what_the_page_writes_renders_and_fits_the_schemas(mine: tuple[Object, ...]) -> None:
    for one in mine:
        manifests.check(one)
    for one in mine:
        if one["kind"] in ("ServiceMonitor", "PrometheusRule"):
            assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_ingress_of_the_page_leads_to_services_and_ports_that_are_there(mine: tuple[Object, ...]) -> None:
    (ingress,) = (one for one in mine if one["kind"] == "Ingress")
    services = {
        one["metadata"]["name"]: {port["name"] for port in one["spec"]["ports"]}
        for one in mine
        if one["kind"] == "Service"
    }
    reached = set()
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            assert service["port"]["name"] in services[service["name"]]
            reached.add(service["name"])
    assert reached == {"spendstream-api", "spendstream-collector"}
    size = int(
        ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m")
    )
    assert size * 2**20 >= settings.read({})["COLLECTOR_BODY_BYTES_MAX"]


def test_the_component_redis_gives_its_url_to_whom_it_lets_out(mine: tuple[Object, ...]) -> None:
    """And the page makes the secret."""
    (policy,) = (
        one
        for one in mine
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "spendstream-redis"
    )
    (let_out,) = policy["spec"]["podSelector"]["matchExpressions"]
    having = set()
    for one in mine:
        if one["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob"):
            inner = one["spec"].get("jobTemplate", one)["spec"]["template"]["spec"]
            variables = {variable["name"]: variable["value"] for variable in inner["containers"][0]["env"]}
            if variables.get("REDIS_URL_FILE") == f"{SECRETS}redis_url":
                assert "spendstream-redis" in json.dumps(inner["volumes"])
                having.add(process(one))
    assert having == {*let_out["values"]} == {"worker", "api", "collector", "cli"}
    assert dict(_secrets_of(PAGE.read_text()))["spendstream-redis"] == {"REDIS_URL"}


def test_the_logins_of_a_database_elsewhere_are_in_the_roles_of_their_processes() -> None:
    (text,) = (block for block in blocks("sql") if "IN ROLE" in block)
    logins = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD '…' IN ROLE (\w+);", text))
    declared = manifests.found("production", "Cluster", "spendstream-db")["spec"]["managed"]["roles"]
    assert logins == {role["name"]: role["inRoles"][0] for role in declared if role["login"]}


def test_every_file_and_object_that_a_command_of_the_page_names_is_there() -> None:
    """Of kubectl: `cronjob/…`, `job/…` and so on; `cli` is the Job that the page makes of the CronJob."""
    there = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in manifests.rendered("production")}
    text = "\n".join(blocks("sh"))
    named = set(re.findall(r"\b(cronjob|service|statefulset|deployment|rabbitmqcluster|job)/([\w-]+)", text))
    assert {("cronjob", "spendstream-cli"), ("rabbitmqcluster", "spendstream-mq"), ("job", "cli")} <= named
    made = set(re.findall(r"create job ([\w-]+) --from", text))
    for kind, name in named - {("job", name) for name in made}:
        assert f"{kind}/{name}" in there, name
    order = [
        text.index(word)
        for word in ("kubectl apply -k", "get secret spendstream-mq-default-user", "keys create")
    ]
    assert order == sorted(order), "the broker's user is there only after the first apply"


def test_every_secret_that_a_pod_reads_is_made_by_the_page() -> None:
    made = dict(_secrets_of(PAGE.read_text()))
    for overlay in OVERLAYS:
        for workload in manifests.pods(overlay):
            for secret, key in files(workload).values():
                if secret == "spendstream-db-app":  # the operator's own
                    assert key == "uri"
                    continue
                assert key in made[secret], (secret, key)
    declared = manifests.found("production", "Cluster", "spendstream-db")["spec"]["managed"]["roles"]
    for role in declared:
        if role["login"]:
            assert made[role["passwordSecret"]["name"]] == {"username", "password"}


def _secrets_of(text: str) -> Iterator[tuple[str, set[str]]]:
    """The secrets that the page's `kubectl create secret` lines make, with their keys."""
    joined = text.replace("\\\n", " ")
    for name, rest in re.findall(r"kubectl -n spendstream create secret generic ([\w-]+)([^\n]*)", joined):
        yield name, set(re.findall(r"--from-(?:literal|file)=(\w+)=", rest))
