"""The ledger and its sink, under random orders of events and accidents, against a naive recount.

See `tests.support.pipeline_machines`. That these machines would notice a bug: `test_planted_bugs`.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support import pipeline_machines as machines

pytestmark = pytest.mark.usefixtures("names_are_looked_through_after_each_batch")

SETTINGS = settings(max_examples=150, stateful_step_count=40, deadline=None)

TestPipeline = machines.PipelineMachine.TestCase
TestPipeline.settings = SETTINGS

TestReplays = machines.ReplayMachine.TestCase
TestReplays.settings = SETTINGS

TestFullDays = machines.FullDaysMachine.TestCase
TestFullDays.settings = SETTINGS

TestChangingSettings = machines.ChangingSettingsMachine.TestCase
TestChangingSettings.settings = SETTINGS
