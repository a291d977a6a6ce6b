"""A whole embedded stack for the starters, and the command line on it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from typer.testing import CliRunner, Result

from everycent.database.reads import Reader, reading
from everycent.domain.order import CardPayment, OrderLine, Payment, PlaceOrder
from everycent.settings import Settings
from everycent.stack.embedded import EmbeddedStack
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.cli.app import app
from starters.client import connect

PATIENCE_SECONDS = 60.0
GOOD_CARD = CardPayment(card_token="tok_ok")


class CommandLine:
    """`everycent` on the stack's folder, in this process (one at a time), for one shop."""

    def __init__(self, folder: Path, tenant: str) -> None:
        self.folder = folder
        self.tenant = tenant

    async def __call__(self, *words: str, given: str | None = None, shop: bool = True) -> Result:
        tenant = ("--tenant", self.tenant) if shop else ()
        line = [*words, *tenant, "--data-dir", str(self.folder)]
        return await asyncio.to_thread(CliRunner().invoke, app, line, input=given)

    async def json(self, *words: str, shop: bool = True) -> Any:
        done = await self(*words, "--json", shop=shop)
        return json.loads(done.stdout)

    async def place(self, order: PlaceOrder, *words: str) -> Result:
        document = order.model_dump_json()
        return await self("order", "place", "-", *words, given=document, shop=False)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """PostgreSQL, Temporal, the simulator and all workers."""
    with EmbeddedStack(Path(tmp_path_factory.mktemp("starters")) / "data") as stack:
        yield stack


@pytest.fixture(scope="session")
def live(stack: EmbeddedStack) -> Settings:
    """The settings of the running stack."""
    return stack.settings


@pytest.fixture
def everycent(stack: EmbeddedStack, tenant: str) -> CommandLine:
    """The command line, for this test's own shop."""
    return CommandLine(stack.folder.path, tenant)


@pytest.fixture(scope="session")
async def client(live: Settings) -> Client:
    return await connect(live)


@pytest.fixture(scope="session")
async def reader(live: Settings) -> AsyncIterator[Reader]:
    async with reading(live) as reader:
        yield reader


@pytest.fixture
def checkouts(client: Client, reader: Reader) -> Checkouts:
    return Checkouts(client, reader)


@pytest.fixture
def bookings(client: Client) -> Bookings:
    return Bookings(client)


@pytest.fixture
def an_order(tenant: str) -> Callable[..., PlaceOrder]:
    """Make an order of one lamp for 2,999 cents, paid by a good card unless said otherwise."""

    def make(
        order_id: str = "o-1",
        *,
        units: int = 1,
        amount_minor: int = 2_999,
        payment: Payment | None = GOOD_CARD,
        **more: Any,
    ) -> PlaceOrder:
        line = OrderLine(sku="LAMP", units=units, amount_minor=amount_minor)
        return PlaceOrder(
            tenant=tenant,
            order_id=order_id,
            customer="ada",
            currency="USD",
            lines=(line,),
            payment=payment,
            **more,
        )

    return make


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Wait until it is so, but not for ever."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.05)

    return wait
