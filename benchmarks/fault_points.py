"""What the fault points cost an order in production, where none is armed."""

import time
import uuid
from collections.abc import Callable

from benchmarks.machine import CpuMeter
from benchmarks.orders import Till, at_pace
from benchmarks.result import Result
from everycent import faults
from everycent.stack.embedded import EmbeddedStack

MOST_PERCENT = 0.5
PASSES = 1_000_000
# The rest of the points is not even installed in a worker that is not armed: a COMMIT has two, and
# a checkout by card has eleven of them (`everycent sweep checkout --outcome card --list`).
POINTS_PER_ORDER = 22


async def measure(stack: EmbeddedStack, till: Till, *, runs: int, count: int) -> list[Result]:
    """Pair loops with and without the test of a point, and hold it against an order's CPU time."""
    meter, run = CpuMeter(stack), uuid.uuid4().hex[:8]
    await at_pace(20, lambda number: till.sell(f"warm-{run}-{number}"))
    meter.read()
    await at_pace(count, lambda number: till.sell(f"points-{run}-{number}"))
    used = meter.read()
    order_seconds = sum(s for name, s in used.items() if name.startswith("worker")) / count
    pairs = [(_cpu_seconds(_passing) - _cpu_seconds(_empty)) / PASSES for _ in range(runs)]
    percents = [100 * each * POINTS_PER_ORDER / order_seconds for each in pairs]
    return [
        Result.of_runs(
            "unarmed fault points",
            "% of an order's worker CPU",
            percents,
            limit=MOST_PERCENT,
            nanoseconds_per_point=[round(each * 1e9, 1) for each in pairs],
            points_per_order=POINTS_PER_ORDER,
            worker_cpu_ms_per_order=round(order_seconds * 1000, 1),
        ).model_copy(update={"bound": "most"})
    ]


def _cpu_seconds(loop: Callable[[], None]) -> float:
    began = time.thread_time()
    loop()
    return time.thread_time() - began


def _empty() -> None:
    for _ in range(PASSES):
        pass


def _passing() -> None:
    for _ in range(PASSES):
        if faults.armed is not None:
            raise AssertionError("a benchmark is not armed")
