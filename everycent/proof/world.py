"""A platform inside this process, to which things happen on purpose.

Databases, provider and activities are the real ones, on the lanes of the composition. Errors and
hooks come in round an activity: before the call, or after it has committed (a lost reply).
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    PollerBehaviorSimpleMaximum,
    Worker,
    WorkflowRunner,
)

from everycent import clock
from everycent.database import account, inventory, points
from everycent.database.engine import Database
from everycent.database.reads import Reader
from everycent.domain.account import Deposit
from everycent.domain.inventory import ReceiveStock
from everycent.domain.message import order_of, step_key
from everycent.domain.points import GrantPoints
from everycent.settings import SERVICES, ServiceName, Settings
from starters.checkouts import Checkouts
from workers.composition import everything, lanes_of, workflow_worker
from workers.heartbeats import Heartbeats

Hook = Callable[[], Awaitable[object]]
FINAL = frozenset({"Bug", "InvalidRequest", "Refused"})  # Errors that Temporal does not retry.


@dataclass
class Strike:
    """What happens to an activity of one order, and how often it still does."""

    error: str | None
    hook: Hook | None
    after: bool
    times: int


class Trouble(Interceptor):
    """The strikes that are armed, per order and activity."""

    def __init__(self) -> None:
        self._armed: dict[tuple[str, str], list[Strike]] = defaultdict(list)

    def arm(
        self,
        xid: str,
        activity_name: str,
        error: str | None = None,
        *,
        hook: Hook | None = None,
        after: bool = False,
        times: int = 1,
    ) -> None:
        """Run the hook, then raise the error, round the next activities of that name."""
        self._armed[xid, activity_name].append(Strike(error, hook, after, times))

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        """Put ourselves before the activity."""
        return _Troubled(next, self)

    async def strike(self, xid: str, name: str, *, after: bool) -> None:
        """Let happen what is armed for this moment."""
        for armed in self._armed.get((xid, name), []):
            if armed.after == after and armed.times > 0:
                armed.times -= 1
                if armed.hook is not None:
                    await armed.hook()
                if armed.error is not None:
                    raise ApplicationError(
                        f"{armed.error} on purpose",
                        type=armed.error,
                        non_retryable=armed.error in FINAL,
                    )
                return


class _Troubled(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, trouble: Trouble) -> None:
        super().__init__(inner)
        self._trouble = trouble

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Strike before and after the activity."""
        name, xid = activity.info().activity_type, _xid_of(input.args[0])
        await self._trouble.strike(xid, name, after=False)
        answer = await super().execute_activity(input)
        await self._trouble.strike(xid, name, after=True)
        return answer


@dataclass
class World:
    """The platform and its surroundings. `now` is its time; `later` lets some of it pass.

    `short_window_seconds` is how long an order of it waits that is meant to expire.
    """

    client: Client
    reader: Reader
    checkouts: Checkouts
    provider: httpx.AsyncClient
    databases: dict[ServiceName, Database]
    trouble: Trouble
    now: Callable[[], datetime]
    later: Callable[[float], Awaitable[object]]
    short_window_seconds: int

    async def receive_stock(self, tenant: str, sku: str, units: int, *, request: str) -> None:
        """Book units in that arrived."""
        step = self._step(tenant, f"~stock/{sku}", "receive", request)
        async with self.databases["inventory"].transaction() as tx:
            await inventory.receive_stock(tx, [ReceiveStock(sku=sku, units=units, **step)])

    async def deposit(
        self, tenant: str, account_id: str, amount_minor: int, currency: str, *, request: str
    ) -> None:
        """Put money into an account; a new one is opened."""
        step = self._step(tenant, f"~account/{account_id}", "deposit", request)
        deposit = Deposit(account=account_id, amount_minor=amount_minor, currency=currency, **step)
        async with self.databases["account"].transaction() as tx:
            await account.deposit(tx, [deposit])

    async def grant_points(self, tenant: str, customer: str, count: int, *, request: str) -> None:
        """Give a customer points."""
        step = self._step(tenant, f"~customer/{customer}", "grant", request)
        async with self.databases["points"].transaction() as tx:
            await points.grant_points(tx, [GrantPoints(customer=customer, points=count, **step)])

    def _step(self, tenant: str, thing: str, step: str, request: str) -> dict[str, Any]:
        at = self.now()
        return {"key": step_key(tenant, thing, step, request), "at": at, "opened_on": at.date()}


def provider_client(settings: Settings) -> httpx.AsyncClient:
    """Return a client of the provider for people and books; it keeps no connection for long.

    The provider closes idle ones, and what is sent at that moment would be lost.
    """
    return httpx.AsyncClient(
        base_url=settings.provider.url,
        timeout=20,
        trust_env=False,
        limits=httpx.Limits(keepalive_expiry=1),
    )


def hush() -> None:
    """Keep the SDK and our own logs quiet: most failures in a world happen on purpose."""
    logging.disable(logging.CRITICAL)
    errors = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    telemetry = TelemetryConfig(logging=LoggingConfig(filter=errors))
    Runtime.set_default(Runtime(telemetry=telemetry))


async def at_once(seconds: float) -> None:
    """Let no time pass: people in a world of real time do everything as soon as they can."""


@contextlib.asynccontextmanager
async def world_of(
    settings: Settings,
    client: Client,
    *,
    now: Callable[[], datetime] = clock.now,
    later: Callable[[float], Awaitable[object]] = at_once,
    short_window_seconds: int = 15,
    runner: WorkflowRunner | None = None,
    interceptors: Sequence[Interceptor] = (),
    together: bool = False,
) -> AsyncIterator[World]:
    """Run every worker of the platform in this process until the end of the block.

    `together` runs the one that hosts everything beside them, and sends the orders there.
    """
    trouble = Trouble()
    async with contextlib.AsyncExitStack() as stack:
        reader = Reader(settings)
        stack.push_async_callback(reader.close)
        databases = {s: Database(settings.database[s], settings.pool) for s in SERVICES}
        for database in databases.values():
            stack.push_async_callback(database.close)
        provider = await stack.enter_async_context(provider_client(settings))
        for service in SERVICES:
            for lane in await stack.enter_async_context(lanes_of(service, settings, now=now)):
                worker = Worker(
                    client,
                    task_queue=lane.queue,
                    activities=lane.activities,
                    max_concurrent_activities=lane.slots,
                    # A server that skips time ends every poll at each skip: one poller a lane.
                    activity_task_poller_behavior=PollerBehaviorSimpleMaximum(1),
                    interceptors=[Heartbeats(), *interceptors, trouble],
                )
                await stack.enter_async_context(worker)
        await stack.enter_async_context(workflow_worker(client, runner=runner))
        if together:
            around = [*interceptors, trouble]
            host = everything(client, settings, interceptors=around)
            await stack.enter_async_context(await stack.enter_async_context(host))
        checkouts = Checkouts(client, reader, together=together)
        yield World(
            client, reader, checkouts, provider, databases, trouble, now, later,
            short_window_seconds,
        )  # fmt: skip


def _xid_of(request: Any) -> str:
    """Return `<tenant>/<order>` of what an activity was asked."""
    if hasattr(request, "order"):
        return f"{request.order.tenant}/{request.order.order_id}"
    if hasattr(request, "order_id"):
        return f"{request.tenant}/{request.order_id}"
    return order_of(request.key)
