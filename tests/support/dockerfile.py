"""Reads a Dockerfile: its stages, and their steps with variables filled in.

An instruction or a form that we do not use is an error, so that no step is passed over in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PAIR: Final = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S*)')


class Unreadable(Exception):
    """The Dockerfile has a form that this reader does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A RUN or a COPY. ``environment`` is what the step sees: ENV, and the build arguments so far."""

    keyword: str
    text: str
    environment: Mapping[str, str]
    workdir: str
    from_stage: str | None = None


@dataclass(slots=True, kw_only=True)
class Stage:
    """A stage, and what an image of it says to whoever runs it."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    user: str = ""
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions and their arguments, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in filter(str.strip, joined.splitlines()):
        keyword, _, rest = line.strip().partition(" ")
        found.append((keyword, rest.strip()))
    return found


def read(text: str, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """The stages by name, in their order, for the given build arguments.

    Raises:
        Unreadable: an instruction that is not known, or a build argument without a value.
    """
    stages: dict[str, Stage] = {}
    outer: dict[str, str] = {}
    known: dict[str, str] = {}
    stage: Stage | None = None

    def filled(text: str) -> str:
        scope = known if stage is not None else outer
        for match in _VARIABLE.finditer(text):
            if (match[1] or match[2]) not in scope:
                raise Unreadable(f"{match[0]} has no value")
        return _VARIABLE.sub(lambda match: scope[match[1] or match[2]], text)

    def pairs(text: str) -> dict[str, str]:
        if _PAIR.sub("", text).strip():
            raise Unreadable(f"expected NAME=value: {text}")
        return {name: filled(value.strip('"')) for name, value in _PAIR.findall(text)}

    for keyword, rest in instructions(text):
        if keyword == "FROM":
            stage = None
            base, _, name = filled(rest).partition(" AS ")
            stage = stages[name] = Stage(name=name, base=base)
            if base in stages:
                below = stages[base]
                stage.environment, stage.workdir = dict(below.environment), below.workdir
            known = dict(stage.environment)
            continue
        if keyword == "ARG":
            name, _, default = rest.partition("=")
            if name in arguments or default or (stage is not None and name in outer):
                value = arguments.get(name) or filled(default) or outer[name]
                (outer if stage is None else known)[name] = value
            continue
        if stage is None:
            raise Unreadable(f"{keyword} before the first FROM")
        match keyword:
            case "ENV":
                stage.environment |= pairs(rest)
                known |= stage.environment
            case "LABEL":
                stage.labels |= pairs(rest)
            case "WORKDIR":
                stage.workdir = filled(rest)
            case "USER":
                stage.user = filled(rest)
            case "EXPOSE":
                stage.ports = [int(port) for port in rest.split()]
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "CMD":
                stage.command = json.loads(rest)
            case "RUN" | "COPY":
                option = re.match(r"--from=(\w+)\s+", rest)
                text = rest[option.end() :] if option else rest
                if text.startswith(("--", "[", "<<")) or (option and keyword == "RUN"):
                    raise Unreadable(f"{keyword} {rest}")
                stage.steps.append(
                    Step(
                        keyword=keyword,
                        text=filled(text) if keyword == "COPY" else text,
                        environment=dict(known),
                        workdir=stage.workdir,
                        from_stage=option[1] if option else None,
                    )
                )
            case _:
                raise Unreadable(keyword)
    return stages
