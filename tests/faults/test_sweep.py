"""The sweep holds over the checkout, and turns red where a promise is broken on purpose."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from everycent.errors import InvalidRequest
from everycent.proof.sweep.cells import FAULTS
from everycent.proof.sweep.director import Plan
from everycent.proof.sweep.matrix import summary
from everycent.proof.sweep.run import flow_named, sweep_flow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BROKEN = Path(__file__).with_name("broken_worker.py")


def broken(what: str, command: Sequence[str]) -> list[str]:
    """Return the command of a worker as the same worker with one promise broken."""
    python, *_, module = command[:4]
    assert (python, module) == (sys.executable, "everycent")
    return [python, str(BROKEN), what, *command[4:]]


@pytest.mark.requirement("AC2.2", "AC4.3", "AC6.4", "AC6.6", "AC11.1", "T12", "I4")
@pytest.mark.parametrize("flow", ["checkout", "checkout-tcc", "checkout-mixed"])
async def test_every_kind_of_fault_leaves_every_invariant_whole(flow: str) -> None:
    """Red when: any promise of the fence, the saga or the decision is broken (see below)."""
    report = await sweep_flow(flow, Plan(sample=1), say=print)
    told = [f"{c.fault} at {c.boundary}, {c.outcome}: {c.how}" for c in report.broken]
    assert told == []
    stood = {cell.fault for cell in report.cells if cell.stood}
    assert stood == {fault.name for fault in FAULTS}, summary(report)


@pytest.mark.requirement("AC2.2", "AC4.3", "T12", "I4")
@pytest.mark.parametrize(
    ("what", "fault", "point"),
    [("tombstone", "overtaken", "activity.before"), ("undo", "Bug", "activity.after")],
)
async def test_a_broken_promise_turns_a_cell_red(what: str, fault: str, point: str) -> None:
    """A Cancel that leaves no tombstone, and an undo that is registered after its action.

    Red when: the sweep does not audit, or does not wait for what is delivered late.
    """
    plan = Plan(("card",), (fault,), (point,), ("inventory.reserve_stock",))
    report = await sweep_flow("checkout", plan, print, lambda command: broken(what, command))
    [cell] = report.cells
    assert cell.stood
    assert not cell.held
    assert "stock" in cell.how


# Those after which nobody's patience has to end.
QUICK = (
    "Transient", "Unknown", "Bug", "delivered twice", "delivered late", "overtaken",
    "cancelled here", "session ended", "COMMIT lost", "COMMIT's reply lost",
)  # fmt: skip
MESSAGES = ("message.before", "message.after", "commit.before", "commit.after")


@pytest.mark.requirement("AC3.2", "AC6.6", "AC11.1", "T12", "I4")
async def test_faults_of_messages_leave_every_invariant_whole() -> None:
    """Relays and consumers of choreographed orders; the slow faults are in the whole sweep.

    Red when: a message is noted as consumed in another transaction than its effect.
    """
    plan = Plan(("points", "declined", "stock gone"), QUICK, MESSAGES, sample=1)
    report = await sweep_flow("checkout-choreographed", plan, say=print)
    told = [f"{c.fault} at {c.boundary}, {c.outcome}: {c.how}" for c in report.broken]
    assert told == []
    assert {cell.fault for cell in report.cells if cell.stood} == set(QUICK), summary(report)


def test_a_flow_without_outcomes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="package"):
        flow_named("nothing")
