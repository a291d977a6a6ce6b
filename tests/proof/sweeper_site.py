"""The sweeper's own worker beside the workers of the workflow tests, and ways to lose a run."""

import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from everycent.database import inventory
from everycent.database.engine import Database
from everycent.domain.inventory import ReserveStock, StockLine
from everycent.domain.order import PlaceOrder
from everycent.domain.sweep import Act, Sweep, SweepReport
from everycent.proof.audit import audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.provider_books import SimulatorBooks
from everycent.settings import SERVICES, ServiceName, Settings
from everycent.stack.temporal import DYNAMIC_CONFIG, SEARCH_ATTRIBUTES
from starters.client import DATA_CONVERTER
from starters.sweeping import sweep_now
from tests.workflows.conftest import Shop
from workers.composition import activities_of, sweep_reads_of, sweeper_worker
from workers.queues import sweeps

ReadsOf = Callable[[ServiceName], Callable[[Database], object] | None]
Lose = Callable[[Client, PlaceOrder], Awaitable[None]]


@contextlib.asynccontextmanager
async def sweeping(
    client: Client, databases: dict[ServiceName, Database], reads_of: ReadsOf = sweep_reads_of
) -> AsyncIterator[None]:
    """Run the sweeper's workers, its workflow in the full sandbox."""
    async with contextlib.AsyncExitStack() as stack:
        for service in SERVICES:
            if reads := reads_of(service):
                await stack.enter_async_context(
                    Worker(
                        client,
                        task_queue=sweeps(service),
                        activities=activities_of(reads(databases[service])),
                    )
                )
        await stack.enter_async_context(sweeper_worker(client, runner=SandboxedWorkflowRunner()))
        yield


async def sweep(shop: Shop, **changes: object) -> SweepReport:
    """Run a pass over this shop that waits for nothing; it has an id of its own."""
    wanted = Sweep.model_validate(
        {"tenant": shop.tenant, "grace_seconds": 0, "hold_grace_seconds": 0}
        | {"together": shop.together}
        | changes
    )
    return await sweep_now(shop.client, wanted, workflow_id=f"sweeper/{uuid.uuid4().hex}")


async def terminate(client: Client, order: PlaceOrder) -> None:
    """End the order's run as `temporal workflow terminate` does."""
    await client.get_workflow_handle(order.workflow_id()).terminate(reason="lost by the test")


async def delete(client: Client, order: PlaceOrder) -> None:
    """Delete the order's run as `temporal workflow delete` does, and see it gone."""
    handle = client.get_workflow_handle(order.workflow_id())
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
        )
    )
    with contextlib.suppress(RPCError):
        while (await handle.describe()).status is WorkflowExecutionStatus.RUNNING:
            pass


async def is_gone(client: Client, order: PlaceOrder) -> bool:
    """Tell whether Temporal knows no run of the order."""
    try:
        await client.get_workflow_handle(order.workflow_id()).describe()
    except RPCError as error:
        return error.status is RPCStatusCode.NOT_FOUND
    return False


@pytest.fixture(scope="module")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A whole Temporal server: here runs are terminated, deleted, paused and listed."""
    async with temporal_server("frontend.WorkflowPauseEnabled=true") as env:
        yield env


@contextlib.asynccontextmanager
async def temporal_server(*more: str) -> AsyncIterator[WorkflowEnvironment]:
    """Run a whole server with `more` dynamic settings than a stack gives its own."""
    attributes = [f"--search-attribute={name}={kind}" for name, kind in SEARCH_ATTRIBUTES.items()]
    settings = [f"--dynamic-config-value={setting}" for setting in (*DYNAMIC_CONFIG, *more)]
    env = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_extra_args=[*attributes, *settings],
        data_converter=DATA_CONVERTER,
    )
    yield env
    await env.shutdown()


@pytest.fixture(autouse=True, scope="module")
async def sweeper(
    temporal: WorkflowEnvironment, databases: dict[ServiceName, Database]
) -> AsyncIterator[None]:
    async with sweeping(temporal.client, databases):
        yield


@pytest.fixture
def together() -> bool:
    """Where the orders have their database steps: apart, unless a test says otherwise."""
    return False


async def audit_of(shop: Shop, settings: Settings) -> list[str]:
    """Return the broken rules of this shop."""
    report = await audit(
        settings,
        tenant=shop.tenant,
        drivers=TemporalDrivers(shop.client),
        provider=SimulatorBooks(shop.provider),
    )
    return [f"{r.name}: {r.first_offender} {r.detail}" for r in report.rules if r.offenders]


def acts(report: SweepReport) -> set[tuple[str, Act]]:
    """Return what a pass did, or would do, to what."""
    return {(finding.key, finding.act) for finding in report.acts}


async def fill(shop: Shop) -> None:
    """Give the shop stock, a balance and points."""
    await shop.receive(500)
    await shop.deposit("a-1", 1_000_000)
    await shop.grant_points("c-1", 100_000)


async def hold_without_order(shop: Shop) -> None:
    """Hold three units as a step of an order that was never written down."""
    now = datetime.now(UTC)
    request = ReserveStock(
        key=f"{shop.tenant}/ghost/reserve",
        at=now,
        opened_on=now.date(),
        lines=(StockLine(sku="LAMP", units=3),),
    )
    async with shop.databases["inventory"].transaction() as tx:
        await inventory.reserve_stock(tx, [request])
