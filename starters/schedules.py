"""What Temporal starts by itself: the sweeper, every few minutes, one pass at a time."""

from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)

from everycent.domain.sweep import Sweep
from starters.sweeping import LONGEST
from workers.queues import SWEEPER
from workflows.sweep_orders import SweepOrders

SWEEPER_SCHEDULE = "everycent-sweeper"
EVERY = timedelta(minutes=5)


async def install_sweeper(
    client: Client, sweep: Sweep | None = None, every: timedelta = EVERY, *, keep: bool = False
) -> None:
    """Have the sweeper run for ever; installed again, it runs as said last, or `keep`s as it is."""
    schedule = _schedule(sweep or Sweep(), every)
    try:
        await client.create_schedule(SWEEPER_SCHEDULE, schedule)
    except ScheduleAlreadyRunningError:
        if not keep:
            handle = client.get_schedule_handle(SWEEPER_SCHEDULE)
            await handle.update(lambda _: ScheduleUpdate(schedule=schedule))


async def pause_sweeper(client: Client, by: str) -> None:
    """Have the sweeper run no more until it is installed again; a worker's start leaves it so."""
    await client.get_schedule_handle(SWEEPER_SCHEDULE).pause(note=f"paused by {by}")


def _schedule(sweep: Sweep, every: timedelta) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            SweepOrders.run,
            sweep,
            id="sweeper/scheduled",
            task_queue=SWEEPER,
            execution_timeout=LONGEST,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        # A pass that was missed needs no making up for: the next one sees it all.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=every),
    )
