"""A whole sweep: a flow by its name, a stage in a temporary folder, the cells, the report."""

import contextlib
import importlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from everycent.errors import InvalidRequest
from everycent.proof.sweep.checkout import FLOW
from everycent.proof.sweep.director import Director, Plan
from everycent.proof.sweep.matrix import SweepReport
from everycent.proof.sweep.scenario import SweptFlow
from everycent.proof.sweep.stage import WorkerCommand, stage

FLOWS: dict[str, SweptFlow] = {FLOW.name: FLOW}


async def sweep_flow(
    name: str, plan: Plan, say: Callable[[str], None], worker_command: WorkerCommand = list
) -> SweepReport:
    """Sweep a flow and return what became of every cell."""
    async with _director(name, plan, say, worker_command) as director:
        return await director.run()


async def listed(name: str, plan: Plan, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Return the cells that a sweep would run; the flow itself tells its boundaries."""
    async with _director(name, plan, say) as director:
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
async def _director(
    name: str, plan: Plan, say: Callable[[str], None], worker_command: WorkerCommand = list
) -> AsyncIterator[Director]:
    flow = flow_named(name)
    with tempfile.TemporaryDirectory(prefix="everycent-sweep-") as folder:
        say("starting the stack to be swept …")
        async with stage(
            Path(folder), worker_command=worker_command, together=plan.together
        ) as staged:
            yield Director(flow, staged, plan, say)
