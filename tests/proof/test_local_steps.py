"""How long a step took that ran where the run is: of recorded runs, by what their markers tell."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse

from everycent.proof.fetched_run import FetchedRun, LocalClock
from everycent.proof.histories import histories
from everycent.proof.run_story import retell
from everycent.proof.timeline import Event, Kind
from starters.client import DATA_CONVERTER

RECORDED = histories(Path(__file__).parents[1] / "replay" / "histories")
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


async def steps_of(name: str) -> dict[str, Event]:
    history = RECORDED[f"0.1.0/together/{name}"]
    run = FetchedRun(
        workflow_id=name,
        run_id=name,
        status="completed",
        started_at=NOON,
        closed_at=None,
        description=DescribeWorkflowExecutionResponse(),
        events=tuple(history.events),
    )
    [story] = await retell([run], DATA_CONVERTER)
    return {event.what: event for event in story.events if event.kind is Kind.STEP}


@pytest.mark.requirement("AC20.5")
async def test_a_local_step_took_what_its_marker_says() -> None:
    """By hand: a marker's end minus the start of its task, or the end of the step before it.

    Red when: the worker's clock is taken for the run's, which runs ahead of it: all would be 0.
    """
    steps = await steps_of("confirmed-with-points")
    told = {name: round((steps[name].lasted_seconds or 0) * 1000, 1) for name in steps}
    assert told["open the order"] == 11.2  # The second one: after the decision.
    assert (told["hold the stock"], told["hold the points"]) == (145.3, 338.7)
    assert told["decide COMMITTING"] == 7.6
    at_once = [told[n] for n in ("sell the stock", "use the points", "book the sale")]
    assert at_once == [107.6, 124.4, 141.0]  # Asked for at once, so all from the task's start.
    assert told["close as CONFIRMED"] == 41.1


@pytest.mark.requirement("AC20.5")
async def test_no_step_of_any_recorded_run_took_nothing() -> None:
    """Red when: what is not known is told as 0, or as less."""
    for name in RECORDED:
        if "/together/" in name:
            for step in (await steps_of(name.rsplit("/", 1)[-1])).values():
                assert step.lasted_seconds is None or step.lasted_seconds > 0, (name, step.what)


def test_what_the_marker_does_not_tell_has_no_length() -> None:
    """Red when: a repeated step, or one that outlived its task, is given a length."""
    second = timedelta(seconds=1)
    clock = LocalClock()
    assert clock.lasted(NOON, NOON + second, 1) is None  # No task has begun.
    clock.woken(NOON)
    assert clock.lasted(NOON, NOON + second, 1) == 1
    assert clock.lasted(NOON, NOON + second, 2) is None
    clock.woken(NOON + 9 * second)
    assert clock.lasted(NOON, NOON + 10 * second, 1) is None
