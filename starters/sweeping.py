"""The sweeper's starters: one pass now, or a look that changes nothing and needs no worker."""

from datetime import timedelta

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from everycent import clock
from everycent.database import sweep_reads
from everycent.database.reads import Reader
from everycent.domain.sweep import HoldService, RunState, Standing, Sweep, SweepReport
from everycent.domain.sweep_pass import Pass
from everycent.domain.sweep_questions import (
    HoldPage,
    HoldsOf,
    KeyPage,
    KeyStates,
    Rows,
    Running,
    RunningPage,
    StandingsOf,
    Unfinished,
    UnfinishedPage,
    WorkflowIds,
)
from everycent.errors import Unknown
from everycent.gateways.runs import describe_runs, list_running
from starters.refusals import TooLateError
from workers.queues import SWEEPER
from workflows.catalog import FLOW_NAMES
from workflows.sweep_look import look
from workflows.sweep_orders import SweepOrders

ONCE = "sweeper/once"
LONGEST = timedelta(hours=1)  # A pass that takes longer leaves the rest to the next.


async def sweep_now(
    client: Client, sweep: Sweep, *, queue: str = SWEEPER, workflow_id: str = ONCE
) -> SweepReport:
    """Run one pass in the sweeper's worker and return what it found and did.

    Raises TooLateError while another such pass runs.
    """
    try:
        return await client.execute_workflow(
            SweepOrders.run,
            Pass.of(sweep),
            id=workflow_id,
            task_queue=queue,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            execution_timeout=LONGEST,
        )
    except WorkflowAlreadyStartedError as error:
        raise TooLateError("another pass of the sweeper runs; see `everycent sweeper`") from error
    except WorkflowFailureError as error:
        raise Unknown(f"the pass did not end: {error.cause}") from error


async def look_only(client: Client, reader: Reader, sweep: Sweep) -> SweepReport:
    """Look as a pass does, through read-only roles, and change nothing; no worker is needed."""
    dry = sweep.model_copy(update={"dry_run": True})
    return await look(_ReaderEyes(client, reader), dry, clock.now(), FLOW_NAMES)


class _ReaderEyes:
    """Asks the databases by read-only roles, and Temporal by a client."""

    def __init__(self, client: Client, reader: Reader) -> None:
        self._client = client
        self._reader = reader

    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        async with self._reader.database("order").snapshot() as tx:
            return await sweep_reads.unfinished(tx, asked)

    async def standings(self, asked: StandingsOf) -> list[Standing]:
        async with self._reader.database("order").snapshot() as tx:
            return await sweep_reads.standings(tx, asked)

    async def confirmed_orders(self, asked: Rows) -> KeyPage:
        async with self._reader.database("order").snapshot() as tx:
            return await sweep_reads.confirmed_orders(tx, asked)

    async def strangers(self, asked: StandingsOf) -> StandingsOf:
        async with self._reader.database("order").snapshot() as tx:
            return await sweep_reads.strangers(tx, asked)

    async def holds(self, service: HoldService, asked: Rows) -> HoldPage:
        async with self._reader.database(service).snapshot() as tx:
            return await sweep_reads.holds(tx, service, asked)

    async def holds_of(self, service: HoldService, asked: HoldsOf) -> HoldPage:
        async with self._reader.database(service).snapshot() as tx:
            return await sweep_reads.holds_of(tx, service, asked)

    async def unsold(self, asked: StandingsOf) -> KeyStates:
        async with self._reader.database("inventory").snapshot() as tx:
            return await sweep_reads.unsold(tx, asked)

    async def runs(self, asked: WorkflowIds) -> list[RunState]:
        return await describe_runs(self._client, asked.workflow_ids)

    async def running(self, asked: Running) -> RunningPage:
        return await list_running(self._client, asked)
