"""The pictures of states on the pages are what the tables say."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest

from tests.support import states_page


class Light(Enum):
    RED = "red"
    RED_YELLOW = "red and yellow"


class Push(Enum):
    BUTTON = "button"
    TIMER = "timer"


def test_steps_between_the_same_states_share_an_arrow() -> None:
    steps = {
        (Light.RED, Push.BUTTON): Light.RED_YELLOW,
        (Light.RED, Push.TIMER): Light.RED_YELLOW,
        (Light.RED_YELLOW, Push.TIMER): Light.RED,
    }
    assert states_page.diagram(Light.RED, steps).splitlines()[2:-1] == [
        '    state "red and yellow" as red_and_yellow',
        "    [*] --> red",
        "    red --> red_and_yellow: button, timer",
        "    red_and_yellow --> red: timer",
    ]


@pytest.mark.parametrize("page", states_page.DRAWN, ids=lambda page: page.name)
def test_a_page_shows_the_states_of_its_table(page: Path) -> None:
    assert page.read_text() == states_page.text(page), "run python -m tests.support.states_page"
