"""How many reservations a second PostgreSQL takes on one hot SKU: one by one, and in batches."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.orders import at_pace
from benchmarks.result import Result
from everycent.clock import now
from everycent.database.engine import Database
from everycent.database.inventory import receive_stock, release_stock, reserve_stock
from everycent.domain.inventory import (
    ReceiveStock,
    ReleaseStock,
    Reserved,
    ReserveStock,
    StockLine,
)
from everycent.settings import Settings

BATCH = 100
WRITERS = 4
CONNECTIONS = 8
LEAST_SINGLE = 500.0
LEAST_BATCHED = 15_000.0
UNITS = 10**8
SKUS = ("HOT", "WARM", "LUKEWARM")


async def measure(settings: Settings, *, runs: int, count: int) -> list[Result]:
    """Reserve on one hot SKU, then let four writers fight over the same orders."""
    pool = settings.pool.model_copy(update={"size": CONNECTIONS})
    database = Database(settings.database["inventory"], pool, name="benchmark")
    tenant = f"hot{uuid.uuid4().hex[:8]}"
    try:
        await _fill(database, tenant)
        await _one_by_one(database, tenant, 100)
        await _batches(database, tenant, 10, writers=1)
        singles = [await _one_by_one(database, tenant, count) for _ in range(runs)]
        # Batches of one run of 500 orders would be over in 30 ms: a run is 100 batches.
        batched = [await _batches(database, tenant, count // 5, writers=1) for _ in range(runs)]
        four = [await _batches(database, tenant, count // 5, writers=WRITERS) for _ in range(runs)]
        fought = await _fight(database, tenant)
    finally:
        await database.close()
    deadlocks = await _deadlocks(settings)
    return [
        Result.of_runs(
            f"hot SKU one by one, {CONNECTIONS} connections",
            "orders/s",
            singles,
            limit=LEAST_SINGLE,
        ),
        Result.of_runs(f"hot SKU in batches of {BATCH}", "orders/s", batched, limit=LEAST_BATCHED),
        Result.of_runs(f"hot SKU in batches of {BATCH}, {WRITERS} writers", "orders/s", four),
        Result(
            name=f"deadlocks of {WRITERS} overlapping writers",
            value=deadlocks,
            unit="40P01",
            limit=0,
            bound="most",
            details={"operations": fought},
        ),
    ]


async def _fill(database: Database, tenant: str) -> None:
    at = now()
    receipts = [
        ReceiveStock(key=f"{tenant}/~stock/{sku}", at=at, opened_on=at.date(), sku=sku, units=UNITS)
        for sku in SKUS
    ]
    async with database.transaction() as tx:
        await receive_stock(tx, receipts)


def _requests(tenant: str, run: str, numbers: Sequence[int]) -> list[ReserveStock]:
    at = now()
    line = StockLine(sku=SKUS[0], units=1)
    return [
        ReserveStock(
            key=f"{tenant}/{run}-{number}/reserve", at=at, opened_on=at.date(), lines=(line,)
        )
        for number in numbers
    ]


async def _reserve(database: Database, requests: Sequence[ReserveStock]) -> None:
    async with database.transaction() as tx:
        answers = await reserve_stock(tx, requests)
    assert all(isinstance(answer, Reserved) for answer in answers), answers


async def _one_by_one(database: Database, tenant: str, count: int) -> float:
    run = uuid.uuid4().hex[:8]
    requests = _requests(tenant, run, range(count))
    pace = await at_pace(count, lambda n: _reserve(database, [requests[n]]), in_flight=CONNECTIONS)
    return pace.per_second


async def _batches(database: Database, tenant: str, batches: int, *, writers: int) -> float:
    run = uuid.uuid4().hex[:8]
    made = [
        _requests(tenant, run, range(first, first + BATCH))
        for first in range(0, batches * BATCH, BATCH)
    ]
    pace = await at_pace(batches, lambda n: _reserve(database, made[n]), in_flight=writers)
    return pace.per_second * BATCH


async def _fight(database: Database, tenant: str, rounds: int = 25) -> int:
    """Reserve and release the same orders, of the same SKUs, in another order by each writer."""
    run, at = uuid.uuid4().hex[:8], now()
    chance = random.Random(7)

    def lines() -> tuple[StockLine, ...]:
        return tuple(StockLine(sku=sku, units=1) for sku in chance.sample(SKUS, len(SKUS)))

    orders = [
        ReserveStock(key=f"{tenant}/{run}-{n}/reserve", at=at, opened_on=at.date(), lines=lines())
        for n in range(rounds * BATCH)
    ]
    undos = [
        ReleaseStock(key=r.key, at=at, opened_on=at.date(), reason="benchmark") for r in orders
    ]

    async def write(writer: int) -> None:
        mine = random.Random(writer)
        for _ in range(rounds):
            picked = mine.sample(range(len(orders)), BATCH)
            await _apply(database, [orders[n] for n in picked], reserve_stock)
            await _apply(database, [undos[n] for n in picked[: BATCH // 2]], release_stock)

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    return WRITERS * rounds * (BATCH + BATCH // 2)


async def _apply(
    database: Database,
    requests: Sequence[Any],
    operation: Callable[[AsyncConnection, Sequence[Any]], Awaitable[Sequence[object]]],
) -> None:
    async with database.transaction() as tx:
        answers = await operation(tx, requests)
    # Who comes late finds a tombstone; that is an answer, and so is the first one.
    assert len(answers) == len(requests)


async def _deadlocks(settings: Settings) -> int:
    """Read PostgreSQL's own count; the writers' sessions have ended and so have reported."""
    reader = Database(settings.owner["inventory"], settings.pool, name="benchmark-reads")
    try:
        async with reader.transaction() as tx:
            query = text(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
            return int((await tx.execute(query)).scalar_one())
    finally:
        await reader.close()
