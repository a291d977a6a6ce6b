"""An attempt that waits for another company tells that its process lives; none is broken off."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from everycent.settings import Settings
from workers.heartbeats import Heartbeats
from workers.registration import check_registration
from workflows.catalog import PLANS

LIMIT = timedelta(milliseconds=40)
NOTHING = ExecuteActivityInput(fn=lambda: None, args=[], executor=None, headers={})
Work = Callable[[], Awaitable[Any]]


class Inner(ActivityInboundInterceptor):
    """The attempt itself."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        return await self._work()


def environment(limit: timedelta | None) -> tuple[ActivityEnvironment, asyncio.Queue[None]]:
    """Return where attempts run, and its beats."""
    env, beats = ActivityEnvironment(), asyncio.Queue[None]()
    env.info = dataclasses.replace(env.info, heartbeat_timeout=limit)
    env.on_heartbeat = lambda *_: beats.put_nowait(None)
    return env, beats


def attempt(env: ActivityEnvironment, work: Work) -> "asyncio.Task[Any]":
    beating = Heartbeats().intercept_activity(Inner(work))

    async def run() -> Any:
        return await beating.execute_activity(NOTHING)

    return asyncio.create_task(env.run(run))


@pytest.mark.requirement("T19")
async def test_an_attempt_beats_as_long_as_it_lasts() -> None:
    """Red when: nothing beats, or the beats end before the attempt does."""
    env, beats = environment(LIMIT)

    async def work() -> str:
        for _ in range(9):  # More than two time-outs of them.
            await beats.get()
        return "done"

    assert await asyncio.wait_for(attempt(env, work), 30) == "done"


async def test_an_attempt_without_a_heartbeat_time_out_does_not_beat() -> None:
    env, beats = environment(None)

    async def work() -> str:
        return "done"

    assert await attempt(env, work) == "done"
    assert beats.empty()


async def test_an_attempt_that_the_server_gave_up_goes_on_to_its_end() -> None:
    """Red when: the cancellation reaches the attempt, whose call is then without its answer."""
    env, beats = environment(LIMIT)
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        ended.set()

    running = attempt(env, work)
    await beats.get()
    env.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert not ended.is_set()
    go_on.set()
    await asyncio.wait_for(ended.wait(), 30)


@pytest.mark.requirement("AC4.6")
def test_every_step_that_waits_for_another_company_beats() -> None:
    """Red when: a step with talks has no heartbeat time-out: a kill is noticed after minutes."""
    check_registration(Settings())
    talking = [step for plan in PLANS.values() for step in plan.steps if step.talks]
    assert talking
    for step in talking:
        beat = step.options.get("heartbeat_timeout")
        limit = step.options["start_to_close_timeout"]
        assert isinstance(beat, timedelta)
        assert beat < limit
