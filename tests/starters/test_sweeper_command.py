"""`everycent sweeper` on a whole stack: by hand, by its schedule, and what it leaves for people."""

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from temporalio.client import (
    Client,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleOverlapPolicy,
)

from everycent.domain.order import CancelOrder, PlaceOrder, RedirectPayment
from everycent.domain.sweep import Sweep, SweepReport
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.schedules import SWEEPER_SCHEDULE
from tests.starters.conftest import CommandLine

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
AT_ONCE = ("sweeper", "--once", "--grace", "0", "--hold-grace", "0")


@pytest.fixture
async def lost_order(
    bookings: Bookings,
    checkouts: Checkouts,
    client: Client,
    an_order: Callable[..., PlaceOrder],
    tenant: str,
) -> PlaceOrder:
    """An order that waits for its customer, whose run was terminated."""
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")
    order = an_order(payment=RedirectPayment())
    await checkouts.place(order)
    await client.get_workflow_handle(order.workflow_id()).terminate(reason="a mistake")
    return order


@pytest.mark.requirement("AC1.6", "I8", "T19")
async def test_a_pass_by_hand_takes_a_lost_order_up_and_keeps_the_record(
    everycent: CommandLine, lost_order: PlaceOrder, client: Client, checkouts: Checkouts
) -> None:
    """Red when: what was found and done is not on record, or the second pass acts again."""
    key = f"{everycent.tenant}/o-1"
    looked = await everycent("sweeper", "--dry-run", "--grace", "0", "--json")
    assert looked.exit_code == 0
    [would] = json.loads(looked.stdout)["findings"]
    assert (would["key"], would["act"], would["after"]) == (key, "take up", "")
    done = await everycent(*AT_ONCE, "--json")
    assert done.exit_code == 0, done.stderr
    [finding] = json.loads(done.stdout)["findings"]
    assert (finding["before"], finding["repaired"]) == (would["before"], True)
    assert f"its run is terminated, by {client.identity}: a mistake" in finding["before"]
    again = await everycent(*AT_ONCE)
    assert again.exit_code == 0
    assert again.stdout.split()[-6:] == ["found", "0", "left", "for", "people", "0"]
    case = await everycent.json("case", "show", f"{key}/sweeper", shop=False)
    assert (case["state"], case["resolved_by"]) == ("RESOLVED", "everycent sweeper")
    assert "was started by sweeper/once; before: OPEN, last moved" in case["resolution"]
    told = await everycent.json("explain", "o-1")
    said = [event["what"] for event in told["events"]]
    assert "run 2 begins, started by sweeper/once" in said
    assert any(what.startswith("case settled by everycent sweeper: run ") for what in said)
    await checkouts.cancel(everycent.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("AC1.7", "I22")
async def test_what_a_pass_leaves_is_told_by_its_exit_code_and_settled_by_a_person(
    everycent: CommandLine, lost_order: PlaceOrder, checkouts: Checkouts, client: Client
) -> None:
    """Red when: a stopped pass looks like a good one, or its case cannot be settled."""
    stopped = await everycent(*AT_ONCE, "--limit", "0")
    assert stopped.exit_code == 5
    assert "the sweeper has repaired nothing: there is more to repair than" in stopped.stderr
    for _ in range(5):
        assert (await everycent(*AT_ONCE)).exit_code == 0
        await client.get_workflow_handle(lost_order.workflow_id()).terminate(reason="again")
    assert (await everycent(*AT_ONCE)).exit_code == 5
    key = f"{everycent.tenant}/o-1/sweeper"
    assert (await everycent.json("case", "show", key, shop=False))["state"] == "OPEN"
    assert (await everycent("case", "retry", key, "--by", "ada", shop=False)).exit_code == 0
    case = await everycent.json("case", "show", key, shop=False)
    assert (case["state"], case["resolved_by"], case["by_hand"]) == ("RESOLVED", "ada", False)
    assert (await everycent(*AT_ONCE)).exit_code == 0
    await checkouts.cancel(everycent.tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I8")
async def test_temporal_starts_a_pass_by_itself_one_at_a_time(
    everycent: CommandLine, client: Client, until: Until
) -> None:
    """Red when: no worker installs the schedule, or its passes overlap."""
    handle = client.get_schedule_handle(SWEEPER_SCHEDULE)
    schedule = (await handle.describe()).schedule
    assert schedule.spec.intervals[0].every == timedelta(minutes=5)
    assert schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
    await handle.trigger()

    async def ran() -> bool:
        return bool((await handle.describe()).info.recent_actions)

    await until(ran)
    action = (await handle.describe()).info.recent_actions[-1].action
    assert isinstance(action, ScheduleActionExecutionStartWorkflow)
    assert action.workflow_id.startswith("sweeper/scheduled")
    passed = client.get_workflow_handle(action.workflow_id, result_type=SweepReport)
    report = await passed.result()
    assert (report.dry_run, report.stopped) == (False, "")
    assert (await everycent("sweeper", "--every", "0")).exit_code == 0
    assert (await handle.describe()).schedule.state.paused
    assert (await everycent("sweeper", "--every", "600")).exit_code == 0
    described = (await handle.describe()).schedule
    assert (described.state.paused, described.spec.intervals[0].every) == (
        False, timedelta(minutes=10),
    )  # fmt: skip
    assert (await everycent("sweeper", "--every", "300", shop=False)).exit_code == 0


@pytest.mark.requirement("I22")
async def test_the_limits_of_a_pass_come_from_the_settings_unless_they_are_typed(
    everycent: CommandLine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when: a setting is not heard, or is heard over what was typed."""
    monkeypatch.setenv("EVERYCENT_SWEEPER__LIMIT", "3")
    monkeypatch.setenv("EVERYCENT_SWEEPER__MONEY_LIMIT_MINOR", "700")
    handle = client.get_schedule_handle(SWEEPER_SCHEDULE)
    for typed, money in (((), 700), (("--money-limit", "9"), 9)):
        assert (await everycent("sweeper", "--every", "300", *typed, shop=False)).exit_code == 0
        action = (await handle.describe()).schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        [kept] = await client.data_converter.decode(action.args, [Sweep])
        assert (kept.limit, kept.money_limit_minor, kept.unknown_limit) == (3, money, 10)
    monkeypatch.undo()
    assert (await everycent("sweeper", "--every", "300", shop=False)).exit_code == 0


async def test_a_sweeper_that_is_told_nothing_does_nothing(everycent: CommandLine) -> None:
    """Red when: the bare word repairs things."""
    done = await everycent("sweeper")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: say --once, --dry-run or --every SECONDS\n"
