"""What the sweeper makes of an order, a hold or a run, without Temporal and without a database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everycent.domain.order import Decision, OrderStatus, WaitsFor
from everycent.domain.sweep import (
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
)

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
        (order(window_ends_at=ago(900), moved_at=ago(900)), LIVE),
        (order(window_ends_at=ago(900), waits_for=WaitsFor.PAYMENT), LIVE),
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
        (order(window_ends_at=ago(901), waits_for=WaitsFor.PAYMENT), "open order past its window"),
        (order(window_ends_at=ago(-9), moved_at=ago(901)), "open order that does not move"),
        (order(COMMITTING, moved_at=ago(901)), "decided order that does not move"),
        (
            order(COMMITTING, moved_at=ago(901), window_ends_at=ago(-9)),
            "decided order that does not move",
        ),
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


@pytest.mark.parametrize(("withdrawn", "act"), [(False, None), (True, Act.CANCEL)])
def test_an_order_that_has_just_moved_has_its_grace_and_a_withdrawn_id_needs_none(
    withdrawn: bool, act: Act | None
) -> None:
    """Its run may still be at work; on a withdrawn id no run is."""
    facts = REJECTED.model_copy(update={"moved_at": ago(1), "withdrawn": withdrawn})
    found = of_hold(hold(), facts)
    assert (found and found.act) == act


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
    for facts in (REJECTED, None):
        found = of_hold(hold(), facts, case(f"{XID}/reserve/sweeper", **changes))
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


def began(seconds: float, status: str = "running") -> RunState:
    return RunState(workflow_id="w", status=status, started_at=ago(seconds))


@pytest.mark.parametrize(
    ("run", "cases", "act"),
    [
        (LIVE, (), Act.NONE),
        (began(899), (), Act.NONE),
        (began(900), (), Act.CASE),
        (began(900, "paused"), (), Act.CASE),
        (began(900), (case(),), Act.NONE),
        (began(900), (case(is_open=False),), Act.CASE),
        (began(900), (case(f"{XID}/reserve/sweeper"),), Act.CASE),
    ],
)
def test_a_run_whose_order_was_lost_is_told_and_becomes_a_case_when_it_stays_so(
    run: RunState, cases: tuple[SweeperCase, ...], act: Act
) -> None:
    assert judge_run(run, standing(None, *cases), SWEEP, NOON) == Finding(
        kind="run without an order row", xid=XID, key=XID, act=act,
        before="w runs, no order row",
    )  # fmt: skip


def test_a_run_whose_order_is_there_or_that_has_ended_is_well() -> None:
    for run, facts in ((began(900), order()), (DEAD, None), (DEAD, order())):
        assert judge_run(run, standing(facts), SWEEP, NOON) is None


# -- what an act gives back


@pytest.mark.parametrize(
    ("facts", "back"),
    [
        (order(Decision.ABORTING), (2933, "EUR")),
        (order(window_ends_at=NOON), (2933, "EUR")),
        (order(window_ends_at=ago(-1)), (0, "")),
        (order(COMMITTING), (0, "")),
    ],
)
def test_an_order_that_is_taken_up_to_be_undone_gives_its_total_back(
    facts: OrderFacts, back: tuple[int, str]
) -> None:
    priced = facts.model_copy(update={"total_minor": 2933, "currency": "EUR"})
    found = of_order(priced, DEAD)
    assert found is not None
    assert (found.act, found.back_minor, found.currency) == (Act.TAKE_UP, *back)
    told = of_order(priced.model_copy(update={"moved_at": ago(901)}), LIVE)
    assert told is None or told.back_minor == 0
    given_up = of_order(priced, DEAD, case(attempts=9))
    assert given_up is not None
    assert (given_up.act, given_up.back_minor) == (Act.NONE, 0)


def test_a_hold_that_is_cancelled_gives_its_amount_back_and_no_other_does() -> None:
    row = hold("balance_hold", "pay/first", amount_minor=500, currency="EUR")
    seen = {
        found.act: (found.back_minor, found.currency)
        for facts in (REJECTED, CONFIRMED, REFUNDED, None)
        if (found := of_hold(row, facts))
    }
    assert seen == {Act.CANCEL: (500, "EUR"), Act.CONFIRM: (0, ""), Act.CASE: (0, "")}
    for row in (hold(), hold(amount_minor=5), hold(currency="EUR")):
        nothing = of_hold(row, REJECTED)
        assert nothing is not None
        assert (nothing.back_minor, nothing.currency) == (0, "")


# -- reports


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
