"""A small flow that is asked and told things; as a program, a worker of it that is killed."""

import asyncio
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE, STEPS = "asked", "asked-steps"
DEAD_SECONDS = 3  # So long the server waits for a worker that has died.
_PATIENCE = timedelta(seconds=60)


@activity.defn
async def slow() -> None:
    """Take as long as the test wants; its worker has an activity of this name."""
    raise NotImplementedError


@activity.defn
async def quick() -> None:
    """Do nothing."""


async def _step(name: str) -> None:
    await workflow.execute_activity(name, task_queue=STEPS, start_to_close_timeout=_PATIENCE)


@workflow.defn
class Asked:
    """Two steps of its own, and one for who pays; then it waits for its end."""

    def __init__(self) -> None:
        self._ended = False

    @workflow.run
    async def run(self) -> str:
        await _step("slow")
        workflow.upsert_memo({"slow": "done"})
        await _step("quick")
        await workflow.wait_condition(lambda: self._ended)
        return "ended"

    @workflow.update
    async def pay(self) -> str:
        await _step("quick")
        return "paid"

    @workflow.query
    def progress(self) -> str:
        return "asked"

    @workflow.signal
    def end(self) -> None:
        self._ended = True


async def work(address: str) -> None:
    """Be its worker until the process is killed."""
    async with Worker(
        await Client.connect(address),
        task_queue=QUEUE,
        workflows=[Asked],
        workflow_runner=UnsandboxedWorkflowRunner(),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=DEAD_SECONDS),
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
