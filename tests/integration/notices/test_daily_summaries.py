"""``spendstream alerts``: an org has one summary of each day, and messages are for the org alone."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.support.alerts_world import ORG, OTHER, OTHER_MODEL, START, call
from tests.support.notices_world import DAY, HOUR, MARKUP, NINE, WEEK, NoticesWorld, weeks

if TYPE_CHECKING:
    pass


def test_a_day_has_one_summary_once_it_is_over(world: NoticesWorld) -> None:
    world.ask(unusual_enabled=False, summary_enabled=True)
    label = {"label": ("openai", MARKUP)}
    world.count(
        [
            call(START - WEEK, 5),
            call(START - DAY, 3),
            *(call(NINE, 2, **label) for _ in range(3)),
            call(NINE, 0, status=1, error_code="x", **label),
            call(NINE, 1, model=OTHER_MODEL, partition=1),
            call(NINE, 0, model=uuid.UUID(int=9), microcents=None),
            call(NINE, 77, org=OTHER),
        ],
        watermark=START + DAY - timedelta(seconds=1),
    )
    assert world.notice().days == 0
    world.count([], watermark=START + DAY)
    assert world.notice().days == 1
    (told,) = world.notices()
    assert (told["org_id"], told["kind"], told["period"]) == (ORG, "spend.daily", "2026-11-02")
    assert (told["period_start"], told["period_end"], told["final"]) == (START, START + DAY, False)
    day = told["figures"]
    assert day["cost"] == {"amount": "7.00", "currency": "USD", "basis": "estimate"}
    assert (day["dayBefore"]["cost"]["amount"], day["weekBefore"]["cost"]["amount"]) == ("3.00", "5.00")
    assert (day["invocations"], day["errors"], day["errorRate"]) == (6, 1, 1 / 6)
    assert (day["inputTokens"], day["outputTokens"]) == (60, 6)
    assert [(model["modelName"], model["cost"]["amount"]) for model in day["topModels"]] == [
        (MARKUP, "6.00"),
        (None, "1.00"),
        (None, None),
    ]
    assert (day["unpriced"], day["unpricedModelCount"], day["modelCount"]) == (1, 1, 3)
    assert day["unpricedModels"][0]["modelId"] == str(uuid.UUID(int=9))
    assert world.notice().days == 0


def test_the_days_are_those_of_the_zone(world: NoticesWorld) -> None:
    for org, zone in ((ORG, "Asia/Kolkata"), (OTHER, "America/New_York")):
        world.ask(org, unusual_enabled=False, summary_enabled=True, summary_zone=zone)
    before = timedelta(minutes=1)
    india = START - timedelta(hours=5, minutes=30)
    # New York's clocks went back on 1 November, so that its 2 November begins at 05:00 UTC.
    york = START + 5 * HOUR
    world.count(
        [
            *(call(at, 1) for at in (india - before, india, india + DAY - before, india + DAY)),
            *(call(at, 1, org=OTHER) for at in (york - before, york, york + DAY - before, york + DAY)),
        ],
        watermark=york + DAY,
    )
    assert world.notice().days == 3
    found = {(row["org_id"], row["period"]): row["figures"] for row in world.notices()}
    # What runs when somebody asks is the first day: in New York it is still 1 November.
    assert found.keys() == {(ORG, "2026-11-02"), (OTHER, "2026-11-01"), (OTHER, "2026-11-02")}
    assert found[ORG, "2026-11-02"]["invocations"] == 2
    assert found[ORG, "2026-11-02"]["dayBefore"]["cost"]["amount"] == "1.00"
    assert found[OTHER, "2026-11-02"]["invocations"] == 2


def test_missed_days_are_told_once_each_and_at_most_seven(world: NoticesWorld) -> None:
    world.ask(unusual_enabled=False, summary_enabled=True)
    world.count([call(START, 1)], watermark=START + DAY)
    assert world.notice().days == 1
    world.count([call(START + 5 * DAY, 1)], watermark=START + 9 * DAY)
    assert world.notice().days == 7
    assert world.told() == ["2026-11-02", *(f"2026-11-{day:02d}" for day in range(4, 11))]
    # Nothing was called on the last of them.
    assert world.notices()[-1]["figures"]["errorRate"] is None
    assert world.notices()[-1]["figures"]["cost"]["amount"] == "0.00"
    assert world.notice().days == 0


def test_another_zone_does_not_tell_a_day_twice(world: NoticesWorld) -> None:
    world.ask(unusual_enabled=False, summary_enabled=True)
    world.count([call(START, 1)], watermark=START + DAY)
    world.notice()
    world.ask(
        unusual_enabled=False,
        summary_enabled=True,
        summary_zone="America/New_York",
        summary_since=START + DAY,
        summary_to=None,
    )
    world.count([call(START + DAY, 1)], watermark=START + DAY + 5 * HOUR)
    assert world.notice().days == 0
    world.count([], watermark=START + 2 * DAY + 5 * HOUR)
    assert world.notice().days == 1
    assert world.told() == ["2026-11-02", "2026-11-03"]


def test_a_day_whose_rows_are_kept_no_more_is_left_out_and_the_next_is_told(world: NoticesWorld) -> None:
    """Minute rows, which the days of India need, are kept for 14 days."""
    since = START - 5 * DAY
    world.ask(unusual_enabled=False, summary_enabled=True, summary_zone="Asia/Kolkata", summary_since=since)
    world.count([call(START - DAY, 1)], watermark=START)
    found = world.notice(now=START + 12 * DAY)
    assert (found.faults, found.days) == (4, 1)
    (told,) = world.notices()
    assert told["period"] == "2026-11-01"
    assert told["figures"]["dayBefore"]["cost"] is told["figures"]["weekBefore"]["cost"] is None


# --- messages ---


def test_messages_go_to_the_webhooks_of_the_org_alone_and_markup_is_text(world: NoticesWorld) -> None:
    canary = "canary of another org"
    for org, name in ((ORG, MARKUP), (OTHER, canary)):
        world.execute(
            "INSERT INTO analytics.names VALUES (%s, '', '', %s, 'test', now())",
            [org, name],
        )
    world.ask(summary_enabled=True)
    world.webhook()
    world.webhook("slack")
    world.webhook(org=OTHER)
    world.count(
        [
            *weeks(1, 1, 1, 1, at=NINE),
            call(NINE, 50, label=("p", MARKUP)),
            *weeks(1, 1, at=NINE, org=OTHER, model=OTHER_MODEL),
            call(NINE, 987654, org=OTHER, model=OTHER_MODEL, label=("p", canary)),
        ],
        watermark=START + DAY,
    )
    found = world.notice()
    assert (found.hours, found.days) == (1, 1)
    rows = world.rows("SELECT * FROM analytics.webhook_deliveries")
    assert len(rows) == 4
    assert {row["org_id"] for row in rows} == {ORG}
    assert {row["notice_id"] for row in rows} == {row["notice_id"] for row in world.notices()}
    bodies = world.bodies()
    assert canary not in json.dumps(bodies)
    assert "987654" not in json.dumps(bodies)
    plain = {body["type"]: body["data"] for body in bodies if "type" in body}
    assert plain.keys() == {"spend.unusual", "spend.daily"}
    assert plain["spend.unusual"]["orgName"] == MARKUP
    assert plain["spend.unusual"]["notice"]["unusualSpend"]["spent"] == "50.00"
    assert plain["spend.unusual"]["notice"]["dailySummary"] is None
    assert plain["spend.daily"]["notice"]["dailySummary"]["topModels"][0]["modelName"] == MARKUP
    texts = [body["text"] for body in bodies if "text" in body]
    shown = "&lt;!channel&gt; ∗a∗ &amp; 'b'"
    assert [text for text in texts if text.startswith("Unusual spend of")] == [
        f"Unusual spend of {shown}: 50.00 USD in the hour from 2026-11-02 09:00 UTC. About this time of the"
        " week it was 1.00 USD at most in the 4 weeks before (provisional, as of 2026-11-03 00:00:00 UTC)."
    ]
    (summary,) = [text for text in texts if text.startswith("*2026-11-02*")]
    assert summary.splitlines() == [
        f"*2026-11-02* (UTC) of {shown}: 50.00 USD (provisional, as of 2026-11-03 00:00:00 UTC)",
        "The day before: 0.00 USD. A week before: 1.00 USD.",
        "1 request, 0.00 % failed; 10 input tokens and 1 output token.",
        f"• p/{shown}: 50.00 USD",
    ]


def test_the_longest_names_fit_into_a_message(world: NoticesWorld) -> None:
    world.ask(unusual_enabled=False, summary_enabled=True)
    world.webhook()
    world.webhook("slack")
    world.execute("INSERT INTO analytics.names VALUES (%s, '', '', %s, 'test', now())", [ORG, "🦆" * 128])
    for sign in ("&", "\\", "🦆"):
        world.execute("TRUNCATE analytics.notices_sent CASCADE")
        world.execute("UPDATE analytics.notices SET summary_to = NULL")
        world.events = []
        world.count(
            [
                call(
                    NINE,
                    cost,
                    model=uuid.UUID(int=number),
                    label=(sign * 64, sign * 128),
                    microcents=10**18 - number if cost else None,
                )
                for cost in (0, 1)
                for number in range(cost * 10, cost * 10 + 8)
            ],
            watermark=START + DAY,
        )
        assert world.notice().days == 1
        (told,) = world.notices()
        assert told["figures"]["unpricedModelCount"] == 8
        assert len(told["figures"]["topModels"]) == len(told["figures"]["unpricedModels"]) == 5
