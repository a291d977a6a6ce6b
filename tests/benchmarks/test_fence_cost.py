"""The statistics of the fence's cost, and that every kind of transaction it times does its work."""

import asyncio
import random
import uuid

from benchmarks import fence_cost
from everycent.stack.postgres import PostgresServer


def test_the_interval_is_that_of_the_tables() -> None:
    """The ranks of the published tables for 20, 10 and 30 values; five have no such interval."""
    for count, low, high in ((20, 6, 15), (10, 2, 9), (30, 10, 21), (5, 1, 5)):
        values = random.Random(1).sample([float(n) for n in range(1, count + 1)], count)
        assert fence_cost.median_interval(values) == (float(low), float(high))


async def test_every_kind_of_transaction_does_all_its_work(postgres: PostgresServer) -> None:
    name = f"cost_{uuid.uuid4().hex[:12]}"
    await asyncio.to_thread(postgres.execute, f"CREATE DATABASE {name}")
    costs = await fence_cost.measure(postgres.dsn(name), pairs=1, seconds=0.02)
    assert len(costs) == len(fence_cost.BATCHES) * len(fence_cost.FENCED)
    assert all(cost.bare_per_second > 0 for cost in costs)
