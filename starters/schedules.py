"""What Temporal starts by itself: the sweeper, every few minutes, one pass at a time."""

from collections.abc import Awaitable, Callable
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
    ScheduleUpdateInput,
)

from everycent.domain.sweep import Sweep
from everycent.domain.sweep_pass import Pass
from starters.sweeping import LONGEST
from workers.queues import SWEEPER
from workflows.sweep_orders import SweepOrders

SWEEPER_SCHEDULE = "everycent-sweeper"
EVERY = timedelta(minutes=5)
_Updater = Callable[[ScheduleUpdateInput], Awaitable[ScheduleUpdate | None]]


async def install_sweeper(
    client: Client, sweep: Sweep | None = None, every: timedelta = EVERY, *, keep: bool = False
) -> None:
    """Have the sweeper run for ever; installed again, it runs as said last.

    `keep` leaves all as it is but where its repairs go: to the workers that are there now.
    """
    sweep = sweep or Sweep()
    schedule = _schedule(sweep, every)
    try:
        await client.create_schedule(SWEEPER_SCHEDULE, schedule)
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(SWEEPER_SCHEDULE)
        if keep:
            await handle.update(_placed(client, together=sweep.together))
        else:
            await handle.update(lambda _: ScheduleUpdate(schedule=schedule))


async def pause_sweeper(client: Client, by: str) -> None:
    """Have the sweeper run no more until it is installed again; a worker's start leaves it so."""
    await client.get_schedule_handle(SWEEPER_SCHEDULE).pause(note=f"paused by {by}")


def _placed(client: Client, *, together: bool) -> _Updater:
    async def update(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
        schedule = found.description.schedule
        assert isinstance(schedule.action, ScheduleActionStartWorkflow)
        [kept] = await client.data_converter.decode(schedule.action.args, [Sweep])
        if kept.together == together:
            return None
        schedule.action.args = [kept.model_copy(update={"together": together})]
        return ScheduleUpdate(schedule=schedule)

    return update


def _schedule(sweep: Sweep, every: timedelta) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            SweepOrders.run,
            Pass.of(sweep),
            id="sweeper/scheduled",
            task_queue=SWEEPER,
            execution_timeout=LONGEST,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        # A pass that was missed needs no making up for: the next one sees it all.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=every),
    )
