"""What the sweeper makes of a run whose workflow task fails, without Temporal."""

import pytest

from everycent.domain.order import Decision, WaitsFor
from everycent.domain.sweep import Act, RunState, SweeperCase, TaskFailure, judge_order, judge_run
from tests.domain.test_sweep_decisions import (
    COMMITTED,
    LIVE,
    NOON,
    SWEEP,
    ago,
    case,
    of_order,
    order,
    standing,
)


def failing(seconds: float = 120, status: str = "running", *, for_good: bool = True) -> RunState:
    failure = TaskFailure(since=ago(seconds), why="cause", nondeterministic=for_good)
    return RunState(workflow_id="w", status=status, run_id="r", task_failure=failure)


@pytest.mark.parametrize(
    ("run", "cases", "act"),
    [
        (failing(), (), Act.TAKE_UP),
        (failing(), (case(attempts=4),), Act.TAKE_UP),
        (failing(), (case(attempts=5, is_open=False),), Act.CASE),
        (failing(), (case(by_hand=True),), Act.NONE),
        (failing(for_good=False), (), Act.NONE),
    ],
)
def test_a_run_whose_task_fails_is_replaced_only_if_its_history_is_wrong(
    run: RunState, cases: tuple[SweeperCase, ...], act: Act
) -> None:
    for facts in (order(), order(waits_for=WaitsFor.REPAIR)):
        found = of_order(facts, run, *cases)
        assert found is not None
        assert (found.kind, found.act) == ("run whose tasks fail", act)
        assert found.run == (run if act is Act.TAKE_UP else None)
        assert found.before.endswith("running, its task fails since 2026-01-02 11:58:00: cause")
        assert found.back_minor == 0
    closed = judge_run(run, standing(order(COMMITTED), *cases), SWEEP, NOON)
    assert closed is not None
    assert closed.act is act


def test_a_run_that_fails_not_yet_for_long_or_is_paused_or_has_a_living_twin_is_left_alone() -> (
    None
):
    waits = order(waits_for=WaitsFor.PAYMENT, window_ends_at=ago(-9))
    for run in (failing(119), failing(status="paused")):
        assert of_order(waits, run) is None
        assert judge_run(run, standing(order(COMMITTED)), SWEEP, NOON) is None
    both = {"w": failing(), "other": LIVE}
    assert judge_order(standing(waits), both, SWEEP, NOON) is None


def test_a_failing_run_that_is_replaced_to_undo_its_order_gives_its_total_back() -> None:
    found = of_order(order(Decision.ABORTING, total_minor=2933, currency="EUR"), failing())
    assert found is not None
    assert (found.back_minor, found.currency) == (2933, "EUR")
