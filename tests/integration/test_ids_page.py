"""The programs on the page of ids, run: each prints the ids that the collector makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pipeline.collector import ids

PAGE = Path(__file__).resolve().parents[2] / "docs/ids.md"
EXPECTED = [
    str(ids.org_id("acme")),
    str(ids.model_id("openai", "gpt-4o-2024-08-06")),
    "5b0f2a34-0c51-4f0e-9d57-0a7b7f1c2d3e",
]


def programs(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("language", "file", "command"),
    [
        ("python", "ids.py", [sys.executable]),
        ("js", "ids.mjs", ["node"]),
        ("go", "ids.go", ["go", "run"]),
        ("java", "Ids.java", ["java"]),
    ],
    ids=["python", "js", "go", "java"],
)
def test_a_program_of_the_page_prints_the_same_ids(
    language: str, file: str, command: list[str], tmp_path: Path
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    [program] = programs(language)
    (tmp_path / file).write_text(program)
    ran = subprocess.run([*command, file], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.stdout.split() == EXPECTED, ran.stderr


def test_the_sql_of_the_page_prints_the_same_ids(timescale: str) -> None:
    both = programs("sql")
    assert len(both) == 2
    with psycopg.connect(timescale, autocommit=True) as connection:
        for program in both:
            answers = [
                str(row[0])
                for statement in re.split(r";\n(?!\$\$)", program)
                if (cursor := connection.execute(statement)).description
                for row in cursor
            ]
            assert answers == EXPECTED
