"""A shop whose six services talk by messages alone: real databases, a real provider simulator."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from activities.choreography import (
    CancelChoreographed,
    ChoreographyActivities,
    ReportReaction,
    StartChoreographed,
)
from activities.participants import (
    account_reactions,
    inventory_reactions,
    ledger_reactions,
    payment_reactions,
    points_reactions,
)
from activities.payment import PaymentActivities
from everycent.database import account, choreography, inventory, outbox, points
from everycent.database.engine import Database, assert_no_transaction
from everycent.domain.account import Deposit
from everycent.domain.events import STEP_REPORTED
from everycent.domain.inventory import ReceiveStock
from everycent.domain.message import Message
from everycent.domain.messaging import Event
from everycent.domain.order import (
    AddAttempt,
    BalancePayment,
    CardPayment,
    OpenAnswer,
    OrderLine,
    OrderResult,
    Payment,
    PlaceOrder,
)
from everycent.domain.points import GrantPoints
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.settings import SERVICES, ServiceName, Settings
from everycent.simulator.api import create_app
from everycent.simulator.desk import Options
from tests.conftest import NOON, TODAY
from workers.consumer import Consumer, Reaction
from workers.relay import InboxSink, Relay

CLEAN = (
    "TRUNCATE outbox, outbox_number, inbox",
    "UPDATE outbox_lane SET held_until = NULL, claimed_at = NULL, holder = ''",
)


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
async def no_old_messages(owners: dict[ServiceName, Database]) -> None:
    """Every test has the outboxes and inboxes for itself."""
    for service in SERVICES:
        async with owners[service].transaction() as tx:
            for statement in CLEAN:
                await tx.execute(text(statement))
    async with owners["order"].transaction() as tx:  # Whose windows would end in another test.
        await tx.execute(text("DELETE FROM shop_order WHERE driver LIKE 'choreographed/%'"))


def event(
    tenant: str, name: str, order: str = "o-1", to: str = "inbox:inventory", **more: Any
) -> Event:
    """Return an event of an order of this shop."""
    fields: dict[str, Any] = {
        "key": f"{tenant}/{order}/{name}", "aggregate": f"{tenant}/{order}", "opened_on": TODAY,
        "at": NOON, "type": "tested", "schema_version": 1, "payload": {"name": name}, "to": (to,),
    }  # fmt: skip
    return Event(**{**fields, **more})


async def publish(database: Database, *events: Event) -> None:
    """Write events down in a transaction of their own."""
    async with database.transaction() as tx:
        await outbox.publish(tx, events)


@dataclass
class Shop:
    """The services of one shop, their relays and consumers; nothing moves but by `settle`."""

    databases: Mapping[ServiceName, Database]
    tenant: str
    clock: Clock
    http: httpx.AsyncClient
    relays: dict[ServiceName, Relay]
    consumers: dict[ServiceName, Consumer]
    orders: ChoreographyActivities
    reactions: dict[ServiceName, Mapping[str, Reaction]]
    down: set[ServiceName] = field(default_factory=set)

    async def stock(self, units: int, sku: str = "LAMP") -> None:
        request = ReceiveStock(
            key=f"{self.tenant}/~stock/{sku}/receive", at=NOON, opened_on=TODAY, sku=sku,
            units=units,
        )  # fmt: skip
        async with self.databases["inventory"].transaction() as tx:
            await inventory.receive_stock(tx, [request])

    async def deposit(self, amount_minor: int, name: str = "ada") -> None:
        request = Deposit(
            key=f"{self.tenant}/~account/{name}/deposit", at=NOON, opened_on=TODAY, account=name,
            currency="EUR", amount_minor=amount_minor,
        )  # fmt: skip
        async with self.databases["account"].transaction() as tx:
            await account.deposit(tx, [request])

    async def grant(self, number: int, customer: str = "ada") -> None:
        request = GrantPoints(
            key=f"{self.tenant}/~customer/{customer}/grant", at=NOON, opened_on=TODAY,
            customer=customer, points=number,
        )  # fmt: skip
        async with self.databases["points"].transaction() as tx:
            await points.grant_points(tx, [request])

    def order(
        self, order_id: str = "o-1", *, pay: Payment | None = None, units: int = 2, **more: Any
    ) -> PlaceOrder:
        return PlaceOrder(
            tenant=self.tenant, order_id=order_id, customer="ada", currency="EUR", payment=pay,
            lines=(OrderLine(sku="LAMP", units=units, amount_minor=5998),), **more,
        )  # fmt: skip

    def by_card(self, order_id: str = "o-1", token: str = "tok_ok", **more: Any) -> PlaceOrder:
        return self.order(order_id, pay=CardPayment(card_token=token), **more)

    def by_balance(self, order_id: str = "o-1", **more: Any) -> PlaceOrder:
        return self.order(order_id, pay=BalancePayment(account="ada"), **more)

    async def start(self, order: PlaceOrder) -> OpenAnswer:
        request = StartChoreographed(
            tenant=order.tenant, order_id=order.order_id, at=self.clock(), order=order
        )
        return await self.orders.start(request)

    async def pay(self, order: PlaceOrder, payment: Payment) -> Message:
        return await self.orders.pay(
            AddAttempt(
                tenant=order.tenant, order_id=order.order_id, at=self.clock(), payment=payment
            )
        )

    async def cancel(self, order: PlaceOrder) -> Message:
        return await self.orders.cancel(
            CancelChoreographed(
                tenant=order.tenant, order_id=order.order_id, at=self.clock(), reason="no more"
            )
        )

    async def expire(self) -> int:
        async with self.databases["order"].transaction() as tx:
            return await choreography.expire_choreographed(tx, at=self.clock(), limit=10)

    async def settle(self, only: Sequence[ServiceName] = SERVICES) -> None:
        """Carry and apply messages until nothing moves any more at this instant."""
        moved = 1
        while moved:
            moved = 0
            for service in only:
                if service not in self.down:
                    while await self.relays[service].run_pass():
                        moved += 1
                    moved += await self.consumers[service].run_pass()

    async def row(self, order: PlaceOrder) -> Any:
        [row] = await self.read(
            "order",
            "SELECT * FROM shop_order WHERE tenant = :tenant AND order_id = :id",
            id=order.order_id,
        )
        return row

    async def result(self, order: PlaceOrder) -> OrderResult:
        row = await self.row(order)
        assert row.result is not None, f"{order.order_id} is {row.decision}"
        return OrderResult.model_validate(row.result)

    async def read(self, service: ServiceName, statement: str, **values: Any) -> list[Any]:
        async with self.databases[service].transaction() as tx:
            found = await tx.execute(text(statement), {"tenant": self.tenant, **values})
            return list(found.all())

    async def lamps(self) -> tuple[int, int, int]:
        [row] = await self.read(
            "inventory", "SELECT free, held, sold FROM stock WHERE tenant = :tenant"
        )
        return tuple(row)

    async def unfinished(self) -> list[Any]:
        """Settle, ask again what was sent, and return the messages that are still not consumed."""
        await self.settle()
        self.clock.move(seconds=60)
        await self.settle()
        return [
            (service, row.key, row.sink, row.state, row.last_error)
            for service in SERVICES
            for row in await self.read(
                service,
                "SELECT key, sink, state, last_error FROM outbox WHERE state <> 'CONSUMED'"
                " AND sink NOT LIKE 'notify:%'",
            )
        ]


@pytest.fixture(scope="session")
async def relay_pools(settings: Settings) -> AsyncIterator[dict[ServiceName, Database]]:
    """A pool per service, as the relay's role."""
    pools = {s: Database(settings.relay[s], settings.pool) for s in SERVICES}
    yield pools
    for pool in pools.values():
        await pool.close()


@pytest.fixture
async def shop(
    databases: dict[ServiceName, Database],
    relay_pools: dict[ServiceName, Database],
    tenant: str,
    tmp_path: Path,
    clock: Clock,
) -> AsyncIterator[Shop]:
    options = Options()
    app = create_app(tmp_path / "store.db", options)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://provider",
            headers={"Authorization": f"Bearer {options.api_key}"},
        ) as http,
    ):
        provider = HttpPaymentProvider(
            http,
            api_key=options.api_key,
            guard=assert_no_transaction,
            idempotency_lifetime=options.idempotency_lifetime,
        )
        payments = PaymentActivities(databases["payment"], provider)
        reactions: dict[ServiceName, Mapping[str, Reaction]] = {
            "order": {STEP_REPORTED.name: ReportReaction(clock, tell=("erp",))},
            "inventory": inventory_reactions(databases["inventory"], clock),
            "payment": payment_reactions(databases["payment"], payments, clock),
            "account": account_reactions(databases["account"], clock),
            "points": points_reactions(databases["points"], clock),
            "ledger": ledger_reactions(databases["ledger"], clock),
        }
        sinks = {f"inbox:{s}": InboxSink(relay_pools[s], now=clock) for s in SERVICES}
        yield Shop(
            databases=databases,
            tenant=tenant,
            clock=clock,
            http=http,
            relays={s: Relay(s, relay_pools[s], sinks, holder="test", now=clock) for s in SERVICES},
            consumers={s: Consumer(databases[s], reactions[s], now=clock) for s in SERVICES},
            orders=ChoreographyActivities(databases["order"]),
            reactions=reactions,
        )
