"""The same order by every way: `python -m benchmarks.protocols [--quick] [--json F]`.

One transaction in one database is the limit; beside it two-phase commit, each mode that a workflow
drives, and the mode of messages alone. All sell on one stack, by turns, in rounds; each ratio is
taken within its round. Then an audit goes over everything that was sold.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg
import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks import single_database
from benchmarks.machine import CpuMeter
from benchmarks.order_history import cost_of
from benchmarks.orders import at_pace
from benchmarks.protocol_meters import Meters
from benchmarks.protocol_order import CUSTOMERS, SKU, TENANT, customer_of
from benchmarks.protocol_page import write_into
from benchmarks.protocol_report import ProtocolReport, WayFigures
from benchmarks.protocol_watch import ONE, Seen, Watcher
from benchmarks.protocol_ways import Driven, Messages, OneTransaction, Way, lines_of_code
from benchmarks.two_phase_order import BRANCHES, TwoPhases
from everycent.clock import now
from everycent.database.engine import Database
from everycent.database.reads import reading
from everycent.domain.mode import Mode
from everycent.proof.audit import audit
from everycent.settings import PoolSettings
from everycent.stack.embedded import EmbeddedStack
from examples.two_phase_commit import LOG
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.choreographed import ChoreographedOrders
from starters.client import connect
from workflows.catalog import MODES
from workflows.checkout import Checkout

LOOK_SECONDS = 0.01
RESULTS = Path(__file__).with_name("protocols.json")
DOCUMENT = Path(__file__).parents[1] / "docs" / "choosing.md"


@dataclass(frozen=True)
class Size:
    """How much is sold; ways without a platform sell `quick_factor` as much: they take no time."""

    rounds: int = 4
    warm: int = 10
    crowd: int = 30
    in_flight: int = 8
    alone: int = 8
    watched: int = 6
    counted: int = 8
    quick_factor: int = 3
    settle_seconds: float = 11.0


QUICK = Size(rounds=1, warm=2, crowd=2, in_flight=2, alone=1, watched=1, counted=1, quick_factor=2,
             settle_seconds=0.0)  # fmt: skip


class Shop:
    """Sells one order and tells after how many seconds it was answered, and done."""

    def __init__(self, orders: asyncpg.Connection) -> None:
        self._orders = orders
        self._open: dict[str, asyncio.Future[float]] = {}
        self._run = uuid.uuid4().hex[:6]
        self._numbers = count()

    def order_id(self) -> str:
        """Return an id that no order had."""
        return f"{self._run}-{next(self._numbers)}"

    async def sell(self, way: Way, order_id: str) -> tuple[float, float]:
        """Return when the order was answered and when its row was closed."""
        began = time.perf_counter()
        if way.platform:
            closed = self._open[order_id] = asyncio.get_running_loop().create_future()
        await way.begin(order_id)
        answered = time.perf_counter()
        done = await closed if way.platform else answered
        return answered - began, done - began

    async def look(self) -> None:
        """See, without an end, which orders are closed: the same look for every way."""
        while True:
            if self._open:
                rows = await self._orders.fetch(
                    "SELECT order_id FROM shop_order WHERE tenant = $1 AND order_id = ANY($2)"
                    " AND result ->> 'status' = 'CONFIRMED'", TENANT, list(self._open),
                )  # fmt: skip
                seen = time.perf_counter()
                for row in rows:
                    self._open.pop(row["order_id"]).set_result(seen)
            await asyncio.sleep(LOOK_SECONDS)


@dataclass
class Bench:
    """Everything that is needed to sell by each way, and to look on."""

    stack: EmbeddedStack
    size: Size
    shop: Shop
    watcher: Watcher
    meters: Meters
    ways: Sequence[Way]
    figures: dict[str, WayFigures]
    seen: defaultdict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))

    async def run(self) -> None:
        """Warm up, count, and take the rounds."""
        for way in self.ways:
            await self._crowd(way, WayFigures(name=way.name), self.size.warm)
        await self._count()
        for number in range(self.size.rounds):
            # Each round begins with another way: none is always the first after a pause.
            first = number % len(self.ways)
            for way in (*self.ways[first:], *self.ways[:first]):
                told = self.figures[way.name]
                await self._crowd(way, told, self.size.crowd)
                await self._alone(way, told)
                await self._watch(way, told)
            told_rates = (f"{n} {f.per_second[-1]:.1f}/s" for n, f in self.figures.items())
            _say(f"round {number + 1}: {', '.join(told_rates)}")
        for name, seen in self.seen.items():
            self.figures[name].add_seen(seen)

    def _many(self, way: Way, number: int) -> int:
        return number if way.platform else number * self.size.quick_factor

    async def _crowd(self, way: Way, told: WayFigures, number: int) -> None:
        """Sell with several in flight: the pace, and how long each then takes."""
        orders, cpu = self._many(way, number), CpuMeter(self.stack)

        async def one(_: int) -> None:
            answered, done = await self.shop.sell(way, self.shop.order_id())
            told.answered_ms.append(1000 * answered)
            told.done_ms.append(1000 * done)

        pace = await at_pace(orders, one, in_flight=self.size.in_flight)
        told.per_second.append(pace.per_second)
        told.cpu_ms.append(1000 * sum(cpu.read().values()) / orders)

    async def _alone(self, way: Way, told: WayFigures) -> None:
        """Sell one after the other: how long one takes when nobody is in its way."""
        for _ in range(self._many(way, self.size.alone)):
            _, done = await self.shop.sell(way, self.shop.order_id())
            told.alone_ms.append(1000 * done)

    async def _watch(self, way: Way, told: WayFigures) -> None:
        """Sell one after the other in front of an outside reader."""
        for _ in range(self._many(way, self.size.watched)):
            order_id = self.shop.order_id()
            await self.watcher.begin(order_id, at_once=way.name == ONE)
            await self.shop.sell(way, order_id)
            self.seen[way.name].append(await self.watcher.end())

    async def _count(self) -> None:
        """Count what an order writes, way after way, with nothing else going on."""
        before = await self.meters.watch_idle()
        for way in self.ways:
            told = self.figures[way.name]
            orders = [self.shop.order_id() for _ in range(self._many(way, self.size.counted))]
            for order_id in orders:
                await self.shop.sell(way, order_id)
            after = await self.meters.settled()
            told.fsyncs, told.writes = self.meters.per_order(after.since(before), len(orders))
            told.messages = await self.meters.messages(orders)
            if isinstance(way, Driven):
                costs = [cost_of(await way.history(order_id)) for order_id in orders]
                told.events = sum(cost.events for cost in costs) / len(costs)
                told.actions = sum(cost.actions for cost in costs) / len(costs)
            elif way.platform:
                told.actions = 1  # The activity that writes the order down; it has no history.
            before = after


@contextlib.asynccontextmanager
async def opened(stack: EmbeddedStack, size: Size) -> AsyncIterator[Bench]:
    """Fill the shop, open every way, and give all of it back at the end."""
    settings = stack.settings
    client = await connect(settings)
    async with contextlib.AsyncExitStack() as opened:
        reader = await opened.enter_async_context(reading(settings))
        one_dsn = await _one_database(stack)
        one = Database(one_dsn, PoolSettings(size=size.in_flight), name="benchmark")
        opened.push_async_callback(one.close)
        await _fill(Bookings(client), one)
        engines: dict[str, AsyncEngine] = {
            name: create_async_engine(
                settings.owner[name].replace("postgresql:", "postgresql+asyncpg:", 1),
                pool_size=size.in_flight, max_overflow=size.in_flight,
            )
            for name in BRANCHES
        }  # fmt: skip
        for engine in engines.values():
            opened.push_async_callback(engine.dispose)
        async with engines["order"].begin() as log:
            await log.execute(text(LOG))
        looking: dict[str, str] = {name: settings.owner[name] for name in BRANCHES}
        watcher = await opened.enter_async_context(Watcher.started({**looking, ONE: one_dsn}))
        http = await opened.enter_async_context(httpx.AsyncClient(trust_env=False))
        connection = await asyncpg.connect(settings.owner["order"])
        opened.push_async_callback(connection.close)
        superuser = await asyncpg.connect(stack.postgres.dsn())
        opened.push_async_callback(superuser.close)
        meters = await Meters.of(stack, superuser, http)
        meters.settle_seconds = size.settle_seconds
        shop = Shop(connection)
        looker = asyncio.create_task(shop.look())
        opened.callback(looker.cancel)
        checkouts = Checkouts(client, reader)
        ways: tuple[Way, ...] = (
            OneTransaction(one),
            TwoPhases.over(engines),
            *(Driven(client, checkouts, m) for m in MODES[Checkout] if m is not Mode.CHOREOGRAPHED),
            Messages(ChoreographedOrders(client, reader)),
        )
        figures = {
            way.name: WayFigures(name=way.name, lines_of_code=lines_of_code(way)) for way in ways
        }
        yield Bench(stack, size, shop, watcher, meters, ways, figures)


async def measure(stack: EmbeddedStack, size: Size) -> ProtocolReport:
    """Sell by every way, and audit what was sold."""
    report = ProtocolReport.begin(
        at=now().isoformat(timespec="seconds"), quick=size is QUICK, size=vars(size)
    )
    async with opened(stack, size) as bench:
        await bench.run()
        audited = await audit(stack.settings, tenant=TENANT)
    assert audited.ok, audited
    report.ways = list(bench.figures.values())
    report.audited_orders = audited.totals.orders_confirmed
    report.load_average_at_end = [round(load, 2) for load in os.getloadavg()]
    return report


async def _one_database(stack: EmbeddedStack) -> str:
    await asyncio.to_thread(stack.postgres.execute, "CREATE DATABASE one_shop")
    return stack.postgres.dsn("one_shop")


async def _fill(bookings: Bookings, one: Database) -> None:
    customers = [customer_of(number) for number in range(CUSTOMERS)]
    await bookings.receive_stock(TENANT, SKU, 10**8, request="fill")
    deposits = (bookings.deposit(TENANT, c, 10**12, "USD", request="fill") for c in customers)
    await asyncio.gather(*deposits)
    async with one.transaction() as tx:
        await single_database.fill(tx, TENANT, sku=SKU, customers=customers)


def main() -> None:
    """Measure, keep the figures, and write them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one order each: it works, no more")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="everycent-bench-") as folder,
        EmbeddedStack(Path(folder) / "data", tell=_say) as stack,
    ):
        size = QUICK if options.quick else Size(rounds=options.rounds)
        report = asyncio.run(measure(stack, size))
    options.json.write_text(report.model_dump_json(indent=2) + "\n")
    write_into(options.document, report)
    _say(f"kept in {options.json}, told in {options.document}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
    # The Temporal SDK's threads abort about every twelfth Python 3.11 process at a normal exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
