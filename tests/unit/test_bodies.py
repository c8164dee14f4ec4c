"""Bodies in one buffer behave as a list of them, however they were put together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.bodies import PADDING, Bodies

_bodies = st.lists(st.binary(max_size=5), max_size=6)


def scattered(bodies: list[bytes]) -> Bodies:
    """With other bytes before, between and after them."""
    text, begins, ends = b"~", [], []
    for body in bodies:
        begins.append(len(text))
        text += body
        ends.append(len(text))
        text += b"~~"
    return Bodies(text, np.array(begins, np.int64), np.array(ends, np.int64))


@given(_bodies, st.slices(6))
def test_they_are_a_sequence(bodies: list[bytes], part: slice) -> None:
    for made in (Bodies.of(bodies), scattered(bodies)):
        assert len(made) == len(bodies)
        assert list(made) == bodies
        assert made == bodies
        assert [made[i] for i in range(-len(bodies), len(bodies))] == bodies + bodies
        if part.step is None or part.step > 0:
            assert made[part] == bodies[part]
    assert Bodies.of([b"a"]) != [b"b"]


@given(st.lists(st.tuples(_bodies, st.booleans()), max_size=4))
def test_joined_they_keep_their_order_and_end_in_padding(parts: list[tuple[list[bytes], bool]]) -> None:
    made = Bodies.join([scattered(bodies) if loose else bodies for bodies, loose in parts])
    assert made == [body for bodies, _ in parts for body in bodies]
    assert made.padded
    assert bytes(made.text).endswith(PADDING)
    assert not len(made) or made.ends.max() <= len(made.text) - len(PADDING)
