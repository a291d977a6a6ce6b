"""How much memory each worker process holds over a long run, and whether it still grows."""

import asyncio
import contextlib
import sys
import uuid
from collections import defaultdict

import psutil

from benchmarks.orders import Till, at_pace
from benchmarks.result import Result
from everycent.stack.embedded import EmbeddedStack

MOST_MEGABYTES = 150.0
MOST_GROWTH = (
    2.0  # Megabytes per 1,000 orders over the second half: less is noise of the allocator.
)
Samples = list[tuple[int, float]]  # (orders sold, megabytes)


async def measure(stack: EmbeddedStack, till: Till, *, count: int) -> list[Result]:
    """Sell so many orders and watch the workers' resident memory."""
    samples: dict[str, Samples] = defaultdict(list)
    run, sold = uuid.uuid4().hex[:8], 0

    async def one(number: int) -> None:
        nonlocal sold
        await till.sell(f"{run}-{number}")
        sold += 1
        if sold % max(count // 100, 1) == 0:
            for name, megabytes in _resident(stack).items():
                samples[name].append((sold, megabytes))
        if sold % 500 == 0:
            print(f"{sold} of {count} orders", file=sys.stderr, flush=True)

    await at_pace(count, one)
    await asyncio.sleep(0)
    return _results(samples, till)


def _results(samples: dict[str, Samples], till: Till) -> list[Result]:
    peaks = {name: max(mb for _, mb in taken) for name, taken in samples.items()}
    slopes = {name: _slope(taken[len(taken) // 2 :]) for name, taken in samples.items()}
    largest, fastest = max(peaks.values()), max(slopes.values())
    return [
        Result(
            name=f"largest worker, {till.name}",
            value=round(largest, 1),
            unit="MB",
            limit=MOST_MEGABYTES,
            bound="most",
            details={name: round(mb, 1) for name, mb in peaks.items()},
        ),
        Result(
            name=f"growth of the fastest growing worker, second half, {till.name}",
            value=round(fastest, 2),
            unit="MB per 1,000 orders",
            limit=MOST_GROWTH,
            bound="most",
            details={name: round(slope, 2) for name, slope in slopes.items()},
        ),
    ]


def _resident(stack: EmbeddedStack) -> dict[str, float]:
    sizes = {}
    for name, view in stack.processes.items():
        if name.startswith("worker-") and view.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes[name] = psutil.Process(view.pid).memory_info().rss / 2**20
    return sizes


def _slope(taken: Samples) -> float:
    """Return the growth by least squares, in megabytes per 1,000 orders."""
    if len(taken) < 2:
        return 0.0
    mean_x = sum(x for x, _ in taken) / len(taken)
    mean_y = sum(y for _, y in taken) / len(taken)
    spread = sum((x - mean_x) ** 2 for x, _ in taken)
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in taken) / spread if spread else 0.0
