"""Every story in every mode: an order ends in the same state, whatever protocol it runs by."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from everycent.domain.mode import Mode
from everycent.proof.audit import audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.histories import SERVERS
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.report import RuleState
from everycent.proof.stories import STORIES, Scene, Story, fill_shop, tell
from everycent.proof.world import World, world_of
from everycent.stack.embedded import EmbeddedStack
from starters.client import connect
from workflows.protocols import PROTOCOLS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SHORT_WINDOW = 8  # Seconds in which a run gets to its page, also on a busy machine.


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    stack = EmbeddedStack(Path(tmp_path_factory.mktemp("modes")) / "data", parts=SERVERS)
    await asyncio.to_thread(stack.start)
    yield stack
    await asyncio.to_thread(stack.stop)


async def end_of(world: World, story: Story, mode: Mode) -> dict[str, Any]:
    """Tell the story in a mode and return all that the services keep of it at its end."""
    order = story.order(world, f"shop-{mode}", story.name, mode=mode)
    await tell(story, Scene(world, order))
    file = await world.reader.order_file(order.tenant, order.order_id)
    assert file is not None
    assert file.order.mode is mode
    result = file.order.result
    assert result is not None
    return {
        "result": result.model_dump(exclude={"tenant", "reason", "refusals", "undone"}),
        "reason": result.reason.partition(",")[0],  # Without the units that were free just then.
        "undone": sorted(result.undone),
        "units": (file.units_held, file.units_sold),
        "money": (file.captured_minor, file.refunded_minor),
        "points": (file.points_used, file.points_earned),
        "entries": sorted((e.account, e.amount_minor) for e in file.entries),
    }


@pytest.mark.requirement("AC2.1", "AC6.6", "AC19.4")
async def test_every_story_ends_in_the_same_state_in_every_mode(stack: EmbeddedStack) -> None:
    """The same orders with the same keys, steps and faults, and then the audit over all of them.

    Which Try was refused first, and so which undos there were, is the one thing that may differ:
    in TCC all of them were begun.

    Red when: a mode drops a step, or takes another way out of a fault.
    """
    client = await connect(stack.settings)
    async with world_of(stack.settings, client, short_window_seconds=SHORT_WINDOW) as world:
        for mode in PROTOCOLS:
            await fill_shop(world, f"shop-{mode}")
        told = [(story, mode) for story in STORIES for mode in PROTOCOLS]
        found = await asyncio.gather(*(end_of(world, *each) for each in told))
        ends = {(s.name, mode): end for (s, mode), end in zip(told, found, strict=True)}
        drivers, books = TemporalDrivers(client), SimulatorBooks(world.provider)
        report = await audit(stack.settings, drivers=drivers, provider=books)
    assert [rule for rule in report.rules if rule.state is RuleState.BROKEN] == []
    assert report.totals.orders_by_status.keys() == {story.status for story in STORIES}
    for story in STORIES:
        saga, tcc = ends[story.name, Mode.SAGA], ends[story.name, Mode.TCC]
        assert set(saga.pop("undone")) <= set(tcc.pop("undone")), story.name
        assert saga == tcc, story.name
