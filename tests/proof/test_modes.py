"""Every story in every mode: an order ends in the same state, whatever protocol it runs by."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from everycent.database.shadow_reads import shadows
from everycent.domain.mode import Mode
from everycent.proof.simulation import SERVERS, Plan, simulation
from everycent.proof.stories import SIMULATED
from everycent.proof.world import World
from everycent.settings import Settings
from everycent.stack.embedded import EmbeddedStack
from tests.faults.books import books_of
from workers.composition import consumers_of, relays
from workflows.protocols import PROTOCOLS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    stack = EmbeddedStack(Path(tmp_path_factory.mktemp("modes")) / "data", parts=SERVERS)
    await asyncio.to_thread(stack.start)
    yield stack
    await asyncio.to_thread(stack.stop)


async def end_of(world: World, tenant: str, order_id: str, mode: Mode) -> dict[str, Any]:
    """Return all that the services keep of an order at its end."""
    file = await world.reader.order_file(tenant, order_id)
    assert file is not None
    assert file.order.mode is mode
    result = file.order.result
    assert result is not None
    return {
        "result": result.model_dump(exclude={"order_id", "reason", "refusals", "undone"}),
        "reason": result.reason.partition(",")[0],  # Without the units that were free just then.
        "undone": sorted(result.undone),
        "units": (file.units_held, file.units_sold),
        "money": (file.captured_minor, file.refunded_minor),
        "points": (file.points_used, file.points_earned),
        "entries": sorted((e.account, e.amount_minor) for e in file.entries),
    }


@pytest.mark.requirement("AC2.1", "AC6.6", "AC9.5", "AC19.4")
async def test_every_story_ends_in_the_same_state_in_every_mode(stack: EmbeddedStack) -> None:
    """The same orders with the same keys, steps and faults, audited every hour of simulated time.

    Which Try was refused first, and so which undos there were, is the one thing that may differ:
    in TCC all of them were begun, and in the mixed mode too.

    Red when: a mode drops a step, takes another way out of a fault, or a shadow foretells wrongly.
    """
    plans = [
        Plan(f"{mode}-{story.name}", timedelta(minutes=n), story, {"mode": mode})
        for n, story in enumerate(SIMULATED)
        for mode in PROTOCOLS
    ]
    async with simulation(stack.settings) as shop:
        report = await shop.run(plans, days=1)  # It tells every story, and audits every hour.
        world, tenant = shop.world, shop.tenant
        await carry(stack.settings, world.now)
        ends = {
            (story.name, mode): await end_of(world, tenant, f"{mode}-{story.name}", mode)
            for story in SIMULATED
            for mode in PROTOCOLS
        }
        await shadows_foretell(world, tenant)
    assert report.totals.orders_by_status.keys() == {story.status for story in SIMULATED}
    for story in SIMULATED:
        saga = ends[story.name, Mode.SAGA]
        undone = set(saga.pop("undone"))
        for mode in (Mode.TCC, Mode.MIXED):
            other = ends[story.name, mode]
            assert undone <= set(other.pop("undone")), (story.name, mode)
            assert saga == other, (story.name, mode)


async def carry(settings: Settings, now: Callable[[], datetime]) -> None:
    """Bring what follows the orders of the mixed mode, until nothing moves any more."""
    async with contextlib.AsyncExitStack() as stack:
        loops = [*await stack.enter_async_context(relays(settings, now=now))]
        for service in ("order", "points"):
            loops += await stack.enter_async_context(consumers_of(service, settings, now=now))
        while sum([await loop.run_pass() for loop in loops]):
            pass


async def shadows_foretell(world: World, tenant: str) -> None:
    """What the sagas would have come to in TCC is what the same orders in TCC did come to.

    Asking changes no row (AC9.5).
    """
    before = await books_of(world.reader, tenant)
    found = await shadows(world.reader, tenant, Mode.TCC, limit=1000)
    assert await books_of(world.reader, tenant) == before
    asked = {each.order_id: each for each in found}
    sagas = {name: each for name, each in asked.items() if name.startswith("saga-")}
    told = {name.removeprefix("saga-"): each for name, each in sagas.items() if each.then}
    # Where a person or a broken step stopped it half way, its own plan does not say how far.
    untold = {name.removeprefix("saga-") for name, each in sagas.items() if each.then is None}
    assert untold <= {"rejected-by-a-failed-step", "cancelled-during-payment"}
    for name, each in told.items():
        assert each.then == asked[f"tcc-{name}"].today, name
    assert told["rejected-out-of-stock"].more == ("payment",)
    assert not told["confirmed-with-points"].differs
