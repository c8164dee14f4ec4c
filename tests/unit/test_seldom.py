"""Lines of the log that come at most once a minute."""

from pipeline.common import seldom
from pipeline.common.seldom import PAUSE_S, Seldom


def test_a_kind_is_said_at_once_and_then_once_a_minute_with_what_was_left_unsaid() -> None:
    now = [0.0]
    said = Seldom(clock=lambda: now[0])
    assert said.count("a") == 1
    assert [said.count("a") for _ in range(499)] == [None] * 499
    now[0] = PAUSE_S - 0.001
    assert said.count("a") is None
    now[0] = PAUSE_S
    assert said.count("a", 3) == 503
    assert said.count("a") is None


def test_kinds_are_apart_and_their_number_is_bounded() -> None:
    said = Seldom(clock=lambda: 0.0)
    assert said.count("a") == 1
    assert said.count("b", 7) == 7
    for number in range(seldom._KINDS_MAX):
        assert said.count(f"kind {number}") == 1
    assert len(said._kinds) <= seldom._KINDS_MAX
    assert said.count("a") == 1, "forgotten, and said anew"
