"""What the tests of the pipeline's model share."""

from __future__ import annotations

import pytest

from pipeline.core.rollups import Rollups


@pytest.fixture
def names_are_looked_through_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through the names even if they are few. Otherwise no name would ever be forgotten here."""
    monkeypatch.setattr(Rollups, "_must_sweep", lambda self, kind, count: True)
