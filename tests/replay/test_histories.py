"""Orders that older code has begun go on under today's: each outcome's history is replayed."""

from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from everycent.domain.order import OrderStatus
from everycent.proof.histories import MODES, histories
from everycent.proof.stories import STORIES
from starters.client import DATA_CONVERTER
from tests.replay.edited import NoWindow, OneStepMore, PointsFirst
from workflows.checkout import Checkout

HISTORIES = histories(Path(__file__).parent / "histories")


async def failures(flow: type[Any], of: dict[str, WorkflowHistory]) -> dict[str, Exception]:
    """Replay the histories in the full sandbox; return by story what fails."""
    replayer = Replayer(
        workflows=[flow],
        workflow_runner=SandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
    )
    found = {}
    for name, history in of.items():
        done = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        if done.replay_failure is not None:
            found[name.rsplit("/", 1)[-1]] = done.replay_failure
    return found


def newest(mode: str = "remote") -> dict[str, WorkflowHistory]:
    version = max(HISTORIES).split("/")[0]
    return {name: h for name, h in HISTORIES.items() if name.startswith(f"{version}/{mode}/")}


@pytest.mark.requirement("AC4.4", "I18", "T30")
async def test_every_recorded_order_replays_under_the_code_of_today() -> None:
    """Red when: a step is added to the checkout without `workflow.patched`."""
    assert len(HISTORIES) >= len(STORIES)
    assert await failures(Checkout, HISTORIES) == {}


@pytest.mark.requirement("I18")
@pytest.mark.parametrize("mode", MODES)
def test_every_outcome_has_its_history(mode: str) -> None:
    """Red when: a story is added and `make histories` was not run, or a file is deleted."""
    assert {name.rsplit("/", 1)[-1] for name in newest(mode)} == {story.name for story in STORIES}
    assert {story.status for story in STORIES} == set(OrderStatus) - {OrderStatus.PENDING}


def test_a_history_names_no_machine() -> None:
    for name, history in HISTORIES.items():
        told = history.to_json()
        assert '"identity": "everycent-histories"' in told, name
        assert "stackTrace" not in told, name


@pytest.mark.requirement("AC4.4", "T30")
async def test_one_step_more_is_caught_in_every_history() -> None:
    """Red when: the replay is given no step of the order to compare (the histories are empty)."""
    caught = await failures(OneStepMore, newest())
    assert caught.keys() == {name.rsplit("/", 1)[-1] for name in newest()}
    assert all(isinstance(error, NondeterminismError) for error in caught.values())


@pytest.mark.requirement("AC4.4", "T30")
async def test_steps_that_change_places_are_caught_where_both_are_taken() -> None:
    """Red when: no history has an order that pays with points and reserves stock."""
    caught = await failures(PointsFirst, newest())
    with_points = {s.name for s in STORIES if s.changes.get("points")}
    assert caught.keys() == with_points
    assert all(isinstance(error, NondeterminismError) for error in caught.values())


@pytest.mark.requirement("AC4.4", "T30")
async def test_a_timer_that_is_gone_is_caught_where_the_customer_was_awaited() -> None:
    """Red when: no history waits for another payment."""
    caught = await failures(NoWindow, newest())
    assert caught.keys() == {
        "confirmed-by-second-card", "rejected-after-three-cards", "expired-after-a-declined-card",
    }  # fmt: skip
