"""How many orders a second, beside how many empty workflows on the same Temporal server."""

import os
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from benchmarks.empty_flow import Empty
from benchmarks.machine import CpuMeter
from benchmarks.orders import at_pace, sell
from benchmarks.result import Result
from everycent.stack.embedded import EmbeddedStack

QUEUE = "benchmark-empty"
LEAST_RATIO = 0.2


async def measure(stack: EmbeddedStack, client: Client, *, pairs: int, count: int) -> list[Result]:
    """Run empty workflows and orders in turn, A B A B, and hold each pair against the limit."""
    meter = CpuMeter(stack)
    empty_rates, checkout_rates, latencies = [], [], []
    empty_cpu: Counter[str] = Counter()
    checkout_cpu: Counter[str] = Counter()
    async with _empty_worker(client):
        await _run_empty(client, 50)
        await _run_checkouts(client, 50)
        for pair in range(pairs):
            meter.read()
            empty = await _run_empty(client, count)
            empty_cpu.update(meter.read())
            checkout, latency = await _run_checkouts(client, count)
            checkout_cpu.update(meter.read())
            empty_rates.append(empty)
            checkout_rates.append(checkout)
            latencies.append(latency)
            _say(f"pair {pair + 1}: {empty:.1f} empty/s, {checkout:.2f} orders/s")
    done = pairs * count
    ratios = [c / e for c, e in zip(checkout_rates, empty_rates, strict=True)]
    return [
        Result.of_runs(
            "empty workflow", "per s", empty_rates, cpu_ms_each=_milliseconds(empty_cpu, done)
        ),
        Result.of_runs(
            "checkout",
            "orders/s",
            checkout_rates,
            cpu_ms_each=_milliseconds(checkout_cpu, done),
            latency_p50_ms=[round(latency) for latency in latencies],
        ),
        Result.of_runs("checkout : empty workflow", "ratio", ratios, limit=LEAST_RATIO),
    ]


@asynccontextmanager
async def _empty_worker(client: Client) -> AsyncIterator[None]:
    """Serve the empty workflow from this process, with the settings of our workflow worker."""
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Empty],
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_all_modules()
        ),
        max_cached_workflows=500,
        max_concurrent_workflow_tasks=100,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
    ):
        yield


async def _run_empty(client: Client, count: int) -> float:
    run = uuid.uuid4().hex[:8]

    async def one(number: int) -> None:
        name = f"empty/{run}/{number}"
        await (await client.start_workflow(Empty.run, id=name, task_queue=QUEUE)).result()

    return (await at_pace(count, one)).per_second


async def _run_checkouts(client: Client, count: int) -> tuple[float, float]:
    run = uuid.uuid4().hex[:8]
    pace = await at_pace(count, lambda number: sell(client, f"{run}-{number}"))
    return pace.per_second, pace.latency_p50_ms


def _milliseconds(cpu: Counter[str], done: int) -> dict[str, Any]:
    """Return the processor milliseconds per workflow, by part; only what counts."""
    each = {name: round(seconds / done * 1000, 1) for name, seconds in cpu.items()}
    return {"total": round(sum(each.values()), 1), **{n: v for n, v in each.items() if v >= 0.1}}


def _say(line: str) -> None:
    print(f"{line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
