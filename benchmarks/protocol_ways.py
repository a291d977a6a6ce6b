"""The same order by every way that there is; each sells one to its end, and says when."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from temporalio.client import Client, WorkflowHistory

from benchmarks import single_database
from benchmarks.protocol_order import wanted
from everycent import clock
from everycent.database.engine import Database
from everycent.domain.mode import Mode
from everycent.domain.order import Decision, OpenedOrder
from examples.lines import code_lines
from starters.checkouts import Checkouts
from starters.choreographed import ChoreographedOrders

ROOT = Path(__file__).parents[1]
FLOW = ("checkout", "checkout_plan", "checkout_counter", "checkout_steps", "checkout_wish")
MESSAGES = (
    "domain/choreography", "domain/order_steps", "database/choreography", "activities/choreography",
    "activities/reactions", "activities/participants", "starters/choreographed",
)  # fmt: skip


class Way(Protocol):
    """A way to sell the order; it is sold when its row in the order database says so."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def platform(self) -> bool:
        """Whether it runs on Temporal, the services' workers and the relay."""

    @property
    def files(self) -> tuple[str, ...]:
        """What stands in the repository for this way."""

    async def begin(self, order_id: str) -> None:
        """Return when the client may be told that the order is taken."""


def lines_of_code(way: Way) -> int:
    """Count the lines that hold code of this way: what tells its flow, not the steps it calls."""
    return sum(len(code_lines((ROOT / file).read_text())) for file in way.files)


@dataclass
class OneTransaction:
    """Everything in one database and one transaction: the limit, and no platform at all."""

    database: Database
    name: ClassVar = "one database"
    platform: ClassVar = False
    files: ClassVar = ("benchmarks/single_database.py",)

    async def begin(self, order_id: str) -> None:
        """Sell it."""
        async with self.database.transaction() as tx:
            await single_database.sell(tx, wanted(order_id), at=clock.now())


@dataclass
class Driven:
    """A workflow drives it, in one of the modes."""

    client: Client
    checkouts: Checkouts
    mode: Mode
    platform: ClassVar = True

    @property
    def name(self) -> str:
        """The mode's own."""
        return self.mode.value

    @property
    def files(self) -> tuple[str, ...]:
        """The flow, the undo, and what all modes share; TCC's also what it waits with."""
        tcc = () if self.mode is Mode.SAGA else ("tcc",)
        return tuple(f"workflows/{name}.py" for name in (*FLOW, "protocols", "saga", *tcc))

    async def begin(self, order_id: str) -> None:
        """Place it: answered once it is decided, while its confirmations are still under way."""
        placed = await self.checkouts.place(wanted(order_id, self.mode))
        assert placed.decision in (Decision.COMMITTING, Decision.COMMITTED), placed

    async def history(self, order_id: str) -> WorkflowHistory:
        """Return what the order's workflow has left behind, once it has ended."""
        handle = self.client.get_workflow_handle(wanted(order_id).workflow_id())
        await handle.result()
        return await handle.fetch_history()


@dataclass
class Messages:
    """No flow: services follow each other's messages."""

    orders: ChoreographedOrders
    name: ClassVar = Mode.CHOREOGRAPHED.value
    platform: ClassVar = True
    files: ClassVar = tuple(
        f"{'everycent/' if name.startswith('d') else ''}{name}.py" for name in MESSAGES
    )

    async def begin(self, order_id: str) -> None:
        """Write it down with its first event: answered before anything is held."""
        opened = await self.orders.start(wanted(order_id))
        assert isinstance(opened, OpenedOrder), opened
