"""A shop on the time-skipping server: real databases, a real simulator, real activities.

Faults come in through an interceptor round the real activities: before the call, or after it has
committed (a lost reply). Nothing is replaced.
"""

import asyncio
import contextlib
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from everycent.database import account, inventory, points
from everycent.database.engine import Database, assert_no_transaction
from everycent.database.reads import Reader
from everycent.domain.account import Deposit
from everycent.domain.inventory import ReceiveStock
from everycent.domain.message import order_of
from everycent.domain.order import (
    CardPayment,
    OrderLine,
    OrderResult,
    Payment,
    PlaceOrder,
)
from everycent.domain.points import GrantPoints
from everycent.errors import Transient
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.settings import SERVICES, ServiceName, Settings
from everycent.simulator.api import create_app
from everycent.simulator.desk import Options
from starters.checkouts import Checkouts
from starters.client import DATA_CONVERTER
from workers.composition import activities_of
from workers.heartbeats import Heartbeats
from workers.queues import TOGETHER, WORKFLOWS, finishes, tries
from workflows.catalog import FLOWS
from workflows.checkout import Checkout
from workflows.place import TOGETHER_MEMO

GOOD_CARD = CardPayment(card_token="tok_ok")
Hook = Callable[[], Awaitable[None]]


@dataclass
class Fault:
    """What happens to an activity of one order: an error or a hook, before or after it."""

    times: int
    error_type: str | None
    after: bool
    hook: Hook | None = None


class Trouble(Interceptor):
    """The faults armed per order and activity, and a log of what ran and was asked."""

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        self.log: dict[str, list[str]] = defaultdict(list)
        self.requests: dict[str, list[Any]] = defaultdict(list)

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        return _Troubled(next, self)

    def strike(self, order: str, name: str, *, after: bool) -> Fault | None:
        armed = self.faults.get((order, name), [])
        for fault in armed:
            if fault.after == after and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Troubled(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, trouble: Trouble) -> None:
        super().__init__(inner)
        self._trouble = trouble

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        name = activity.info().activity_type
        order = _order_of(input.args[0])
        self._trouble.log[order].append(name)
        self._trouble.requests[order].append(input.args[0])
        await self._hurt(order, name, after=False)
        answer = await super().execute_activity(input)
        await self._hurt(order, name, after=True)
        return answer

    async def _hurt(self, order: str, name: str, *, after: bool) -> None:
        fault = self._trouble.strike(order, name, after=after)
        if fault is None:
            return
        if fault.hook is not None:
            await fault.hook()
        if fault.error_type is not None:
            raise ApplicationError(
                f"{fault.error_type} by the test",
                type=fault.error_type,
                non_retryable=fault.error_type in ("Bug", "InvalidRequest", "Refused"),
            )


def _order_of(request: Any) -> str:
    if hasattr(request, "order"):
        return f"{request.order.tenant}/{request.order.order_id}"
    if hasattr(request, "order_id"):
        return f"{request.tenant}/{request.order_id}"
    return order_of(request.key)


@dataclass
class Shop:
    """One tenant's shop, and what a test does in it."""

    tenant: str
    client: Client
    reader: Reader
    checkouts: Checkouts
    databases: dict[ServiceName, Database]
    provider: httpx.AsyncClient
    trouble: Trouble
    together: bool
    _requests: int = field(default=0)

    def order(
        self,
        order_id: str = "o-1",
        *,
        units: int = 2,
        amount_minor: int = 2933,
        payment: Payment | None = GOOD_CARD,
        **changes: Any,
    ) -> PlaceOrder:
        line = OrderLine(sku="LAMP", units=units, amount_minor=amount_minor)
        return PlaceOrder(
            tenant=self.tenant,
            order_id=order_id,
            customer="c-1",
            currency="EUR",
            payment=payment,
            **{"lines": (line,), **changes},
        )

    async def receive(self, units: int, sku: str = "LAMP") -> None:
        request = ReceiveStock(sku=sku, units=units, **self._base("stock"))
        await self._book("inventory", inventory.receive_stock, request)

    async def deposit(self, account_id: str, amount_minor: int) -> None:
        request = Deposit(
            account=account_id, currency="EUR", amount_minor=amount_minor, **self._base("deposit")
        )
        await self._book("account", account.deposit, request)

    async def grant_points(self, customer: str, count: int) -> None:
        request = GrantPoints(customer=customer, points=count, **self._base("grant"))
        await self._book("points", points.grant_points, request)

    async def _book(self, service: ServiceName, book: Any, request: Any) -> None:
        """Book something in; a connection that another test has killed is no failure."""
        for last in (False, True):
            try:
                async with self.databases[service].transaction() as tx:
                    await book(tx, [request])
                return
            except Transient:
                if last:
                    raise

    def fault(
        self,
        activity_name: str,
        error_type: str | None = "Transient",
        *,
        order_id: str = "o-1",
        times: int = 1,
        after: bool = False,
        hook: Hook | None = None,
    ) -> None:
        self.trouble.faults[f"{self.tenant}/{order_id}", activity_name].append(
            Fault(times, error_type, after, hook)
        )

    def ran(self, order_id: str = "o-1") -> list[str]:
        return self.trouble.log[f"{self.tenant}/{order_id}"]

    async def start(
        self, order: PlaceOrder, *, again: bool = False, id_suffix: str = ""
    ) -> WorkflowHandle[Checkout, OrderResult]:
        return await self.client.start_workflow(
            Checkout.run,
            order,
            id=order.workflow_id() + id_suffix,
            task_queue=TOGETHER if self.together else WORKFLOWS,
            memo=TOGETHER_MEMO if self.together else None,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
            if again
            else WorkflowIDReusePolicy.REJECT_DUPLICATE,
        )

    async def sell(self, order: PlaceOrder) -> OrderResult:
        return await (await self.start(order)).result()

    async def stock(self, sku: str = "LAMP") -> dict[str, int]:
        rows = await self.reader.rows(
            "inventory",
            "SELECT free, held, sold FROM stock WHERE tenant = :tenant AND sku = :sku",
            tenant=self.tenant,
            sku=sku,
        )
        return rows[0] if rows else {"free": 0, "held": 0, "sold": 0}

    async def rows(self, service: ServiceName, table: str) -> list[dict[str, Any]]:
        return await self.reader.rows(
            service,
            f"SELECT * FROM {table} WHERE key LIKE :prefix ORDER BY key",
            prefix=f"{self.tenant}/%",
        )

    async def cases(self) -> list[dict[str, Any]]:
        return await self.reader.rows(
            "order", "SELECT * FROM repair_case WHERE tenant = :tenant", tenant=self.tenant
        )

    async def charged(self) -> list[tuple[str, int, int]]:
        """Say per intent of this shop at the provider: state, captured and refunded."""
        answer = await self.provider.get(
            "/admin/intents", params={"reference": f"{self.tenant}/*", "limit": 1000}
        )
        answer.raise_for_status()
        return [
            (intent["state"], intent["captured_minor"], intent["refunded_minor"])
            for intent in answer.json()["data"]
        ]

    async def until(self, condition: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)

    def _base(self, kind: str) -> dict[str, Any]:
        self._requests += 1
        now = datetime.now(UTC)
        return {
            "key": f"{self.tenant}/{kind}/{self._requests}",
            "at": now,
            "opened_on": now.date(),
        }


@pytest.fixture(scope="module")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """Temporal's time-skipping server."""
    binary = Path(sys.executable).with_name("temporal-test-server")
    env = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(binary), data_converter=DATA_CONVERTER
    )
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await env.client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=env.client.namespace,
            search_attributes={
                **{
                    f"Everycent{noun}": keyword
                    for noun in ("Tenant", "Order", "Customer", "Status", "WaitsFor")
                },
                "EverycentAmountMinor": IndexedValueType.INDEXED_VALUE_TYPE_INT,
                "EverycentSkus": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
            },
        )
    )
    yield env
    await env.shutdown()


@pytest.fixture(scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """The provider simulator, in this process, behind a real HTTP client."""
    app = create_app(tmp_path_factory.mktemp("simulator") / "store.db", Options())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://provider", trust_env=False
        ) as http,
    ):
        yield http


@pytest.fixture(scope="module")
async def trouble(
    temporal: WorkflowEnvironment,
    databases: dict[ServiceName, Database],
    provider: httpx.AsyncClient,
) -> AsyncIterator[Trouble]:
    """Every worker of the platform in this process, workflows in the full sandbox."""
    trouble = Trouble()
    gateway = HttpPaymentProvider(provider, api_key=Options().api_key, guard=assert_no_transaction)
    nouns: dict[ServiceName, object] = {
        "order": OrderActivities(databases["order"]),
        "inventory": InventoryActivities(databases["inventory"]),
        "payment": PaymentActivities(databases["payment"], gateway),
        "account": AccountActivities(databases["account"]),
        "points": PointsActivities(databases["points"]),
        "ledger": LedgerActivities(databases["ledger"]),
    }
    async with contextlib.AsyncExitStack() as stack:
        for service in SERVICES:
            for queue in (tries(service), finishes(service)):
                await stack.enter_async_context(
                    Worker(
                        temporal.client,
                        task_queue=queue,
                        activities=activities_of(nouns[service]),
                        interceptors=[Heartbeats(), trouble],
                    )
                )
        for queue, hosted in ((WORKFLOWS, ()), (TOGETHER, tuple(nouns.values()))):
            await stack.enter_async_context(
                Worker(
                    temporal.client,
                    task_queue=queue,
                    workflows=FLOWS,
                    activities=[method for noun in hosted for method in activities_of(noun)],
                    interceptors=[Heartbeats(), trouble],
                    workflow_runner=SandboxedWorkflowRunner(),
                )
            )
        yield trouble


@pytest.fixture(params=["apart", "together"])
def together(request: pytest.FixtureRequest) -> bool:
    """Where the runs of a test have their database steps: both places keep the same promises."""
    return bool(request.param == "together")


@pytest.fixture
async def shop(
    temporal: WorkflowEnvironment,
    settings: Settings,
    databases: dict[ServiceName, Database],
    provider: httpx.AsyncClient,
    trouble: Trouble,
    tenant: str,
    together: bool,
) -> AsyncIterator[Shop]:
    reader = Reader(settings)
    yield Shop(
        tenant,
        temporal.client,
        reader,
        Checkouts(temporal.client, reader, together=together),
        databases,
        provider,
        trouble,
        together,
    )
    await reader.close()
