"""The only place where the parts are wired together: pools, gateways, activities and workers."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import httpx
from temporalio.client import Client
from temporalio.worker import (
    Interceptor,
    PollerBehaviorAutoscaling,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowRunner,
)

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from activities.sweep import HoldSweepActivities, OrderSweepActivities, RunSweepActivities
from everycent import clock
from everycent.database.engine import Database, assert_no_transaction
from everycent.domain.sweep_questions import HOLD_SERVICES
from everycent.errors import InvalidRequest
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.settings import SERVICES, ServiceName, Settings
from workers import fault_points, meters
from workers.heartbeats import Heartbeats
from workers.queues import SWEEPER, TOGETHER, WORKFLOWS, finishes, sweeps, tries
from workers.registration import check_registration
from workflows.catalog import FLOWS
from workflows.sweep_orders import SweepOrders

WorkerName = Literal["workflows", "together"] | ServiceName
WORKERS: tuple[WorkerName, ...] = ("workflows", *SERVICES, "together")
GRACE = timedelta(seconds=15)


@dataclass(frozen=True)
class Lane:
    """One task queue of a service, with the activities of one pool."""

    queue: str
    activities: Sequence[Any]
    slots: int


@contextlib.asynccontextmanager
async def workers_of(
    name: WorkerName, client: Client, settings: Settings
) -> AsyncIterator[list[Worker]]:
    """Build the workers of one process and close their pools behind them.

    Raises InvalidRequest when a flow's plan or the times of the settings cannot hold.
    """
    check_registration(settings)
    if name == "workflows":
        yield [workflow_worker(client), sweeper_worker(client)]
        return
    if name == "together":
        async with everything(client, settings) as worker, _eyes(SERVICES, settings) as eyes:
            yield [worker, sweeper_worker(client), *(activity_worker(client, eye) for eye in eyes)]
        return
    async with lanes_of(name, settings) as lanes:
        yield [activity_worker(client, lane) for lane in lanes]


@contextlib.asynccontextmanager
async def lanes_of(
    service: ServiceName, settings: Settings, *, now: Callable[[], datetime] = clock.now
) -> AsyncIterator[list[Lane]]:
    """Give a service its two lanes, each with a pool of its own, so that none starves the other.

    `now` is the clock of the edge to the provider.
    """
    async with contextlib.AsyncExitStack() as stack:
        lanes = []
        for queue in (tries(service), finishes(service)):
            database = await stack.enter_async_context(_database(service, settings, queue))
            noun = await stack.enter_async_context(_noun(service, database, settings, now))
            # A slot without a connection would wait in the pool and burn its start-to-close time.
            lanes.append(Lane(queue, activities_of(noun), slots=settings.pool.size))
        lanes += await stack.enter_async_context(_eyes((service,), settings))
        yield lanes


@contextlib.asynccontextmanager
async def everything(
    client: Client, settings: Settings, *, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[Worker]:
    """Build the one worker that hosts the flows and every service, with a pool for each service.

    A flow that was started on its queue runs its database steps here, as local activities.
    """
    async with contextlib.AsyncExitStack() as stack:
        activities: list[Any] = []
        for service in SERVICES:
            database = await stack.enter_async_context(_database(service, settings, TOGETHER))
            noun = await stack.enter_async_context(_noun(service, database, settings, clock.now))
            activities += activities_of(noun)
        yield workflow_worker(
            client,
            queue=TOGETHER,
            activities=activities,
            slots=settings.pool.size,
            interceptors=interceptors,
        )


@contextlib.asynccontextmanager
async def _eyes(services: Sequence[ServiceName], settings: Settings) -> AsyncIterator[list[Lane]]:
    """Give the sweeper a lane to read each service by, with one connection."""
    one = settings.model_copy(update={"pool": settings.pool.model_copy(update={"size": 1})})
    async with contextlib.AsyncExitStack() as stack:
        lanes = []
        for service in services:
            if reads := sweep_reads_of(service):
                queue = sweeps(service)
                database = await stack.enter_async_context(_database(service, one, queue))
                lanes.append(Lane(queue, activities_of(reads(database)), slots=1))
        yield lanes


def sweep_reads_of(service: ServiceName) -> Callable[[Database], object] | None:
    """Return what makes the sweeper's eyes in a service, None where nothing is ever held."""
    if service == "order":
        return OrderSweepActivities
    for each in HOLD_SERVICES:
        if each == service:
            return functools.partial(HoldSweepActivities, service=each)
    return None


def activities_of(noun: object) -> list[Any]:
    """Return the activity methods of an object, by Temporal's own mark."""
    methods = (getattr(noun, name) for name in dir(noun) if not name.startswith("_"))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


def workflow_worker(
    client: Client,
    *,
    queue: str = WORKFLOWS,
    runner: WorkflowRunner | None = None,
    activities: Sequence[Any] = (),
    slots: int | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> Worker:
    """Build the worker that runs every flow of the catalog, and activities beside them if any.

    Production does without the sandbox (docs/decisions/0007); tests and replays run in the full
    one and so see what breaks determinism.
    """
    worker = Worker(
        client,
        task_queue=queue,
        workflows=FLOWS,
        workflow_runner=fault_points.hooked(runner or UnsandboxedWorkflowRunner()),
        max_cached_workflows=500,
        max_concurrent_workflow_tasks=100,
        activities=activities,
        interceptors=[Heartbeats(), *fault_points.interceptors(), *interceptors],
        max_concurrent_activities=slots,
        max_concurrent_local_activities=slots,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
        graceful_shutdown_timeout=GRACE,
    )
    return fault_points.patient(worker)


def sweeper_worker(client: Client, *, runner: WorkflowRunner | None = None) -> Worker:
    """Build the worker of the sweeper: one pass at a time, and Temporal is asked from here."""
    return Worker(
        client,
        task_queue=SWEEPER,
        workflows=[SweepOrders],
        activities=activities_of(RunSweepActivities()),
        workflow_runner=runner or UnsandboxedWorkflowRunner(),
        interceptors=[Heartbeats()],
        max_concurrent_activities=2,
        graceful_shutdown_timeout=GRACE,
    )


def activity_worker(client: Client, lane: Lane) -> Worker:
    """Build the worker of one lane, with a slot per connection."""
    return Worker(
        client,
        task_queue=lane.queue,
        activities=lane.activities,
        interceptors=[Heartbeats(), *fault_points.interceptors()],
        max_concurrent_activities=lane.slots,
        activity_task_poller_behavior=PollerBehaviorAutoscaling(),
        graceful_shutdown_timeout=GRACE,
    )


@contextlib.asynccontextmanager
async def _database(service: ServiceName, settings: Settings, name: str) -> AsyncIterator[Database]:
    if service not in settings.database:
        raise InvalidRequest(f"EVERYCENT_DATABASE__{service.upper()} names no database")
    database = Database(
        settings.database[service], settings.pool, name=name, on_held=meters.note_held
    )
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def _noun(
    service: ServiceName, database: Database, settings: Settings, now: Callable[[], datetime]
) -> AsyncIterator[object]:
    if service == "payment":
        provider = settings.provider
        async with httpx.AsyncClient(
            base_url=provider.url, trust_env=False, limits=httpx.Limits(max_connections=100)
        ) as http:
            gateway = HttpPaymentProvider(
                http,
                api_key=provider.api_key,
                guard=assert_no_transaction,
                idempotency_lifetime=timedelta(hours=provider.key_lifetime_hours),
            )
            yield PaymentActivities(database, fault_points.watched(gateway), now=now)
        return
    nouns = {
        "order": OrderActivities,
        "inventory": InventoryActivities,
        "account": AccountActivities,
        "points": PointsActivities,
        "ledger": LedgerActivities,
    }
    yield nouns[service](database)


def worker_name(text: str) -> WorkerName:
    """Read a worker's name as a person typed it."""
    for name in WORKERS:
        if name == text:
            return name
    raise InvalidRequest(f"there is no worker {text}; there are: {', '.join(WORKERS)}")
