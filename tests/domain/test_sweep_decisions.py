"""What the sweeper makes of an order, a hold or a run, without Temporal and without a database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everycent.domain.order import Decision, OrderStatus, WaitsFor
from everycent.domain.sweep import (
    MOST_DONE,
    MOST_TOLD,
    Act,
    Finding,
    Hold,
    OrderFacts,
    RunState,
    Standing,
    Sweep,
    SweeperCase,
    SweepReport,
    judge_hold,
    judge_order,
    judge_run,
    judge_unsold,
    shortened,
    why_stop,
)
from everycent.domain.sweep_questions import PAGE, HoldPage

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SWEEP = Sweep()
XID = "t/o-1"
OPEN, COMMITTING = Decision.OPEN, Decision.COMMITTING
COMMITTED, ABORTED = Decision.COMMITTED, Decision.ABORTED
LIVE = RunState(workflow_id="w", status="running")
DEAD = RunState(workflow_id="w", status="terminated", ended_how="by hand")


def ago(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)


def order(decision: Decision = OPEN, **changes: Any) -> OrderFacts:
    facts: dict[str, Any] = {
        "decision": decision, "status": OrderStatus.PENDING, "attempt": "first",
        "waits_for": WaitsFor.NOTHING, "driver": "w", "moved_at": ago(3600),
        "window_ends_at": ago(3600),
    }  # fmt: skip
    return OrderFacts(**{**facts, **changes})


def standing(facts: OrderFacts | None = None, *cases: SweeperCase) -> Standing:
    return Standing(xid=XID, order=facts, cases=cases)


def case(key: str = f"{XID}/sweeper", **changes: Any) -> SweeperCase:
    facts = {"case_key": key, "attempts": 1, "is_open": True, "by_hand": False}
    return SweeperCase.model_validate({**facts, **changes})


def hold(kind: str = "reservation", step: str = "reserve", **changes: Any) -> Hold:
    facts: dict[str, Any] = {
        "service": "inventory", "kind": kind, "key": f"{XID}/{step}", "state": "TRIED",
        "opened_on": "2026-01-02", "tried_at": ago(7200),
    }  # fmt: skip
    return Hold(**{**facts, **changes})


def of_order(facts: OrderFacts, run: RunState, *cases: SweeperCase) -> Finding | None:
    return judge_order(standing(facts, *cases), {run.workflow_id: run}, SWEEP, NOON)


# -- orders


def test_an_order_without_a_live_run_is_taken_up_and_told_as_it_was() -> None:
    assert of_order(order(), DEAD) == Finding(
        kind="order without a live run", xid=XID, key=XID, act=Act.TAKE_UP,
        before="OPEN, last moved 2026-01-02 11:00:00; its run is terminated, by hand",
    )  # fmt: skip
    other = judge_order(standing(order()), {"other": DEAD}, SWEEP, NOON)
    assert other is not None
    assert other.before.endswith("its run is unknown")


@pytest.mark.parametrize(
    ("facts", "run"),
    [
        (order(COMMITTED), DEAD),
        (order(ABORTED), DEAD),
        (order(moved_at=ago(119)), DEAD),
        (order(window_ends_at=ago(900)), LIVE),
        (order(COMMITTING, moved_at=ago(900)), LIVE),
        (order(waits_for=WaitsFor.REPAIR), LIVE),
        (order(COMMITTING, waits_for=WaitsFor.REPAIR), LIVE),
    ],
)
def test_an_order_that_is_well_or_has_just_moved_is_left_alone(
    facts: OrderFacts, run: RunState
) -> None:
    assert of_order(facts, run) is None


def test_a_grace_that_is_over_is_over() -> None:
    assert of_order(order(moved_at=ago(120)), DEAD) is not None


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (order(window_ends_at=ago(901)), "open order past its window"),
        (order(COMMITTING, moved_at=ago(901)), "decided order that does not move"),
    ],
)
def test_a_live_order_that_is_stuck_is_told_and_not_touched(facts: OrderFacts, kind: str) -> None:
    found = of_order(facts, LIVE)
    assert found is not None
    assert (found.kind, found.act) == (kind, Act.NONE)
    assert found.before.endswith("its run is running")


@pytest.mark.parametrize(
    ("changes", "act"),
    [
        ({"attempts": 4}, Act.TAKE_UP),
        ({"attempts": 5}, Act.NONE),
        ({"attempts": 5, "is_open": False}, Act.CASE),
        ({"attempts": 4, "is_open": False, "by_hand": True}, Act.NONE),
        ({"attempts": 5, "is_open": True, "by_hand": True}, Act.NONE),
    ],
)
def test_an_order_is_taken_up_a_few_times_before_a_person_is(
    changes: dict[str, Any], act: Act
) -> None:
    found = of_order(order(), DEAD, case(**changes))
    assert found is not None
    assert found.act is act


def test_a_case_about_a_hold_is_none_about_the_order() -> None:
    found = of_order(order(), DEAD, case(f"{XID}/reserve/sweeper", attempts=9))
    assert found is not None
    assert found.act is Act.TAKE_UP


# -- holds


def of_hold(row: Hold, facts: OrderFacts | None, *cases: SweeperCase) -> Finding | None:
    return judge_hold(row, standing(facts, *cases), [DEAD], SWEEP, NOON)


CONFIRMED = order(COMMITTED, status=OrderStatus.CONFIRMED)
REJECTED = order(ABORTED, status=OrderStatus.REJECTED)
REFUNDED = order(COMMITTED, status=OrderStatus.REFUNDED)


@pytest.mark.parametrize(
    ("row", "facts", "act"),
    [
        (hold(), CONFIRMED, Act.CONFIRM),
        (hold("points_hold", "points"), CONFIRMED, Act.CONFIRM),
        (hold("payment", "pay/first"), CONFIRMED, Act.CONFIRM),
        (hold("payment", "pay/second"), CONFIRMED, Act.CANCEL),
        (hold("balance_hold", "pay/first"), CONFIRMED, Act.CONFIRM),
        (hold("balance_hold", "pay/second"), CONFIRMED, Act.CANCEL),
        (hold(), REJECTED, Act.CANCEL),
        (hold("payment", "pay/first"), REJECTED, Act.CANCEL),
        (hold(), REFUNDED, Act.CASE),
    ],
)
def test_a_hold_of_a_closed_order_ends_as_its_decision_says(
    row: Hold, facts: OrderFacts, act: Act
) -> None:
    assert of_hold(row, facts) == Finding(
        kind="open hold of a closed order", xid=XID, key=row.key, act=act, hold=row,
        before=f"{row.kind} TRIED, order {facts.status}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        (hold(), order(OPEN)),
        (hold(), order(COMMITTING)),
        (hold(), order(ABORTED, moved_at=ago(1))),
        (hold(state="CONFIRMED", kept_minor=5), CONFIRMED),
        (hold(state="CONFIRMED"), REJECTED),
        (hold(tried_at=ago(3599)), None),
    ],
)
def test_a_hold_that_somebody_takes_care_of_is_left_alone(
    row: Hold, facts: OrderFacts | None
) -> None:
    assert of_hold(row, facts) is None


@pytest.mark.parametrize("minor", [1, 5])
def test_money_that_an_aborted_order_keeps_becomes_a_case(minor: int) -> None:
    row = hold("payment", "pay/first", state="CANCELLED", kept_minor=minor)
    assert of_hold(row, REJECTED) == Finding(
        kind="capture kept by an aborted order", xid=XID, key=row.key, act=Act.CASE, hold=row,
        before=f"payment CANCELLED, {minor} minor units kept, order REJECTED",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "kind", "before", "act"),
    [
        (hold(tried_at=ago(3600)), "hold without an order",
         "reservation TRIED, no order row, no run", Act.CANCEL),
        (hold(tried_at=None), "hold without an order",
         "reservation TRIED, no order row, no run", Act.CANCEL),
        (hold("payment", "pay/first", state="CONFIRMED", kept_minor=7), "capture without an order",
         "payment CONFIRMED, 7 minor units kept, no order row", Act.CASE),
    ],
)  # fmt: skip
def test_what_no_order_knows_is_given_back_or_put_before_a_person(
    row: Hold, kind: str, before: str, act: Act
) -> None:
    assert of_hold(row, None) == Finding(
        kind=kind, xid=XID, key=row.key, before=before, act=act, hold=row
    )


def test_a_hold_whose_run_lives_without_an_order_row_is_not_touched() -> None:
    row = hold()
    assert judge_hold(row, standing(), [DEAD, LIVE], SWEEP, NOON) == Finding(
        kind="run without an order row", xid=XID, key=row.key, act=Act.CASE, hold=row,
        before="reservation TRIED, no order row, and w runs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "act"),
    [
        ({"attempts": 4}, Act.CANCEL),
        ({"attempts": 5}, Act.NONE),
        ({"attempts": 5, "is_open": False}, Act.CASE),
        ({"attempts": 4, "by_hand": True}, Act.NONE),
        ({"is_open": False, "by_hand": True}, Act.NONE),
        ({"is_open": False}, Act.CANCEL),
    ],
)
def test_a_hold_is_ended_by_a_few_passes_before_a_person_is_asked(
    changes: dict[str, Any], act: Act
) -> None:
    found = of_hold(hold(), REJECTED, case(f"{XID}/reserve/sweeper", **changes))
    assert found is not None
    assert found.act is act


def test_a_case_about_money_is_opened_once() -> None:
    row = hold("payment", "pay/first", state="CONFIRMED", kept_minor=7)
    for changes, act in (({}, Act.NONE), ({"is_open": False}, Act.CASE)):
        found = of_hold(row, REJECTED, case(f"{XID}/pay/first/sweeper", **changes))
        assert found is not None
        assert found.act is act


def test_a_reservation_that_a_paid_order_lost_becomes_a_case() -> None:
    key = f"{XID}/reserve"
    row = Hold(service="inventory", kind="reservation", key=key, state="CANCELLED", opened_on="")
    for facts, told in ((CONFIRMED, "CONFIRMED"), (None, "gone")):
        assert judge_unsold(key, "CANCELLED", standing(facts)) == Finding(
            kind="paid, not deducted", xid=XID, key=key, act=Act.CASE, hold=row,
            before=f"reservation CANCELLED, order {told}",
        )  # fmt: skip


# -- runs and passes


def test_a_run_whose_order_was_lost_is_told() -> None:
    assert judge_run(LIVE, standing()) == Finding(
        kind="run without an order row", xid=XID, key=XID, act=Act.NONE,
        before="w runs, no order row",
    )  # fmt: skip
    assert judge_run(LIVE, standing(order())) is None
    assert judge_run(DEAD, standing()) is None
    assert judge_run(DEAD, standing(order())) is None


def finding(act: Act, *, repaired: bool = False) -> Finding:
    return Finding(kind="k", xid=XID, key=XID, before="b", act=act, repaired=repaired)


def report(*findings: Finding, dry_run: bool = False) -> SweepReport:
    return SweepReport(at=NOON, dry_run=dry_run, findings=findings)


def test_a_report_tells_what_is_done_and_what_is_left() -> None:
    each = [finding(act) for act in Act]
    assert report(*each).acts == tuple(f for f in each if f.act is not Act.NONE)
    done, open_one = finding(Act.CANCEL, repaired=True), finding(Act.CANCEL)
    assert report(done, open_one).left == (open_one,)
    left = {f.act for f in report(*each, dry_run=True).left}
    assert left == {Act.NONE, Act.CASE}


def test_a_long_report_keeps_what_is_left_for_people_and_counts_the_rest() -> None:
    told = [finding(Act.NONE).model_copy(update={"key": f"n-{n}"}) for n in range(MOST_TOLD + 3)]
    done = [
        finding(Act.CANCEL, repaired=True).model_copy(update={"key": f"d-{n}"})
        for n in range(MOST_DONE + 4)
    ]
    case = finding(Act.CASE)
    short = shortened(report(*told, *done, case))
    assert short.findings == (*told[:MOST_TOLD], *done[: MOST_DONE - 1], case)
    assert short.unlisted == 3 + 4 + 1
    assert shortened(short) == short
    assert shortened(report(*told[:3], case)) == report(*told[:3], case)


def test_a_page_of_the_longest_keys_stays_far_below_what_temporal_carries() -> None:
    row = hold(
        "balance_hold", "x" * (300 - len(f"{XID}/")), kept_minor=10**15, state="CONFIRMED",
        tried_at=ago(0.000001),
    )  # fmt: skip
    page = HoldPage(holds=(row,) * PAGE, looked_at=PAGE, next=row.key)
    assert len(row.key) == 300
    assert len(page.model_dump_json()) < 550_000


def test_a_pass_with_too_much_to_repair_repairs_nothing() -> None:
    sweep = Sweep(limit=2)
    few = report(finding(Act.CANCEL), finding(Act.CANCEL), finding(Act.NONE))
    assert why_stop(few, [], sweep) == ""
    many = report(*few.findings, finding(Act.CASE))
    assert "the limit of 2" in why_stop(many, [], sweep)


def test_a_pass_beside_a_temporal_that_knows_no_order_repairs_nothing() -> None:
    sweep, unknown = Sweep(unknown_limit=2), RunState(workflow_id="w")
    assert "none of 2 unfinished orders" in why_stop(report(), [unknown] * 2, sweep)
    assert why_stop(report(), [unknown], sweep) == ""
    assert why_stop(report(), [unknown, unknown, DEAD], sweep) == ""
    assert why_stop(report(), [], sweep) == ""
