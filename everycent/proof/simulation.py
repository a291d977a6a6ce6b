"""A month of shop in minutes: seeded orders of every outcome in simulated time, audited every hour.

A seed fixes which orders come when, and what happens to each. Run as
`python -m everycent.proof.simulation --seed N --days 30`.
"""

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from everycent.database.reads import Reader
from everycent.domain.order import OrderLine, OrderResult
from everycent.proof.audit import audit_again, auditor
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.report import AuditReport, RuleState
from everycent.proof.stories import SIMULATED, SKU, Scene, Story, fill_shop
from everycent.proof.time_skipping import NoOrphans, SimulatedTime, Unhurried, time_skipping_server
from everycent.proof.world import World, hush, provider_client, world_of
from everycent.settings import Settings
from everycent.stack.embedded import EmbeddedStack, Part

SERVERS: tuple[Part, ...] = ("postgres", "migrate", "simulator")  # Temporal is another one here.
MONTH_DAYS = 30
ORDERS_PER_DAY = 50
OF_EACH_STORY = 20  # In a month; in a day at least one.
SKUS = (SKU, "DISC", "VASE", "BOOK", "SOFA")
CUSTOMERS = ("cleo", "dora", "emil")
WINDOW_SECONDS = 420
LAST_HOURS = 48  # In which what is under way after the last day has to end.
_ENDED = (
    "SELECT order_id, result FROM shop_order WHERE tenant = :tenant"
    " AND result IS NOT NULL AND order_id = ANY(:ids)"
)


class SimulationFailedError(Exception):
    """Something did not hold; the text ends with the command that does it all again."""


@dataclass(frozen=True)
class Plan:
    """One order to come: when, what happens to it, and what is ordered."""

    order_id: str
    after: timedelta
    story: Story
    wishes: dict[str, Any]


def plan(seed: int, days: int, stories: Sequence[Story] = SIMULATED) -> list[Plan]:
    """Return the orders of a seed: every story as often as it must be, the rest by chance."""
    chance = random.Random(seed)  # noqa: S311
    deck = [*stories] * max(1, OF_EACH_STORY * days // MONTH_DAYS)
    deck += chance.choices(stories, k=max(0, days * ORDERS_PER_DAY - len(deck)))
    chance.shuffle(deck)
    plans = []
    for number, story in enumerate(deck):
        minute = chance.triangular(7 * 60, 24 * 60, 20 * 60)  # Most come in the evening.
        after = timedelta(days=number % days, minutes=minute)
        plans.append(Plan(f"o-{number}", after, story, _wishes(chance, story)))
    return plans


def _wishes(chance: random.Random, story: Story) -> dict[str, Any]:
    """Order something else than a story's usual, where the story does not depend on it."""
    units, sku = chance.randint(1, 3), chance.choice(SKUS)
    amount_minor, customer = chance.randint(1, 50_000), chance.choice(CUSTOMERS)
    if story.units != 1 or not story.amount_minor or "points" in story.changes:
        return {}
    line = OrderLine(sku=sku, units=units, amount_minor=amount_minor)
    return {"lines": (line,), "customer": customer}


@dataclass
class Simulation:
    """The shop of one seed while its days pass."""

    world: World
    time: SimulatedTime
    auditor: Reader
    say: Callable[[str], None]
    tenant: str = "month"
    audits: int = 0
    told: Counter[str] = field(default_factory=Counter)  # Orders that ended, by story.
    _open: dict[str, Story] = field(default_factory=dict)  # By order id, until audited at its end.

    async def run(self, plans: Sequence[Plan], days: int) -> AuditReport:
        """Let the days pass with an audit every hour; return the last one, over everything.

        Raises SimulationFailedError at the first broken rule, failed story or wrong end.
        """
        await fill_shop(self.world, self.tenant)
        for sku in SKUS:
            await self.world.receive_stock(self.tenant, sku, 100_000, request="second")
        people = [asyncio.ensure_future(self._live(each)) for each in plans]
        self.time.busy += len(people)
        try:
            hour = 0
            while hour < days * 24 or self._open:
                hour += 1
                await self._pass_hour(hour, people)
                if hour > days * 24 + LAST_HOURS:
                    raise SimulationFailedError(f"{sorted(self._open)} did not end")
            return await self._audit(hour, orders=None)
        finally:
            for person in people:
                person.cancel()
            await asyncio.gather(*people, return_exceptions=True)

    async def _live(self, plan: Plan) -> None:
        try:
            await self.time.until(self.time.begins + plan.after)
            order = plan.story.order(self.world, self.tenant, plan.order_id, **plan.wishes)
            self._open[order.order_id] = plan.story
            await plan.story.play(Scene(self.world, order))
        finally:
            self.time.busy -= 1

    async def _pass_hour(self, hour: int, people: "Sequence[asyncio.Future[None]]") -> None:
        await self.time.pass_to(self.time.begins + timedelta(hours=hour))
        for person in people:
            if person.done() and (error := person.exception()) is not None:
                raise SimulationFailedError(f"a story broke off: {error!r}") from error
        ended = await self.world.reader.rows(
            "order", _ENDED, tenant=self.tenant, ids=list(self._open)
        )
        whole_day = hour % 24 == 0
        await self._audit(
            hour, orders=None if whole_day else [f"{self.tenant}/{o}" for o in self._open]
        )
        for row in ended:
            story, result = self._open.pop(row["order_id"]), OrderResult(**row["result"])
            self.told[story.name] += 1
            if not story.is_end(result):
                raise SimulationFailedError(f"{result.order_id} ({story.name}) ended as {result}")
        if whole_day:
            self.say(f"day {hour // 24}: {self.told.total()} orders ended, {self.audits} audits")

    async def _audit(self, hour: int, orders: Sequence[str] | None) -> AuditReport:
        books = SimulatorBooks(self.world.provider)
        report = await audit_again(
            self.auditor, at=self.time.at, tenant=self.tenant, orders=orders, provider=books
        )
        self.audits += 1
        broken = [rule for rule in report.rules if rule.state is RuleState.BROKEN]
        if broken:
            raise SimulationFailedError(f"hour {hour}: {broken}")
        return report


@contextlib.asynccontextmanager
async def simulation(
    settings: Settings, say: Callable[[str], None] = lambda line: None
) -> AsyncIterator[Simulation]:
    """Open a shop in simulated time on databases and a provider that run."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(time_skipping_server())
        provider = await stack.enter_async_context(provider_client(settings))

        async def set_provider_clock(at: datetime) -> None:
            (await provider.post("/admin/clock", json={"now": at.isoformat()})).raise_for_status()

        activities, begins = NoOrphans(), await server.get_current_time()
        simulated = SimulatedTime(server, begins, set_provider_clock, activities)
        world = await stack.enter_async_context(
            world_of(
                settings,
                server.client,
                now=simulated.now,
                later=simulated.later,
                short_window_seconds=WINDOW_SECONDS,
                interceptors=[activities, Unhurried()],
            )
        )
        reader = await stack.enter_async_context(auditor(settings))
        yield Simulation(world, simulated, reader, say)


async def simulate(seed: int, days: int, say: Callable[[str], None]) -> None:
    """Simulate on servers of its own and say what came of it."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="everycent-simulation-") as folder,
        EmbeddedStack(Path(folder) / "data", parts=SERVERS, durable=False) as stack,
    ):
        async with simulation(stack.settings, say) as shop:
            report = await shop.run(plan(seed, days), days)
    for name, count in sorted(shop.told.items()):
        say(f"{count:6}  {name}")
    say(f"{report.totals.orders_by_status}")
    say(
        f"{shop.told.total()} orders in {days} days, {shop.audits} audits, nothing out of place;"
        f" {time.monotonic() - began:.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate as the command line says; 5 if something did not hold, and how to see it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=MONTH_DAYS)
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        asyncio.run(simulate(given.seed, given.days, say))
    except SimulationFailedError as error:
        say(f"{error}\nagain: make simulate SEED={given.seed} DAYS={given.days}")
        return 5
    return 0


if __name__ == "__main__":
    hush()
    code = main()
    os._exit(code)  # A process with the SDK in it may abort when it ends by itself.
