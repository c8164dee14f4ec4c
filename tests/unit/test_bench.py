"""The bench's own logic: its truth is the oracle's, and a wrong answer fails however fast it came."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from datetime import datetime

import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.bench import contenders, latency, race, report, workload
from pipeline.bench.answers import Answer, Outcome
from tests.bench import bench_flush
from tests.support import oracle as naive

END_US = 1_790_000_000_000_000
SHAPE = workload.Shape(events=3000, orgs=20, models=3, clients=4)


@pytest.fixture(scope="module")
def made() -> workload.Workload:
    return workload.make(SHAPE, end_us=END_US)


def answer_of_oracle(bodies: list[bytes], *, broker_us: int) -> Answer:
    oracle = naive.Oracle(naive.Rules())
    oracle.feed_all((i, broker_us, body) for i, body in enumerate(bodies))
    conflicts = sum(letter.reason == "conflict" for letter in oracle.dead_letters)
    return Answer(
        sums={
            (str(key[0]), str(key[2]), int(key[1].timestamp()) // 3600): (
                row.invocations,
                row.errors + row.timeouts + row.throttles,
                row.input_tokens,
                row.output_tokens,
                row.cost_microcents,
                row.latency_sum_ms,
            )
            for key, row in oracle.usage_hour.items()
        },
        accepted=oracle.accepted,
        duplicate=oracle.duplicate + conflicts,
        conflict=conflicts,
        rejected=oracle.rejected - conflicts,
    )


def test_the_truth_of_a_workload_and_of_its_copies_is_the_oracles(made: workload.Workload) -> None:
    assert made.truth == answer_of_oracle(list(made.bodies), broker_us=END_US + workload.MINUTE_US)
    small = workload.make(replace(SHAPE, events=200), end_us=END_US)
    copies = 50  # enough to cross an hour
    bodies = [body for number in range(copies) for body in small.copy(number)]
    truth = small.truth_of(copies)
    assert len({hour for _, _, hour in truth.sums}) == 2
    assert truth == answer_of_oracle(bodies, broker_us=END_US + copies * workload.MINUTE_US)


def test_a_workload_has_every_trap(made: workload.Workload) -> None:
    good = [json.loads(body) for body in made.bodies if body.endswith(b"}")]
    by_id: dict[str, set[str]] = {}
    payloads: dict[tuple[str, str], set[str]] = {}
    for event in good:
        by_id.setdefault(event["eventId"], set()).add(event["orgId"])
        payloads.setdefault((event["orgId"], event["eventId"]), set()).add(json.dumps(event))
    assert made.truth.duplicate is not None
    assert made.truth.rejected is not None
    assert made.truth.duplicate > 0.01 * SHAPE.events
    assert made.truth.rejected > 0
    assert max(map(len, by_id.values())) > 1, "no id is used by two orgs"
    assert max(map(len, payloads.values())) > 1, "no id is reused with another payload"
    assert not any(b"\n" in body for body in made.bodies)


def test_what_was_there_before_the_clock_started_is_not_collected_on_its_time() -> None:
    imported = [object()]  # a container: the collector tracks it
    try:
        with contenders.timed():
            tracked = gc.get_objects()
            assert not any(one is imported for one in tracked)
            mine = [object()]
            assert any(one is mine for one in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(one is imported for one in gc.get_objects())


def outcome_of(answer: Answer | None, *, seconds: float = 1.0) -> Outcome:
    return Outcome(events=1000, seconds=seconds, cpu_s=seconds / 2, peak_mib=10.0, answer=answer)


def test_a_fast_wrong_answer_is_a_failure(made: workload.Workload) -> None:
    key, sums = next(iter(made.truth.sums.items()))
    a_microcent_more = replace(made.truth, sums={**made.truth.sums, key: (*sums[:4], sums[4] + 1, sums[5])})
    a_row_less = replace(made.truth, sums={k: v for k, v in made.truth.sums.items() if k != key})
    a_row_more = replace(made.truth, sums={**made.truth.sums, ("x", "y", 0): sums})
    one_counted_twice = replace(made.truth, accepted=made.truth.accepted + 1)
    assert made.truth.duplicate is not None
    one_duplicate_lost = replace(made.truth, duplicate=made.truth.duplicate - 1)
    for wrong in (a_microcent_more, a_row_less, a_row_more, one_counted_twice, one_duplicate_lost):
        result = race.Result(contender=race.BY_NAME["core"])
        race.judge(result, outcome_of(wrong, seconds=0.001), made.truth)
        assert result.faults, wrong
        assert "**no**" in report.table(race.Options(), [result], report.machine())
    result = race.Result(contender=race.BY_NAME["core"])
    race.judge(result, outcome_of(made.truth), made.truth)
    assert not result.faults


def test_counters_that_a_contender_does_not_keep_are_not_held_against_it(made: workload.Workload) -> None:
    assert replace(made.truth, duplicate=None, rejected=None).faults(made.truth) == []


def test_rates_are_medians_and_a_floor_has_no_answer() -> None:
    result = race.Result(contender=race.BY_NAME["decode"])
    for seconds in (1.0, 2.0, 10.0):
        race.judge(result, outcome_of(None, seconds=seconds), Answer(sums={}, accepted=0))
    assert (result.rate(), result.rate_by_cpu(), round(result.spread(), 3)) == (500.0, 1000.0, 1.8)
    recorded = report.record(race.Options(), [result], report.machine())["contenders"][0]
    assert recorded["exact"] is None
    assert recorded["events_per_s"] == 500
    assert len(recorded["runs"]) == 3


def test_the_command_fails_on_a_wrong_answer_and_on_an_unknown_contender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = outcome_of(Answer(sums={}, accepted=0))
    monkeypatch.setattr(race, "in_a_process_of_its_own", lambda *_: wrong)
    done = CliRunner().invoke(cli.main, ["bench", "--events", "1000", "--repeat", "1", "--only", "core"])
    assert done.exit_code == 1
    assert "failed: core" in done.output
    done = CliRunner().invoke(cli.main, ["bench", "--only", "nobody"])
    assert done.exit_code == 2
    assert "no contender 'nobody'; there are drain, decode, core" in done.output
    done = CliRunner().invoke(cli.main, ["bench", "--partitions", "2", "--processes", "3"])
    assert done.exit_code == 2
    assert "more --processes than --partitions" in done.output


def test_late_events_are_in_the_truth() -> None:
    late = workload.make(replace(SHAPE, late=0.3), end_us=END_US)
    assert late.truth == answer_of_oracle(list(late.bodies), broker_us=END_US + workload.MINUTE_US)
    punctual = workload.make(SHAPE, end_us=END_US)
    assert len(late.truth.sums) > len(punctual.truth.sums)
    with pytest.raises(AssertionError):
        late.copy(1)


def test_the_events_of_a_flush_are_one_of_each_pair_and_new_every_time() -> None:
    minute_us, bodies = bench_flush.one_of_each(340, end_us=END_US)
    events = [json.loads(body) for number in (0, 1) for body in bench_flush.with_new_ids(bodies, number)]
    pairs = {(event["orgId"], event["modelId"]) for event in events}
    assert (len(bodies), len(pairs), len({event["eventId"] for event in events})) == (340, 340, 680)
    times = {int(datetime.fromisoformat(event["occurredAt"]).timestamp()) // 60 for event in events}
    assert times == {minute_us // workload.MINUTE_US}


def test_what_reads_a_stream_races_on_every_layout_and_no_worker_only_stands_by() -> None:
    options = race.Options(
        partitions=(1, 2, 4), processes=(1, 2), only=("drain", "core", "committed"), rabbitmq_url="x"
    )
    rows = race.line_up(options)
    assert [row.label for row in rows] == [
        "drain, 1 partition",
        "drain, 2 partitions",
        "drain, 4 partitions",
        "core",
        "committed, 1 partition",
        "committed, 2 partitions",
        "committed, 2 partitions, 2 processes",
        "committed, 4 partitions",
        "committed, 4 partitions, 2 processes",
    ]
    assert [row.skipped for row in rows] == [None] * 4 + ["DATABASE_URL is not set"] * 5
    for row in rows:
        row.skipped = None
        row.outcomes.append(outcome_of(None, seconds=row.partitions or 1))
    lines = report.table(options, rows, report.machine()).splitlines()[4:]
    layouts = [line.split("|")[2].strip() for line in lines]
    assert layouts == ["1", "2", "4", "-", "1", "2", "2 by 2 processes", "4", "4 by 2 processes"]
    ratios = [line.split("|")[7].strip() for line in lines]
    assert ratios[4:6] == ["1.00", "2.00"], "ratios are to the first row of ours"
    recorded = report.record(options, rows, report.machine())["contenders"]
    assert [(one["partitions"], one["processes"]) for one in recorded[2:5]] == [
        (4, None),
        (None, None),
        (1, 1),
    ]


def test_latency_is_counted_by_event_and_what_was_never_seen_is_infinitely_late() -> None:
    published_s, published = [0.0, 1.0, 2.0], [97, 99, 100]
    assert latency.percentiles(published_s, published, [0.5, 2.5], [98, 100]) == (0.5, 0.5, 1.5)
    assert latency.percentiles(published_s, published, [0.5, 2.5], [98, 100], warm_s=1.0) == (1.5, 1.5, 1.5)
    assert latency.percentiles([0.0, 1.0], [50, 100], [0.25], [50]) == (0.25, float("inf"), float("inf"))


def test_latency_needs_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RABBITMQ_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(cli.main, ["bench", "--latency", "100"])
    assert done.exit_code == 2
    assert "needs RABBITMQ_URL and DATABASE_URL" in done.output
