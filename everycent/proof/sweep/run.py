"""A whole sweep: a flow by its name, a stage in a temporary folder, the cells, the report."""

import asyncio
import contextlib
import importlib
import itertools
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from everycent.errors import InvalidRequest
from everycent.proof.sweep import checkout
from everycent.proof.sweep.cells import Cell, parts_of
from everycent.proof.sweep.choreographed import CHOREOGRAPHED
from everycent.proof.sweep.director import Director, Plan
from everycent.proof.sweep.matrix import CellResult, SweepReport
from everycent.proof.sweep.scenario import SweptFlow
from everycent.proof.sweep.stage import WorkerCommand, stage

PREFIX = "everycent-sweep-"
# By the name that is given to the sweep.
FLOWS: Mapping[str, SweptFlow] = {**checkout.FLOWS, "checkout-choreographed": CHOREOGRAPHED}


async def sweep_flow(
    name: str, plan: Plan, say: Callable[[str], None], worker_command: WorkerCommand = list
) -> SweepReport:
    """Sweep a flow and return what became of every cell.

    Of two stacks one begins with the faults of one order, which need the processor, the other with
    the waves, which mostly wait.
    """
    async with _directors(name, plan, say, plan.stacks, worker_command) as directors:
        began = time.monotonic()
        cells = await directors[0].list_cells()
        parts = deque(parts_of(cells))
        say(f"{len(cells)} cells in {len(parts)} parts")
        found: dict[Cell, CellResult] = {}

        async def work(director: Director, take: Callable[[], list[Cell]]) -> None:
            while parts:
                part = take()
                found.update(zip(part, await director.sweep(part), strict=True))
                say(f"{len(found)} of {len(cells)} after {time.monotonic() - began:.0f} s")

        ways = itertools.cycle((parts.popleft, parts.pop))
        await asyncio.gather(*(work(director, next(ways)) for director in directors))
        return SweepReport(
            flow=name if name in FLOWS else directors[0].flow,
            cells=tuple(found[cell] for cell in cells),
            seconds=round(time.monotonic() - began, 1),
            sample=plan.sample,
        )


async def listed(name: str, plan: Plan, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Return the cells that a sweep would run; the flow itself tells its boundaries."""
    async with _directors(name, plan, say, 1) as [director]:
        return [
            {"outcome": c.outcome, "boundary": str(c.boundary), "fault": c.fault.name}
            for c in await director.list_cells()
        ]


def flow_named(name: str) -> SweptFlow:
    """Return a flow of ours by its name, or another's as `package.module:attribute`."""
    if name in FLOWS:
        return FLOWS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InvalidRequest(
            f"nobody has told the outcomes of {name}; known are {', '.join(FLOWS)}, and any"
            " `package.module:attribute`"
        )
    flow: SweptFlow = getattr(importlib.import_module(module), attribute)
    return flow


@contextlib.asynccontextmanager
async def _directors(
    name: str,
    plan: Plan,
    say: Callable[[str], None],
    count: int,
    worker_command: WorkerCommand = list,
) -> AsyncIterator[list[Director]]:
    flow = flow_named(name)
    say("starting the stack to be swept …" if count == 1 else f"starting {count} stacks …")
    async with contextlib.AsyncExitStack() as opened:

        async def open_one(number: int) -> Director:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX)))
            staged = await opened.enter_async_context(
                stage(folder, worker_command=worker_command, together=plan.together)
            )
            return Director(flow, staged, plan, say, name=chr(ord("a") + number))

        yield [await open_one(number) for number in range(count)]
