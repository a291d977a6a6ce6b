"""The only place where the parts are wired together: pools, gateways, activities and workers."""

import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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

from activities import participants
from activities.account import AccountActivities
from activities.choreography import ChoreographyActivities, ReportReaction
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.messages import MessageActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from activities.sweep import HoldSweepActivities, OrderSweepActivities, RunSweepActivities
from everycent import clock
from everycent.database import inbox, outbox
from everycent.database.choreography import expire_choreographed
from everycent.database.engine import Database, assert_no_transaction
from everycent.database.lanes import TO_OTHERS, TO_SERVICES
from everycent.database.wake import Wake
from everycent.domain.events import STEP_REPORTED
from everycent.domain.messaging import INBOX, NOTIFY, Ladder, Sink
from everycent.domain.sweep_questions import HOLD_SERVICES
from everycent.errors import InvalidRequest
from everycent.gateways.notification import NotificationSink
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.settings import SERVICES, NotifySettings, ServiceName, Settings
from workers import fault_points, message_points, meters
from workers.activations import Activations
from workers.consumer import Consumer, Reaction
from workers.heartbeats import Heartbeats
from workers.loop import Loop
from workers.queues import SWEEPER, TOGETHER, WORKFLOWS, finishes, sweeps, tries
from workers.registration import check_registration
from workers.relay import InboxSink
from workflows.catalog import FLOWS
from workflows.sweep_orders import SweepOrders

WorkerName = Literal["workflows", "together"] | ServiceName
WORKERS: tuple[WorkerName, ...] = ("workflows", *SERVICES, "together")
GRACE = timedelta(seconds=15)
EXPIRED_AT_ONCE = 100


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
            more = messages_of({service: database})
            lanes.append(Lane(queue, [*activities_of(noun), *more], slots=settings.pool.size))
        lanes += await stack.enter_async_context(_eyes((service,), settings))
        yield lanes


@contextlib.asynccontextmanager
async def consumers_of(
    name: WorkerName, settings: Settings, *, now: Callable[[], datetime] = clock.now
) -> AsyncIterator[list[Loop]]:
    """Build what applies the inboxes of a worker's services; each has a small pool of its own."""
    services: Sequence[ServiceName] = () if name == "workflows" else SERVICES
    services = [each for each in services if name in (each, "together")]
    size = message_points.connections(settings.pool.size)
    few = settings.model_copy(update={"pool": settings.pool.model_copy(update={"size": size})})
    async with contextlib.AsyncExitStack() as stack:
        loops = []
        for service in services:
            database = await stack.enter_async_context(_database(service, few, f"{service} inbox"))
            noun = await stack.enter_async_context(_noun(service, database, settings, now))
            reactions = reactions_of(service, database, noun, settings, now)
            consumer = message_points.consumer(service, database, reactions, now=now)
            run_pass = _with_expiry(consumer, database, now) if service == "order" else None
            wake = Wake(settings.database[service], inbox.WAKE)
            loops.append(Loop(f"inbox of {service}", run_pass or consumer.run_pass, wake))
        yield loops


def reactions_of(
    service: ServiceName,
    database: Database,
    noun: object,
    settings: Settings,
    now: Callable[[], datetime],
) -> Mapping[str, Reaction]:
    """Return what a service does about each type of message."""
    if service == "order":
        return {STEP_REPORTED.name: ReportReaction(now, tell=settings.tell)}
    if service == "payment":
        assert isinstance(noun, PaymentActivities)
        return participants.payment_reactions(database, noun, now)
    makers = {
        "inventory": participants.inventory_reactions,
        "account": participants.account_reactions,
        "points": participants.points_reactions,
        "ledger": participants.ledger_reactions,
    }
    return makers[service](database, now)


def _with_expiry(
    consumer: Consumer, database: Database, now: Callable[[], datetime]
) -> Callable[[], Awaitable[int]]:
    """Add the scan for choreographed orders whose window is over: nobody else looks at the time."""

    async def run_pass() -> int:
        moved = await consumer.run_pass()
        async with database.transaction() as tx:
            return moved + await expire_choreographed(tx, at=now(), limit=EXPIRED_AT_ONCE)

    return run_pass


@contextlib.asynccontextmanager
async def relays(
    settings: Settings, *, now: Callable[[], datetime] = clock.now
) -> AsyncIterator[list[Loop]]:
    """Build the relay of every outbox, with the relay's role in each database."""
    missing = [service for service in SERVICES if service not in settings.relay]
    if missing:
        raise InvalidRequest(f"EVERYCENT_RELAY__{missing[0].upper()} names no database")
    async with contextlib.AsyncExitStack() as stack:
        pools: dict[ServiceName, Database] = {}
        for service in SERVICES:
            pools[service] = Database(settings.relay[service], settings.pool, name="relay")
            stack.push_async_callback(pools[service].close)
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        sinks: dict[str, Sink] = {
            **{f"{INBOX}{s}": InboxSink(pools[s], now=now) for s in SERVICES},
            **{f"{NOTIFY}{n}": notification_sink(http, s) for n, s in settings.notify.items()},
        }
        holder = f"{socket.gethostname()}/{os.getpid()}"
        yield [
            Loop(
                f"outbox of {service}",
                message_points.relay(
                    service, pools[service], sinks, holder=holder, now=now, only=only
                ).run_pass,
                Wake(settings.relay[service], outbox.WAKE),
            )
            for service in SERVICES
            for only in (TO_SERVICES, TO_OTHERS)
        ]


def notification_sink(http: httpx.AsyncClient, settings: NotifySettings) -> NotificationSink:
    """Return the way to another system that is told what happens."""
    steps = tuple(timedelta(seconds=seconds) for seconds in settings.ladder_seconds)
    return NotificationSink(
        http,
        url=settings.url,
        secret=settings.secret,
        ladder=Ladder(steps),
        timeout_seconds=settings.timeout_seconds,
        guard=assert_no_transaction,
    )


@contextlib.asynccontextmanager
async def everything(
    client: Client, settings: Settings, *, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[Worker]:
    """Build the one worker that hosts the flows and every service, with a pool for each service.

    A flow that was started on its queue runs its database steps here, as local activities.
    """
    async with contextlib.AsyncExitStack() as stack:
        activities: list[Any] = []
        databases: dict[ServiceName, Database] = {}
        for service in SERVICES:
            databases[service] = await stack.enter_async_context(
                _database(service, settings, TOGETHER)
            )
            noun = await stack.enter_async_context(
                _noun(service, databases[service], settings, clock.now)
            )
            activities += activities_of(noun)
        activities += messages_of(databases)
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


def messages_of(databases: Mapping[ServiceName, Database]) -> list[Any]:
    """Return the activities about the messages of these services, and those that begin with one."""
    starts = [ChoreographyActivities(databases["order"])] if "order" in databases else []
    nouns = (MessageActivities(databases), *starts)
    return [activity for noun in nouns for activity in activities_of(noun)]


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
        workflow_runner=Activations(runner or UnsandboxedWorkflowRunner(), fault_points.after_task),
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
        workflow_runner=Activations(runner or UnsandboxedWorkflowRunner()),
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
    if service == "order":
        yield OrderActivities(database, tell=settings.tell)
        return
    nouns = {
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
