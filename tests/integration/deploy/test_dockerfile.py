"""deploy/image: what the Dockerfile says, without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from typing import Final

import pytest

from tests.support import deployed, dockerfile, image

STAGES: Final = image.read()
IMAGE: Final = STAGES["spendstream"]


def test_the_base_is_named_by_an_exact_digest_that_somebody_must_give() -> None:
    assert STAGES["base"].base == f"debian:trixie-slim@{image.DIGEST}"
    assert IMAGE.labels["org.opencontainers.image.base.digest"] == image.DIGEST
    with pytest.raises(dockerfile.Unreadable, match="BASE_DIGEST"):
        dockerfile.read(image.DOCKERFILE.read_text(), {})
    assert {stage.base for stage in STAGES.values()} - STAGES.keys() == {image.BASE}, (
        "one base for all stages"
    )


def test_the_image_runs_every_process_as_a_user_by_number() -> None:
    assert IMAGE.user == "10001:10001"
    assert IMAGE.entrypoint == ["spendstream"]
    assert IMAGE.ports == [
        port for name in ("api", "worker", "collector", "exporter", "alerts") if (port := deployed.port(name))
    ]
    assert {step.keyword for step in IMAGE.steps} == {"COPY"}, "nothing is run in the last stage"


def test_labels_are_those_of_oci_and_the_version_is_ours() -> None:
    assert IMAGE.labels["org.opencontainers.image.version"] == image.version()
    given = image.read({"VERSION": "9.9.9", "REVISION": "abc", "CREATED": "2026-11-30T00:00:00Z"})[
        "spendstream"
    ]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in given.labels.items()}
    assert labels.keys() == {
        *("title", "description", "licenses", "version", "revision", "created", "base.name", "base.digest")
    }
    assert (labels["version"], labels["revision"], labels["created"]) == (
        "9.9.9",
        "abc",
        "2026-11-30T00:00:00Z",
    )


def test_wheels_are_installed_by_their_hashes_and_nothing_else_is_fetched() -> None:
    steps = [step.text for stage in STAGES.values() for step in stage.steps if step.keyword == "RUN"]
    installs = [command for text in steps for command in re.findall(r"pip [^&]* install [^&]*", text)]
    locked, ours = installs
    assert "--require-hashes" in locked
    assert "--only-binary :all:" in locked
    assert locked.split()[-2:] == ["--requirement", "requirements.lock"]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= {*ours.split()}
    assert not re.search(r"\b(curl|wget|git|ADD)\b", image.DOCKERFILE.read_text())


def test_loops_are_compiled_for_a_machine_that_the_image_names() -> None:
    (warm_up,) = (step for step in STAGES["app"].steps if "spendstream warm-up" in step.text)
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR"):
        assert warm_up.environment[name] == IMAGE.environment[name]
    assert IMAGE.environment["NUMBA_CPU_NAME"] == "generic"
    newer = image.read({"NUMBA_CPU_NAME": "x86-64-v3"})
    assert newer["spendstream"].environment["NUMBA_CPU_NAME"] == "x86-64-v3"


def test_only_what_the_image_is_made_of_is_sent_to_the_build() -> None:
    sent = {path.parts[0] for path in image.context()}
    copied = {
        source
        for stage in STAGES.values()
        for step in stage.steps
        if step.keyword == "COPY" and step.from_stage is None
        for source in step.text.split()[:-1]
    }
    assert (
        sent
        == copied
        == {"api", "pipeline", "sql", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"}
    )
    assert not [path for path in image.context() if path.suffix == ".pyc"]


def test_an_unknown_instruction_is_not_passed_over() -> None:
    for line in (
        "ADD x /x",
        "RUN --mount=type=cache,target=/x true",
        "COPY --chown=1 a b",
        "HEALTHCHECK NONE",
    ):
        with pytest.raises(dockerfile.Unreadable):
            dockerfile.read(f"FROM a AS b\n{line}\n", {})


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint is not None, "pip install -r tests/requirements.lock"
    done = subprocess.run((hadolint, str(image.DOCKERFILE)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    wrong = "FROM debian\nRUN cd /x && apt-get install python3\n"
    planted = subprocess.run((hadolint, "-"), input=wrong, capture_output=True, text=True, check=False)
    assert planted.returncode != 0
