"""A whole stack whose processes can be killed at a moment that the test has seen come."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy.exc import DBAPIError
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from everycent.database.reads import Reader
from everycent.domain.order import (
    CardPayment,
    OrderLine,
    OrderResult,
    Payment,
    Placement,
    PlaceOrder,
)
from everycent.errors import Transient, Unknown, Unreachable
from everycent.settings import ServiceName
from everycent.stack.embedded import WORKERS as APART
from everycent.stack.embedded import EmbeddedStack
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.client import connect
from tests.faults.books import intents_of

LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
PLACING_SECONDS = 150.0  # A step whose worker died is tried again after a minute at most.
# What whoever asks a dying stack is told; he asks again.
DYING = (
    Transient, Unknown, Unreachable, RPCError, httpx.TransportError, DBAPIError, OSError,
    asyncpg.PostgresError, asyncpg.InterfaceError,
)  # fmt: skip


@dataclass
class Site:
    """The stack, and what a test does to it and in it."""

    stack: EmbeddedStack
    client: Client
    reader: Reader
    checkouts: Checkouts
    bookings: Bookings
    provider: httpx.AsyncClient
    killed: set[str] = field(default_factory=set)
    _dead: set[int] = field(default_factory=set)

    # -- what is done to the stack

    def kill(self, *names: str) -> None:
        """Kill processes as the kernel would: nothing of them runs on."""
        for name in names:
            self._dead.add(self.signal(name, signal.SIGKILL))
            self.killed.add(name)

    def signal(self, name: str, number: signal.Signals) -> int:
        pid = self.stack.processes[name].pid
        assert pid is not None, f"{name} does not run"
        os.kill(pid, number)
        return pid

    async def all_ready(self) -> None:
        """Wait until every process is ready, and none is one that was killed."""

        async def ready() -> bool:
            views = self.stack.processes.values()
            return all(v.state in ("ready", "done") and v.pid not in self._dead for v in views)

        await self.until(ready)
        await self.reader.close()  # Its connections may be those of a dead server.

    async def restart_everything(self) -> None:
        """Do what an operator does: Ctrl-C, and `up` again on the same folder."""
        folder = self.stack.folder.path
        await asyncio.to_thread(self.stack.stop)
        self.stack = EmbeddedStack(folder, workers=self.stack.workers)
        await asyncio.to_thread(self.stack.start)
        await self.reader.close()

    @contextlib.asynccontextmanager
    async def rows_locked(self, service: ServiceName, select: str) -> AsyncIterator[None]:
        """Hold rows, so that who needs them waits inside its transaction until the end."""
        dsn = self.stack.postgres.dsn(f"everycent_{service}")
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("BEGIN")
            held = await connection.fetch(f"{select} FOR UPDATE")
            assert held, f"there is nothing to lock: {select}"
            yield
        finally:
            connection.terminate()  # The server may be dead; else it rolls back by itself.

    async def wait_for_lock(self, *services: ServiceName) -> None:
        """Wait until a worker of each service waits for a lock, all in one look."""

        async def waiting() -> bool:
            connection = await asyncpg.connect(self.stack.postgres.dsn())
            try:
                rows = await connection.fetch(
                    "SELECT DISTINCT datname FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
            finally:
                await connection.close()
            return {f"everycent_{service}" for service in services} <= {row[0] for row in rows}

        await self.until(waiting)

    async def until(
        self, condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Look until it is so; a stack that cannot answer has not said yes."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(*DYING):
                    if await condition():
                        return
                await asyncio.sleep(LOOK_SECONDS)

    # -- what is done in the shop

    async def place(self, order: PlaceOrder) -> Placement:
        """Place an order as a person does: who gets an error types it again."""
        async with asyncio.timeout(PLACING_SECONDS):
            while True:
                with contextlib.suppress(*DYING):
                    return await self.checkouts.place(order)
                await asyncio.sleep(LOOK_SECONDS)

    async def result(self, order: PlaceOrder, seconds: float = PATIENCE_SECONDS) -> OrderResult:
        """Wait until the order is final in its own row and return how it ended."""
        found: list[OrderResult] = []

        async def final() -> bool:
            view = await self.reader.order(order.tenant, order.order_id)
            found.extend([view.result] if view and view.result else [])
            return bool(found)

        await self.until(final, seconds)
        return found[0]

    async def pay_on_page(self, placement: Placement) -> None:
        assert placement.redirect_url, f"{placement.order_id} has no page to pay on"
        (await self.provider.post(placement.redirect_url)).raise_for_status()

    async def delete_from_temporal(self, order: PlaceOrder) -> None:
        """Delete the order's workflow, as an operator or the end of the retention does."""
        handle = self.client.get_workflow_handle(order.workflow_id())
        execution = WorkflowExecution(workflow_id=handle.id)
        await self.client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(
                namespace=self.client.namespace, workflow_execution=execution
            )
        )

        async def gone() -> bool:
            try:
                await handle.describe()
            except RPCError as error:
                return error.status is RPCStatusCode.NOT_FOUND
            return False

        await self.until(gone)

    # -- what is seen

    async def count(self, service: ServiceName, table: str, where: str) -> int:
        [row] = await self.reader.rows(
            service, f"SELECT count(*) AS rows FROM {table} WHERE {where}"
        )
        return int(row["rows"])

    async def held_at_provider(self) -> int:
        return int((await self.provider.get("/admin/held")).json()["held"])

    async def intents(self, tenant: str) -> list[dict[str, Any]]:
        return await intents_of(self.provider, tenant)

    async def stock(self, tenant: str) -> dict[str, tuple[int, int, int]]:
        """Return free, held and sold units per SKU."""
        return {s.sku: (s.free, s.held, s.sold) for s in await self.reader.stock(tenant)}


GOOD_CARD = CardPayment(card_token="tok_ok")


def order_of_shop(
    tenant: str,
    order_id: str,
    payment: Payment | None = GOOD_CARD,
    *,
    sku: str = "LAMP",
    units: int = 1,
    amount_minor: int = 2933,
    points: int = 0,
    window_seconds: int = 900,
) -> PlaceOrder:
    return PlaceOrder(
        tenant=tenant,
        order_id=order_id,
        customer="ada",
        currency="EUR",
        lines=(OrderLine(sku=sku, units=units, amount_minor=amount_minor),),
        payment=payment,
        points=points,
        payment_window_seconds=window_seconds,
    )


async def place_all(site: Site, orders: Sequence[PlaceOrder]) -> list[Placement]:
    return list(await asyncio.gather(*(site.place(order) for order in orders)))


@pytest.fixture(scope="module")
async def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """Everything runs: PostgreSQL, Temporal, the simulator and the workers that a module names."""
    workers = getattr(request.module, "WORKERS", APART)
    stack = EmbeddedStack(Path(tmp_path_factory.mktemp("faults")) / "data", workers=workers)
    await asyncio.to_thread(stack.start)
    site: Site | None = None
    try:
        settings = stack.settings
        client = await connect(settings)
        reader = Reader(settings)
        async with httpx.AsyncClient(
            base_url=settings.provider.url, timeout=20, trust_env=False
        ) as provider:
            together = settings.steps == "together"
            checkouts = Checkouts(client, reader, together=together)
            bookings = Bookings(client, together=together)
            site = Site(stack, client, reader, checkouts, bookings, provider)
            yield site
        await reader.close()
    finally:
        await asyncio.to_thread((site.stack if site else stack).stop)
