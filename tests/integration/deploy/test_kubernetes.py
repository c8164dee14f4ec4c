"""deploy/kubernetes: both overlays fit the strict schemas, and what they name is in the code."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import pytest
import yaml
from prometheus_client import generate_latest

from api.__main__ import _SHUTDOWN_TIMEOUT_S
from pipeline import metrics
from pipeline.collector.service import STOP_S as COLLECTOR_STOP_S
from pipeline.common import settings
from pipeline.common.settings_table import SETTINGS
from pipeline.worker.service import LAST_FLUSH_S
from sql import roles
from tests.support import deployed, image, manifests, prometheus_rule
from tests.support.manifests import OVERLAYS, SECRETS, Object, files, process

WATCH: Final = Path(__file__).resolve().parents[3] / "docs/howto/watch.md"
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def pod(workload: Object) -> Any:
    return workload["spec"]["template"]["spec"]


def variables(overlay: str, workload: Object) -> dict[str, str]:
    """All that the environment of a pod has from ConfigMaps and from itself."""
    one = manifests.container(workload)
    found: dict[str, str] = {}
    for source in one["envFrom"]:
        found |= manifests.found(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {variable["name"]: variable["value"] for variable in one["env"]}


# --- schemas ------------------------------------------------------------------------------------------


@overlays
def test_every_object_fits_its_schema_and_has_no_field_that_the_schema_has_not(overlay: str) -> None:
    objects = manifests.rendered(overlay)
    assert len(objects) > 20
    for one in objects:
        manifests.check(one)


@pytest.mark.parametrize("overlay", ["production"])
def test_a_field_that_is_misspelled_anywhere_is_a_failure(overlay: str) -> None:
    """For every object: a field that is not in the schema, in the spec and one level further down."""
    for one in manifests.rendered(overlay):
        body = "spec" if "spec" in one else "data" if "data" in one else None
        if body in (None, "data"):
            continue
        places = [(body,), *((body, name) for name, value in one[body].items() if _is_struct(name, value))]
        for place in places:
            wrong = copy.deepcopy(dict(one))
            inner: Any = wrong
            for name in place:
                inner = inner[name]
            inner["replicaz"] = 3
            with pytest.raises(manifests.Misfit):
                manifests.check(wrong)


def _is_struct(name: str, value: object) -> bool:
    return isinstance(value, Mapping) and name not in ("matchLabels", "selector", "parameters", "definition")


# --- what a pod may -------------------------------------------------------------------------------------


@overlays
def test_our_pods_are_restricted(overlay: str) -> None:
    found = {process(workload) for workload in manifests.workloads(overlay)}
    assert found == deployed.PROCESSES.keys()
    user, _, group = image.read()["spendstream"].user.partition(":")
    for workload in manifests.pods(overlay):
        inside, one = pod(workload), manifests.container(workload)
        security = inside["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
            int(user),
            int(group),
            int(group),
        )
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert inside["automountServiceAccountToken"] is False
        assert "initContainers" not in inside
        assert not {"hostNetwork", "hostPID", "hostIPC"} & inside.keys()
        assert {"cpu", "memory"} == one["resources"]["requests"].keys()
        assert one["resources"]["limits"].keys() == {"memory"}, "a CPU limit would only slow a flush"
        assert one["image"] == f"registry.example.com/spendstream:{image.version()}"
        for volume in inside["volumes"]:
            assert not volume.keys() & {"hostPath", "nfs"}


@overlays
def test_accounts_exist_and_only_migrate_worker_and_cli_have_the_owners_credentials(overlay: str) -> None:
    accounts = {
        one["metadata"]["name"] for one in manifests.rendered(overlay) if one["kind"] == "ServiceAccount"
    }
    for workload in manifests.pods(overlay):
        name = process(workload)
        assert pod(workload)["serviceAccountName"] in accounts
        assert (pod(workload)["serviceAccountName"] == "spendstream-migrate") is (name in ("migrate", "cli"))
        secret, _ = files(workload)["database_url"]
        owner = secret in ("spendstream-owner", "spendstream-db-app")
        assert owner is (name in ("migrate", "worker", "cli")), (name, secret)
        store = any(secret == "spendstream-object-store" for secret, _ in files(workload).values())
        assert store is (name in ("worker", "api", "exporter", "cli"))


# --- commands and settings ------------------------------------------------------------------------------


@overlays
def test_every_command_exists_and_every_variable_is_a_setting(overlay: str, tmp_path: Path) -> None:
    texts = {
        "database_url": "postgresql://u:p@h/d",
        "rabbitmq_url": "rabbitmq-stream://u:p@h",
        "api_key_secret": "k" * 40,
        "cursor_secret": "c" * 40,
        "webhook_key": "w" * 40,
        "s3_access_key": "a" * 20,
        "s3_secret_key": "s" * 20,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n")
    for workload in manifests.pods(overlay):
        name = process(workload)
        if name == "cli":
            assert manifests.container(workload)["command"][0] == "sleep"
        else:
            assert deployed.command(manifests.container(workload)["args"]) == name
        given = variables(overlay, workload)
        assert given.keys() <= deployed.NAMES, given.keys() - deployed.NAMES
        assert not given.keys() & {one.name for one in SETTINGS if one.secret}, "a secret is a file"
        read = {value.removeprefix(SECRETS) for key, value in given.items() if key.endswith("_FILE")}
        assert read == files(workload).keys()
        inside = {key: value.replace(SECRETS, f"{tmp_path}/") for key, value in given.items()}
        inside |= {key: str(tmp_path) for key in ("DEDUPE_FOLDER", "COLLECTOR_SPOOL") if key in inside}
        for loaded in ("worker", "api") if name == "cli" else (name,):
            deployed.PROCESSES[loaded].load(inside)
        for folder in ("DEDUPE_FOLDER", "COLLECTOR_SPOOL"):
            mounts = [mount["mountPath"] for mount in manifests.container(workload)["volumeMounts"]]
            assert folder not in given or any(
                PurePath(given[folder]).is_relative_to(mount) for mount in mounts
            )


@overlays
def test_a_spool_fits_its_volume(overlay: str) -> None:
    workload = manifests.found(overlay, "StatefulSet", "spendstream-collector")
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    bound = settings.read(
        {"COLLECTOR_SPOOL_BYTES_MAX": variables(overlay, workload)["COLLECTOR_SPOOL_BYTES_MAX"]}
    )
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30
    assert bound["COLLECTOR_SPOOL_BYTES_MAX"] < size * 0.95
    assert workload["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"


# --- ports and probes -----------------------------------------------------------------------------------


@overlays
def test_every_probe_asks_a_route_on_the_port_of_its_process(overlay: str) -> None:
    for workload in manifests.workloads(overlay):
        name, one = process(workload), manifests.container(workload)
        ports = {port["name"]: port["containerPort"] for port in one.get("ports", ())}
        assert list(ports.values()) == [port for port in [deployed.port(name)] if port]
        assert set(ports.values()) <= {*image.read()["spendstream"].ports}
        probes = {kind: one[kind]["httpGet"] for kind in one if kind.endswith("Probe")}
        if not ports:
            assert not probes
            continue
        assert probes.keys() == {"startupProbe", "readinessProbe", "livenessProbe"}
        for kind, asked in probes.items():
            assert asked["port"] in ports, (name, kind)
            assert asked["path"] in deployed.routes(name), (name, kind)
        assert probes["readinessProbe"]["path"].endswith("/readyz")
        assert probes["livenessProbe"]["path"].endswith("/healthz"), (
            "what a restart cannot mend restarts nothing"
        )


@overlays
def test_every_process_has_time_to_end(overlay: str) -> None:
    """Above what the process itself may take: 25 s of a last flush, 10 s of requests in work."""
    needs = {"worker": LAST_FLUSH_S, "api": _SHUTDOWN_TIMEOUT_S, "collector": COLLECTOR_STOP_S}
    for workload in manifests.workloads(overlay):
        if (name := process(workload)) not in needs:
            continue
        program, waits = manifests.container(workload)["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        assert pod(workload)["terminationGracePeriodSeconds"] >= int(waits) + needs[name] + 10


@overlays
def test_services_budgets_and_scalers_choose_what_exists(overlay: str) -> None:
    pods = {
        process(one): one["spec"]["template"]["metadata"]["labels"] for one in manifests.workloads(overlay)
    }

    def chosen(labels: Mapping[str, str]) -> set[str]:
        return {name for name, of_pod in pods.items() if labels.items() <= of_pod.items()}

    budgets, scaled, services = set(), set(), {}
    for one in manifests.rendered(overlay):
        match one["kind"]:
            case "Service":
                (name,) = chosen(one["spec"]["selector"])
                workload = next(w for w in manifests.workloads(overlay) if process(w) == name)
                names = {port["name"] for port in manifests.container(workload)["ports"]}
                assert {port["targetPort"] for port in one["spec"]["ports"]} <= names
                assert [port["port"] for port in one["spec"]["ports"]] == [deployed.port(name)]
                services[one["metadata"]["name"]] = name
            case "PodDisruptionBudget":
                budgets |= chosen(one["spec"]["selector"]["matchLabels"])
                assert one["spec"]["maxUnavailable"] == 1
            case "HorizontalPodAutoscaler":
                target = one["spec"]["scaleTargetRef"]
                workload = manifests.found(overlay, target["kind"], target["name"])
                assert workload["apiVersion"] == target["apiVersion"]
                assert "replicas" not in workload["spec"], "an apply would set the number back"
                scaled.add(process(workload))
    assert budgets == {"worker", "api", "collector"}
    assert scaled == {"api", "collector"}
    for workload in manifests.workloads(overlay):
        if workload["kind"] == "StatefulSet":
            assert services[workload["spec"]["serviceName"]] == process(workload)
            assert workload["spec"]["selector"]["matchLabels"].items() <= pods[process(workload)].items()


@overlays
def test_a_policy_opens_only_ports_that_a_process_has_or_needs(overlay: str) -> None:
    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in manifests.rendered(overlay)
        if one["kind"] == "NetworkPolicy"
    }
    nothing = policies["spendstream-nothing"]
    assert nothing["policyTypes"] == ["Ingress", "Egress"]
    assert not nothing.keys() & {"ingress", "egress"}
    needs = {
        "migrate": {5432},
        "cli": {5432, 5551, 5552, 443},
        "worker": {5432, 5551, 5552, 443},
        "api": {5432, 443},
        "exporter": {5432, 443},
        "alerts": {5432, 443},
        "collector": {5432, 5551, 5552, 443},
    }
    for workload in manifests.pods(overlay):
        name = process(workload)
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert nothing["podSelector"]["matchLabels"].items() <= labels.items()
        policy = policies[f"spendstream-{name}"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == needs[name]
        opened = {port["port"] for rule in policy.get("ingress", ()) for port in rule["ports"]}
        assert opened == {port["name"] for port in manifests.container(workload).get("ports", ())}
        if overlay == "production":
            inside = [rule for rule in policy["egress"] if {p["port"] for p in rule["ports"]} - {443}]
            assert all(rule.get("to") for rule in inside), "broker and database are pods of this namespace"


def test_who_needs_a_server_of_this_cluster_is_let_in_there() -> None:
    """The servers' policies let in whom a policy of ours lets out, and Grafana to the database."""
    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in manifests.rendered("production")
        if one["kind"] == "NetworkPolicy"
    }
    for server, port in (("spendstream-db", 5432), ("spendstream-mq", 5552)):
        sources = [
            source
            for rule in policies[server]["ingress"]
            for source in rule["from"]
            if {"protocol": "TCP", "port": port} in rule.get("ports", ())
        ]
        (ours,) = (
            one["podSelector"]["matchExpressions"][0]["values"]
            for one in sources
            if "matchExpressions" in one.get("podSelector", {})
        )
        out = {
            process(one)
            for one in manifests.pods("production")
            for rule in policies[f"spendstream-{process(one)}"]["egress"]
            if port in {opened["port"] for opened in rule["ports"]}
        }
        assert out == {*ours}, server
        if server == "spendstream-db":
            labels = [one.get("podSelector", {}).get("matchLabels", {}) for one in sources]
            assert {"app.kubernetes.io/name": "grafana"} in labels


# --- commands and dashboards ----------------------------------------------------------------------------


@overlays
def test_the_pod_for_commands_has_every_secret_of_the_processes_and_never_runs_by_itself(
    overlay: str,
) -> None:
    spec = manifests.found(overlay, "CronJob", "spendstream-cli")["spec"]
    assert spec["suspend"] is True
    program, seconds = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (program, int(seconds)) == ("sleep", spec["jobTemplate"]["spec"]["activeDeadlineSeconds"])
    *workloads, cli = manifests.pods(overlay)
    wanted = {path for workload in workloads for path in files(workload)}
    assert files(cli).keys() == wanted
    migrate = next(one for one in workloads if process(one) == "migrate")
    assert files(cli)["database_url"] == files(migrate)["database_url"]
    for secret in wanted - {"database_url"}:
        assert {files(one).get(secret, files(cli)[secret]) for one in workloads} == {files(cli)[secret]}


def test_the_dashboards_are_config_maps_that_grafana_looks_for() -> None:
    files_of_grafana = {
        path.name: path.read_text() for path in (image.ROOT / "deploy/grafana/dashboards").iterdir()
    }
    found: dict[str, str] = {}
    for one in manifests.rendered("production"):
        if one["kind"] == "ConfigMap" and one["metadata"].get("labels", {}).get("grafana_dashboard") == "1":
            found |= one["data"]
            # `kubectl apply` writes the object once more into an annotation, which may have 256 KiB.
            assert len(json.dumps(one)) < 200_000
    assert found == files_of_grafana


# --- scale, servers, metrics ----------------------------------------------------------------------------


def test_there_are_never_more_workers_than_partitions() -> None:
    small = manifests.found("small", "StatefulSet", "spendstream-worker")
    assert small["spec"]["replicas"] == 1
    stream = manifests.found("production", "SuperStream", "spendstream-usage")["spec"]
    scaled = manifests.found("production", "ScaledObject", "spendstream-worker")["spec"]
    assert 1 < scaled["minReplicaCount"] <= scaled["maxReplicaCount"] <= stream["partitions"]
    assert scaled["fallback"]["replicas"] <= stream["partitions"]
    target = scaled["scaleTargetRef"]
    assert "replicas" not in manifests.found("production", target["kind"], target["name"])["spec"]
    values = settings.read({})
    assert stream["name"] == values["RABBITMQ_STREAM"]
    policy = manifests.found("production", "Policy", "spendstream-usage-retention")["spec"]
    assert all(re.fullmatch(policy["pattern"], f"{stream['name']}-{number}") for number in range(8))
    assert policy["definition"]["max-length-bytes"] == values["STREAM_MAX_BYTES"]
    assert policy["definition"]["max-age"] == f"{values['STREAM_MAX_AGE'] / 86400:.0f}D"


def test_the_lag_that_workers_are_scaled_by_is_a_metric_of_theirs() -> None:
    (trigger,) = manifests.found("production", "ScaledObject", "spendstream-worker")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    exposed = set(re.findall(r"^# HELP (\S+)", generate_latest(metrics.REGISTRY).decode(), re.MULTILINE))
    named = set(re.findall(r"\banalytics_\w+", query))
    assert named == {"analytics_stream_offset_lag"}
    assert named <= exposed
    assert re.findall(r"by \((\w+)\)", query) == list(metrics.OFFSET_LAG._labelnames)


def test_prometheus_scrapes_a_route_and_a_port_of_a_service() -> None:
    monitors = [one for one in manifests.rendered("production") if one["kind"] == "ServiceMonitor"]
    assert {process(one) for one in monitors} == {
        name for name, one in deployed.PROCESSES.items() if one.port
    }
    for one in monitors:
        wanted = one["spec"]["selector"]["matchLabels"]
        services = [
            service
            for service in manifests.rendered("production")
            if service["kind"] == "Service" and wanted.items() <= service["metadata"]["labels"].items()
        ]
        # The name of the Service is the label `job`, by which rules and dashboards know the process.
        assert [service["metadata"]["name"] for service in services] == [one["metadata"]["name"]]
        (endpoint,) = one["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in services[0]["spec"]["ports"]}
        assert endpoint["path"] in deployed.routes(process(one))


def test_the_rules_of_the_operator_are_those_of_prometheus() -> None:
    """`python -m tests.support.prometheus_rule` makes the object from deploy/prometheus/rules.yml."""
    assert prometheus_rule.PAGE.read_text() == prometheus_rule.text()
    rules = manifests.found("production", "PrometheusRule", "spendstream")["spec"]
    assert rules["groups"] == yaml.safe_load(prometheus_rule.RULES.read_text())["groups"]


def test_the_component_runbook_puts_an_address_before_every_runbook_url(tmp_path: Path) -> None:
    """It does what the line with `sed` in docs/howto/watch.md does to the rules of Prometheus."""
    components = [
        os.path.relpath(manifests.FOLDER / "components" / name, tmp_path)
        for name in ("monitoring", "runbook")
    ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"components": components}))
    made = manifests.render(tmp_path)
    (rule,) = (one for one in made if one["kind"] == "PrometheusRule")
    told = re.search(r"'s\|(.+?)\|(.+?)\|' deploy/prometheus/rules.yml", WATCH.read_text())
    assert told is not None
    rules = prometheus_rule.RULES.read_text()
    assert rules.count(told[1]) > 20
    assert rule["spec"]["groups"] == yaml.safe_load(rules.replace(told[1], told[2]))["groups"]
    assert not [one for one in made if one["kind"] == "ConfigMap"]


def test_the_roles_of_the_database_are_those_that_migrate_grants_rights_to() -> None:
    declared = manifests.found("production", "Cluster", "spendstream-db")["spec"]["managed"]["roles"]
    groups = {role["name"] for role in declared if not role["login"]}
    assert groups == {roles.READER, *roles.WRITERS, roles.COLLECTOR, roles.ALERTER, roles.BI}
    logins = {role["name"]: role["inRoles"] for role in declared if role["login"]}
    assert logins == {
        "spendstream_api": [roles.READER],
        "spendstream_collector_login": [roles.COLLECTOR],
        "spendstream_alerts_login": [roles.ALERTER],
        "spendstream_grafana": [roles.BI],
    }
    assert all(role["passwordSecret"]["name"] for role in declared if role["login"])
