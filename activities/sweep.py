"""The sweeper's eyes: it reads each service in a lane of its own, and asks Temporal by id."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity

from activities.boundary import errors_for_temporal
from everycent.database import sweep_reads
from everycent.database.engine import Database
from everycent.domain.sweep import HoldService, RunState, Standing
from everycent.domain.sweep_questions import (
    EndRun,
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
from everycent.gateways.runs import describe_runs, end_stuck_run, list_running

_AT_ONCE = 10


class OrderSweepActivities:
    """What the order's database is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="sweep.unfinished")
    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        """Name unfinished orders that have stood still."""
        async with _reading(self._database) as tx:
            return await sweep_reads.unfinished(tx, asked)

    @activity.defn(name="sweep.standings")
    async def standings(self, asked: StandingsOf) -> list[Standing]:
        """Tell how orders stand."""
        async with _reading(self._database) as tx:
            return await sweep_reads.standings(tx, asked)

    @activity.defn(name="sweep.confirmed_orders")
    async def confirmed_orders(self, asked: Rows) -> KeyPage:
        """Name the confirmed orders."""
        async with _reading(self._database) as tx:
            return await sweep_reads.confirmed_orders(tx, asked)

    @activity.defn(name="sweep.strangers")
    async def strangers(self, asked: StandingsOf) -> StandingsOf:
        """Name the orders that may keep no money."""
        async with _reading(self._database) as tx:
            return await sweep_reads.strangers(tx, asked)


class HoldSweepActivities:
    """What the database of a service with holds is asked."""

    def __init__(self, database: Database, service: HoldService) -> None:
        self._database = database
        self._service = service

    @activity.defn(name="sweep.holds")
    async def holds(self, asked: Rows) -> HoldPage:
        """Name what is open, or keeps money."""
        async with _reading(self._database) as tx:
            return await sweep_reads.holds(tx, self._service, asked)

    @activity.defn(name="sweep.holds_of")
    async def holds_of(self, asked: HoldsOf) -> HoldPage:
        """Look at holds once more."""
        async with _reading(self._database) as tx:
            return await sweep_reads.holds_of(tx, self._service, asked)

    @activity.defn(name="sweep.confirmed_of")
    async def confirmed_of(self, asked: StandingsOf) -> KeyPage:
        """Name what of these orders is confirmed."""
        async with _reading(self._database) as tx:
            return await sweep_reads.confirmed_of(tx, self._service, asked)

    @activity.defn(name="sweep.unsold")
    async def unsold(self, asked: StandingsOf) -> KeyStates:
        """Name the reservations of these orders that are not sold; of the inventory alone."""
        async with _reading(self._database) as tx:
            return await sweep_reads.unsold(tx, asked)


class RunSweepActivities:
    """What Temporal is asked."""

    @activity.defn(name="sweep.runs")
    async def runs(self, asked: WorkflowIds) -> list[RunState]:
        """Tell how workflows stand."""
        return await describe_runs(activity.client(), asked.workflow_ids)

    @activity.defn(name="sweep.end_run")
    async def end_run(self, asked: EndRun) -> str:
        """End a run whose task fails for ever, so that its order can be taken up."""
        return await end_stuck_run(activity.client(), asked)

    @activity.defn(name="sweep.running")
    async def running(self, asked: Running) -> RunningPage:
        """Name orders' runs that have lived for a while; a list, so each is described after it."""
        return await list_running(activity.client(), asked)


@asynccontextmanager
async def _reading(database: Database) -> AsyncIterator[AsyncConnection]:
    with errors_for_temporal():
        async with database.snapshot() as tx:
            yield tx
