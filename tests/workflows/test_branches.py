"""Flows of a user's over participants: refusals, lost runs, cancellations, and our own services."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import CancelledError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

with workflow.unsafe.imports_passed_through():
    from activities.account import AccountActivities
    from activities.inventory import InventoryActivities
    from activities.points import PointsActivities
    from everycent.domain.inventory import StockLine
    from everycent.domain.participant import CancelBranch, ConfirmBranch
    from everycent.errors import EverycentError
    from everycent.kit import (
        BALANCE,
        POINTS,
        STOCK,
        Branches,
        Counted,
        NotDone,
        TakeUnits,
        all_or_nothing,
        fence_tables,
        hold,
        participant_workers,
    )
    from everycent.stack.postgres import PostgresServer
    from tests.workflows.conftest import Shop
    from workers.composition import activities_of
    from workers.queues import finishes, tries

PARTS = [Counted(name, service="trips") for name in ("room", "flight", "car")]
STEPS = [hold(each) for each in PARTS]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@dataclass
class Trip:
    """What to take one unit of, and whether to wait for a word before the third."""

    item: str = "PARIS"
    waits: bool = False


@workflow.defn(name="trip-of-branches")
class TakeTrip:
    def __init__(self) -> None:
        self._may_go_on = False
        self._taken = 0

    @workflow.run
    async def run(self, trip: Trip) -> str | NotDone:
        async def story(branches: Branches) -> str:
            for step in STEPS:
                if step is STEPS[2] and trip.waits:
                    await workflow.wait_condition(lambda: self._may_go_on)
                await branches.take(step, item=trip.item)
                self._taken += 1
            return "bon voyage"

        return await all_or_nothing(story)

    @workflow.signal
    def go_on(self) -> None:
        self._may_go_on = True

    @workflow.query
    def taken(self) -> int:
        return self._taken


@workflow.defn(name="gift")
class BuyGift:
    @workflow.run
    async def run(self, units: int) -> str | NotDone:
        async def story(branches: Branches) -> str:
            line = StockLine(sku="LAMP", units=units)
            await branches.take(BALANCE, account="a-1", currency="EUR", amount_minor=500)
            await branches.take(POINTS, customer="c-1", points=7)
            await branches.take(STOCK, lines=(line,))
            return "bought"

        return await all_or_nothing(story)


@dataclass
class Agency:
    """A tenant's rooms, flights and cars, and a way to travel."""

    tenant: str
    engine: AsyncEngine
    client: Any

    async def start(self, order: str = "o-1", **trip: Any) -> Any:
        return await self.client.start_workflow(
            TakeTrip.run,
            Trip(**trip),
            id=f"trip/{self.tenant}/{order}",
            task_queue="trips",
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        )

    async def by_hand(self, operation: str, part: Counted, order: str = "o-1") -> Any:
        """Do what another run of the transaction did."""
        kinds: dict[str, Any] = {"tries": TakeUnits, "confirms": ConfirmBranch,
                                 "cancels": CancelBranch}  # fmt: skip
        fields = {"item": "PARIS"} if operation == "tries" else {}
        request = kinds[operation].of(f"{self.tenant}/{order}", part.name, at=NOON, **fields)
        async with self.engine.begin() as tx:
            [answer] = await getattr(part, operation)(tx, [request])
        assert not isinstance(answer, EverycentError)
        return answer

    async def parts(self, item: str = "PARIS") -> list[tuple[int, int, int]]:
        found = []
        async with self.engine.connect() as tx:
            for part in PARTS:
                rows = await tx.execute(
                    text(f"SELECT free, held, used FROM {part.name}_counter"
                         " WHERE tenant = :t AND item = :i"),
                    {"t": self.tenant, "i": item},
                )  # fmt: skip
                found += [tuple(row) for row in rows]
        return found


@pytest.fixture(scope="module")
async def database(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    name = f"trips_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    url = make_url(postgres.dsn(name)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)
    async with engine.begin() as tx:
        for statement in (*fence_tables(), *(s for part in PARTS for s in part.tables())):
            await tx.execute(text(statement))
    yield engine
    await engine.dispose()


@pytest.fixture
async def agency(temporal: Any, database: AsyncEngine, tenant: str) -> AsyncIterator[Agency]:
    async with database.begin() as tx:
        for part in PARTS:
            await part.allow(tx, tenant, "PARIS", 5)
            await part.allow(tx, tenant, "ROME", 0 if part.name == "car" else 5)
    dsn = database.url.render_as_string(hide_password=False)
    async with participant_workers(temporal.client, dsn, PARTS) as workers:
        flow = Worker(
            temporal.client,
            task_queue="trips",
            workflows=[TakeTrip],
            workflow_runner=SandboxedWorkflowRunner(),
        )
        async with workers[0], workers[1], flow:
            yield Agency(tenant, database, temporal.client)


async def _taken(handle: Any, count: int) -> None:
    async with asyncio.timeout(30):
        while await handle.query(TakeTrip.taken) < count:
            await asyncio.sleep(0.02)


ALL_BACK, ALL_USED = [(5, 0, 0)] * 3, [(4, 0, 1)] * 3


@pytest.mark.requirement("AC14.5", "AC6.4")
async def test_a_flow_takes_all_or_gives_all_back(agency: Agency) -> None:
    """Red when: what was held before a refusal stays held, or the end confirms less than all."""
    assert await (await agency.start("o-1")).result() == "bon voyage"
    assert await agency.parts() == ALL_USED
    refused = await (await agency.start("o-2", item="ROME")).result()
    assert refused.step == "try car"
    assert refused.refusal["kind"] == "not_enough"
    assert await agency.parts("ROME") == [(5, 0, 0), (5, 0, 0), (0, 0, 0)]


@pytest.mark.requirement("AC13.2")
async def test_a_cancelled_flow_gives_back_and_its_late_try_is_refused(agency: Agency) -> None:
    """Red when: a cancellation of the run ends it without its undos, or no tombstone is left."""
    handle = await agency.start(waits=True)
    await _taken(handle, 2)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert await agency.parts() == ALL_BACK
    with pytest.raises(AssertionError):
        await agency.by_hand("tries", PARTS[0])


@pytest.mark.requirement("AC6.6")
async def test_a_run_that_is_cancelled_goes_on_with_what_a_lost_run_has_confirmed(
    agency: Agency,
) -> None:
    """The lost run had tried all and confirmed the first: there is no way back for any run.

    Red when: the branches are undone newest first alone, so that one is used and two are free.
    """
    for part in PARTS:
        await agency.by_hand("tries", part)
    await agency.by_hand("confirms", PARTS[0])
    handle = await agency.start(waits=True)
    await _taken(handle, 2)
    await handle.cancel()
    await handle.signal(TakeTrip.go_on)
    assert await handle.result() == "bon voyage"
    assert await agency.parts() == ALL_USED


@pytest.mark.requirement("AC6.6")
async def test_a_run_that_has_tried_all_gives_back_what_another_run_has_cancelled(
    agency: Agency,
) -> None:
    """Red when: the first branch is not confirmed before the others."""
    handle = await agency.start(waits=True)
    await _taken(handle, 2)
    await agency.by_hand("cancels", PARTS[0])
    await handle.signal(TakeTrip.go_on)
    ended = await handle.result()
    assert isinstance(ended, NotDone)
    assert await agency.parts() == ALL_BACK


@pytest.fixture
def together() -> bool:
    return False


@pytest.mark.requirement("AC14.2")
@pytest.mark.parametrize(("units", "sold"), [(2, True), (99, False)])
async def test_the_ready_made_resources_are_branches_of_a_users_flow(
    shop: Shop, units: int, sold: bool
) -> None:
    """Balance, points and stock of our own services, by three names.

    Red when: a name or a queue of a ready-made step is not that of its service.
    """
    await shop.receive(10)
    await shop.deposit("a-1", 1000)
    await shop.grant_points("c-1", 50)
    flow = Worker(
        shop.client,
        task_queue="gifts",
        workflows=[BuyGift],
        workflow_runner=SandboxedWorkflowRunner(),
    )
    async with flow:
        ended = await shop.client.execute_workflow(
            BuyGift.run, units, id=f"gift/{shop.tenant}/o-1", task_queue="gifts"
        )
    assert (ended == "bought") is sold, ended
    assert await shop.stock() == {"free": 8, "held": 0, "sold": 2} if sold else {
        "free": 10, "held": 0, "sold": 0,
    }  # fmt: skip
    query = "SELECT available, frozen FROM account WHERE tenant = :t"
    [balance] = await shop.reader.rows("account", query, t=shop.tenant)
    assert balance == {"available": 500 if sold else 1000, "frozen": 0}


def test_a_ready_made_step_is_that_of_its_service() -> None:
    """Red when: an activity of ours gets another name, request or answer, or another queue."""
    nouns = {"account": AccountActivities, "inventory": InventoryActivities,
             "points": PointsActivities}  # fmt: skip
    for step, service in ((BALANCE, "account"), (STOCK, "inventory"), (POINTS, "points")):
        served = {
            vars(method)["__temporal_activity_definition"].name: method
            for method in activities_of(nouns[service])
        }
        assert step.confirm is not None
        assert step.undo is not None
        for each in (step, step.confirm, step.undo):
            definition = vars(each.activity)["__temporal_activity_definition"]
            real = vars(served[definition.name])["__temporal_activity_definition"]
            assert (definition.arg_types, definition.ret_type) == (real.arg_types, real.ret_type)
        assert (step.queue, step.undo.queue) == (tries(service), finishes(service))
