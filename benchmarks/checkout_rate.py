"""How many orders a second, beside how many empty workflows on the same Temporal server."""

import os
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from benchmarks.empty_flow import Empty
from benchmarks.machine import CpuMeter
from benchmarks.orders import Pace, Till, at_pace
from benchmarks.result import Result
from everycent.stack.embedded import EmbeddedStack

QUEUE = "benchmark-empty"
LEAST_RATIO = 0.2


async def measure(
    stack: EmbeddedStack, tills: Sequence[Till], *, pairs: int, count: int
) -> list[Result]:
    """Run empty workflows and the orders of each till in turn, and hold each round to the limit."""
    client = tills[0].client
    runs: dict[str, Callable[[int], Awaitable[Pace]]] = {
        "empty workflow": lambda count: _run_empty(client, count),
        **{f"checkout, {till.name}": partial(_run_checkouts, till) for till in tills},
    }
    meter = CpuMeter(stack)
    paces: dict[str, list[Pace]] = defaultdict(list)
    cpu: dict[str, Counter[str]] = defaultdict(Counter)
    async with _empty_worker(client):
        for run in runs.values():
            await run(50)
        for round_number in range(1, pairs + 1):
            for name, run in runs.items():
                meter.read()
                paces[name].append(await run(count))
                cpu[name].update(meter.read())
            rates = ", ".join(
                f"{name} {taken[-1].per_second:.1f}/s" for name, taken in paces.items()
            )
            _say(f"round {round_number}: {rates}")
    return [
        *(_rate(name, taken, cpu[name], pairs * count) for name, taken in paces.items()),
        *(_ratio(name, paces[name], paces["empty workflow"]) for name in list(runs)[1:]),
    ]


def _rate(name: str, paces: list[Pace], cpu: Counter[str], done: int) -> Result:
    return Result.of_runs(
        name,
        "per s",
        [pace.per_second for pace in paces],
        cpu_ms_each=_milliseconds(cpu, done),
        latency_p50_ms=[round(pace.latency_p50_ms) for pace in paces],
    )


def _ratio(name: str, paces: list[Pace], empty: list[Pace]) -> Result:
    ratios = [p.per_second / e.per_second for p, e in zip(paces, empty, strict=True)]
    return Result.of_runs(f"{name} : empty workflow", "ratio", ratios, limit=LEAST_RATIO)


@asynccontextmanager
async def _empty_worker(client: Client) -> AsyncIterator[None]:
    """Serve the empty workflow from this process, with the settings of our workflow worker."""
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Empty],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=500,
        max_concurrent_workflow_tasks=100,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
    ):
        yield


async def _run_empty(client: Client, count: int) -> Pace:
    run = uuid.uuid4().hex[:8]

    async def one(number: int) -> None:
        name = f"empty/{run}/{number}"
        await (await client.start_workflow(Empty.run, id=name, task_queue=QUEUE)).result()

    return await at_pace(count, one)


async def _run_checkouts(till: Till, count: int) -> Pace:
    run = uuid.uuid4().hex[:8]
    return await at_pace(count, lambda number: till.sell(f"{run}-{number}"))


def _milliseconds(cpu: Counter[str], done: int) -> dict[str, Any]:
    """Return the processor milliseconds per workflow, by part; only what counts."""
    each = {name: round(seconds / done * 1000, 1) for name, seconds in cpu.items()}
    return {"total": round(sum(each.values()), 1), **{n: v for n, v in each.items() if v >= 0.1}}


def _say(line: str) -> None:
    print(f"{line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
