"""Draws the state diagrams of the pages from the tables. ``python -m tests.support.states_page`` does it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.dead_letters import life as letter_life
from pipeline.worker import life as partition_life

DOCS = Path(__file__).parents[2] / "docs"
DRAWN: dict[Path, tuple[Enum, Mapping[Any, Enum]]] = {
    DOCS / "architecture.md": (partition_life.State.STANDING_BY, partition_life.STEPS),
    DOCS / "howto" / "dead-letters.md": (letter_life.State.REJECTED, letter_life.STEPS),
}
"""By page: the first state, and the table."""
_PLACE = re.compile(r"(?<=<!-- states -->\n).*?(?=<!-- /states -->)", re.DOTALL)


def diagram(first: Enum, steps: Mapping[Any, Enum]) -> str:
    """A Mermaid diagram of the steps. Steps between the same two states share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, event), after in steps.items():
        arrows.setdefault((_name(before), _name(after)), []).append(event.value)
    states = dict.fromkeys(state for (before, _), after in steps.items() for state in (before, after))
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [
        f'    state "{state.value}" as {_name(state)}' for state in states if _name(state) != state.value
    ]
    lines.append(f"    [*] --> {_name(first)}")
    lines += [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]
    return "\n".join([*lines, "```", ""])


def _name(state: Enum) -> str:
    return str(state.value).replace(" ", "_")


def text(page: Path) -> str:
    """The page as it must be."""
    first, steps = DRAWN[page]
    drawn, places = _PLACE.subn(lambda _: diagram(first, steps), page.read_text())
    assert places == 1, f"{page} needs one place between <!-- states --> and <!-- /states -->"
    return drawn


if __name__ == "__main__":
    for page in DRAWN:
        page.write_text(text(page))
