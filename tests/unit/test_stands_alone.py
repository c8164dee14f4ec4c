"""The repository stands alone: it reads nothing beside itself, and installs nothing that is not pinned."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import locks
from tests.support import traces

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("tests/**/*.py"), *ROOT.glob("deploy/**/*.py"), ROOT / "toxfile.py"])
COMMANDS = [ROOT / ".ci/run", ROOT / "tox.ini", ROOT / "README.md"]
# Where people and machines keep what is theirs.
OTHERS = ("/home/", "/opt/", "/shared/", "/Users/", "/work/", "/workspace/")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parents(tree: ast.AST) -> Iterator[int]:
    """Each N of `….parents[N]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            index = node.slice
            if node.value.attr == "parents" and isinstance(index, ast.Constant):
                assert isinstance(index.value, int)
                yield index.value


def paths_outside(source: str) -> list[str]:
    """String literals that are paths of a machine's own, or that climb out of a folder."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [
        text for text in texts if text.startswith(OTHERS) or re.search(r"(^|/)\.\./\.\./|\bshared/data", text)
    ]


def test_a_path_outside_is_found() -> None:
    assert paths_outside('Path("/work/shared/data")') == ["/work/shared/data"]
    assert paths_outside('open("../../traces.csv")') == ["../../traces.csv"]
    assert paths_outside('Path("/usr/bin/redis-server")') == []
    assert list(parents(ast.parse("Path(__file__).resolve().parents[3]"))) == [3]


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_no_test_reads_a_file_outside_the_clone(source: Path) -> None:
    depth = len(source.relative_to(ROOT).parts)
    text = source.read_text()
    assert [up for up in parents(ast.parse(text)) if up >= depth] == [], "climbs out of the clone"
    if source != Path(__file__):
        assert paths_outside(text) == [], "names a path of some machine"


def test_the_traces_are_in_the_repository_with_their_licence() -> None:
    for name in traces.NAMES:
        rows = (traces.EXCERPTS / name).read_bytes().split(b"\r\n")
        assert rows[0] == b"TIMESTAMP,ContextTokens,GeneratedTokens"
        assert len(rows) > 3000
    attribution = (traces.EXCERPTS / "README.md").read_text()
    assert "CC-BY 4.0" in attribution
    assert "Patel et al." in attribution


def test_whole_traces_are_taken_from_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPENDSTREAM_TRACES", str(tmp_path))
    with pytest.raises(AssertionError, match="no trace"):
        traces.path(traces.NAMES[0])
    (tmp_path / traces.NAMES[0]).touch()
    assert traces.path(traces.NAMES[0]) == tmp_path / traces.NAMES[0]


@pytest.mark.parametrize("lock", locks.LOCKS)
def test_every_line_of_a_lock_is_one_version_with_hashes(lock: str) -> None:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / lock).read_text()).replace("\\\n", " ")
    entries = text.strip().splitlines()
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+( ;.*?)?( +--hash=sha256:[0-9a-f]{64})+$", entry), (
            entry
        )


def test_what_builds_the_package_is_in_both_locks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert all(line.startswith("hatchling") for line in project["build-system"]["requires"])
    for lock in ("requirements.lock", "tests/requirements.lock"):
        pinned = re.findall(r"(?m)^([\w-]+)==", (ROOT / lock).read_text())
        assert {"hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers", "editables"} <= {*pinned}


@pytest.mark.parametrize("path", COMMANDS, ids=named)
def test_whatever_is_installed_is_pinned(path: Path) -> None:
    """Every `pip install` takes a lock with hashes, or the clone itself without fetching what builds it."""
    for line in path.read_text().splitlines():
        for command in re.findall(r"pip install ([^&|;`#]*)", line.partition("# ")[0] or line):
            words = command.split()
            locked = re.search(r"(-r|--requirement) \S+\.lock$", command.strip())
            itself = words[-1] == "." and {"--no-deps", "--no-build-isolation"} <= {*words}
            exact = all("==" in word for word in words if not word.startswith("-"))
            assert locked or itself or exact, f"unpinned: {line.strip()}"


def test_tox_installs_locks_only() -> None:
    text = (ROOT / "tox.ini").read_text()
    for wanted in re.findall(r"(?m)^ *(?:deps = )?-r (\S+)$", text):
        assert wanted.replace("{/}", "/") in locks.LOCKS
    assert not re.search(r"(?m)^(package = |dependency_groups|extras|requires)", text)


def test_every_image_is_an_exact_version() -> None:
    files = [path for pattern in ("*.yaml", "*.yml") for path in ROOT.glob(f"deploy/**/{pattern}")]
    images = [
        service["image"]
        for path in files
        for document in yaml.safe_load_all(path.read_text())
        for service in (document or {}).get("services", {}).values()
        if "image" in service
    ]
    images = [re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", image) for image in images]  # where nobody set another one
    assert len(images) >= 4
    for image in images:
        assert re.search(r":v?\d+\.\d+(\.\d+)?[\w.-]*$|@sha256:[0-9a-f]{64}$", image), f"unpinned: {image}"
        assert "latest" not in image


def test_each_python_that_is_promised_has_an_environment_that_runs_its_tests() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    found = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", promised)
    assert found is not None
    minors = range(int(found[1]), int(found[2]))
    readme = (ROOT / "README.md").read_text()
    environments = re.findall(r"^\[testenv:(py3\d+)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    assert environments == [f"py3{minor}" for minor in minors[1:]], "the oldest runs every test"
    assert all(f"3.{minor}" in readme for minor in minors)
