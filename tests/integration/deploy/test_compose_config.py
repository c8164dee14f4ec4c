"""The compose files, as docker-compose itself reads them. It needs no engine for that."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import yaml

from deploy.local.ways.compose import COMPOSE_FILE
from tests.conftest import missing
from tests.support import image
from tests.support.image import Image

DOCKERFILE: Final = f"""
FROM {image.BASE} AS docker-compose
RUN apt-get update && apt-get install -y --no-install-recommends docker-compose
ENV PATH=/usr/sbin:/usr/bin
ENTRYPOINT ["docker-compose"]
"""
"""Debian 13's docker-compose in a root folder of its own: that of Debian 12 is of another age."""
OURS: Final = image.ROOT / "deploy/compose/compose.yaml"
FILES: Final = (OURS, COMPOSE_FILE)


@pytest.fixture(scope="module")
def compose() -> Image:
    if reason := image.impossible():
        missing(f"docker-compose {reason}")
    return image.build(DOCKERFILE)


def read(compose: Image, folder: Path, path: Path, own: Path, *options: str) -> tuple[int, str]:
    """The exit code of `docker-compose config` of a file of the folder, and what it says."""
    inside = ("--file", f"/mnt/{path.relative_to(folder)}", "--profile", "cli", "config", *options)
    return compose.run(*inside, env={"HOME": "/"}, folder=own, mounts={"/mnt": folder})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_docker_compose_reads_the_file_without_a_word(compose: Image, path: Path, tmp_path: Path) -> None:
    assert read(compose, image.ROOT, path, tmp_path, "--quiet") == (0, "")


def test_docker_compose_reads_what_the_tests_of_the_file_read(compose: Image, tmp_path: Path) -> None:
    """Those tests read the file as YAML. Merges and anchors must mean the same to docker-compose."""
    code, said = read(compose, image.ROOT, OURS, tmp_path, "--no-path-resolution")
    assert code == 0, said
    services = yaml.safe_load(said)["services"]
    ours = yaml.safe_load(OURS.read_text())["services"]
    assert services.keys() == ours.keys()
    for name, service in services.items():
        assert (service.get("environment") or {}).keys() == ours[name].get("environment", {}).keys(), name
        if isinstance(command := ours[name].get("command"), list) and "$$" not in command[0]:
            assert service["command"] == command, name
        assert int(service["mem_limit"]) > 2**26
    assert services["api"]["environment"]["AUTH_MODE"] == "gateway"
    assert services["api"]["environment"]["JWT_ISSUER"] == ""


def test_a_mistake_is_found(compose: Image, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    wrong = tmp_path / "wrong/compose.yaml"
    wrong.write_text(OURS.read_text().replace("mem_limit: 384m", "memory_limit: 384m"))
    code, said = read(compose, wrong.parent, wrong, tmp_path, "--quiet")
    assert code != 0
    assert "memory_limit" in said
