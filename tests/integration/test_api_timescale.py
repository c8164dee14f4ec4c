"""The same queries on TimescaleDB: the same figures. test_api_plans.py has how they are run."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.api_facts import NOW, ORG, WATERMARKS, load
from tests.support.api_questions import (
    EVENTS,
    Question,
    check_reliability,
    expected_usage,
    key_of,
    questions,
    shown_usage,
)
from tests.support.api_server import BASE, Api, served


@pytest.fixture
def database_url(migrated_timescale: str) -> str:
    load(migrated_timescale, EVENTS, WATERMARKS)
    return migrated_timescale


@pytest.fixture
def server(database_url: str) -> Iterator[Api]:
    with served({"DATABASE_URL": database_url}, NOW) as server:
        yield server


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(question=questions())
def test_figures_on_timescaledb_equal_a_naive_count(server: Api, question: Question) -> None:
    expected = question.series(EVENTS)
    query = {**question.query(), "limit": 10_000}
    usage = server.ok(f"{BASE}/orgs/{ORG}/usage", query)
    assert [key_of(point) for point in usage["series"]] == [key for key, _ in expected]
    for point, (_, events) in zip(usage["series"], expected, strict=True):
        assert shown_usage(point) == expected_usage(events)
    assert shown_usage(usage["totals"]) == expected_usage(question.chosen(EVENTS))
    check_reliability(server.ok(f"{BASE}/orgs/{ORG}/reliability", query)["totals"], question.chosen(EVENTS))
