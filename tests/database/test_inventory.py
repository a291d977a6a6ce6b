"""Stock on a real PostgreSQL, through the activities: the lowest interface that others call."""

import asyncio
import random
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.inventory import InventoryActivities
from everycent.database import inventory
from everycent.database.engine import Database
from everycent.domain.fence import unwrap
from everycent.domain.inventory import (
    CommitStock,
    OutOfStock,
    ReceiveStock,
    ReleaseStock,
    Reserved,
    ReserveStock,
    SetStock,
    StockBooked,
    StockCommitted,
    StockLine,
    StockReleased,
)
from everycent.errors import Bug
from everycent.settings import ServiceName

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["inventory"]


@pytest.fixture
def stock(database: Database) -> InventoryActivities:
    return InventoryActivities(database)


def step(tenant: str, order: str, name: str = "reserve") -> dict[str, Any]:
    return {"key": f"{tenant}/{order}/{name}", "at": NOON, "opened_on": TODAY}


def reserve(tenant: str, order: str, **units: int) -> ReserveStock:
    lines = tuple(StockLine(sku=sku, units=n) for sku, n in units.items())
    return ReserveStock(**step(tenant, order), lines=lines)


def commit(tenant: str, order: str) -> CommitStock:
    return CommitStock(**step(tenant, order))


def release(tenant: str, order: str) -> ReleaseStock:
    return ReleaseStock(**step(tenant, order), reason="window over")


async def receive(database: Database, tenant: str, **units: int) -> None:
    async with database.transaction() as tx:
        answers = await inventory.receive_stock(
            tx,
            [
                ReceiveStock(**step(tenant, "goods-in", f"receive/{sku}"), sku=sku, units=n)
                for sku, n in units.items()
            ],
        )
    for answer in answers:
        unwrap(answer)


async def shelf(database: Database, tenant: str, sku: str = "LAMP") -> tuple[int, ...]:
    """Return (received, free, held, sold, written_off) of a SKU."""
    async with database.snapshot() as tx:
        result = await tx.execute(
            text(
                "SELECT received, free, held, sold, written_off FROM stock"
                " WHERE tenant = :tenant AND sku = :sku"
            ),
            {"tenant": tenant, "sku": sku},
        )
        return tuple(result.one())


async def broken_rules(database: Database, tenant: str) -> list[Any]:
    """Return the SKUs that do not add up, or hold other units than their open reservations say."""
    async with database.snapshot() as tx:
        result = await tx.execute(
            text(
                "SELECT s.* FROM stock s WHERE s.tenant = :tenant AND (s.free < 0"
                " OR s.received <> s.free + s.held + s.sold + s.written_off"
                " OR s.held <> (SELECT coalesce(sum(l.units), 0) FROM reservation_line l"
                " JOIN reservation r ON r.key = l.key WHERE r.state = 'TRIED' AND l.sku = s.sku"
                " AND split_part(r.key, '/', 1) = s.tenant))"
            ),
            {"tenant": tenant},
        )
        return list(result)


# --- Reserve ---


@pytest.mark.requirement("AC1.1", "AC15.5")
async def test_of_200_orders_at_once_for_100_units_exactly_100_hold_one(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    """Snapshots taken all the while: nothing is below zero and the units always add up.

    Red when: the stock row is read without its lock, or its units move without their reservation.
    """
    await receive(database, tenant, LAMP=100)
    sold_out = asyncio.Event()

    async def watch() -> int:
        looks = 0
        while not sold_out.is_set():
            assert await broken_rules(database, tenant) == []
            looks += 1
        return looks

    watcher = asyncio.create_task(watch())
    answers = await asyncio.gather(
        *(
            ActivityEnvironment().run(stock.reserve_stock, reserve(tenant, f"o-{n}", LAMP=1))
            for n in range(200)
        )
    )
    sold_out.set()

    assert Counter(type(answer) for answer in answers) == {Reserved: 100, OutOfStock: 100}
    refused = next(answer for answer in answers if isinstance(answer, OutOfStock))
    assert refused == OutOfStock(sku="LAMP", units_wanted=1, units_free=0)
    assert await watcher > 5
    assert await shelf(database, tenant) == (100, 0, 100, 0, 0)


@pytest.mark.requirement("AC1.1")
@pytest.mark.parametrize(
    ("assignment", "constraint"),
    [
        ("free = free - 101, received = received - 101", "stock_free_not_negative"),
        ("held = held - 1, received = received - 1", "stock_held_not_negative"),
        ("sold = sold - 1, free = free + 1", "stock_sold_not_negative"),
        ("written_off = -1, free = free + 1", "stock_written_off_not_negative"),
        ("free = free + 1", "stock_adds_up"),
    ],
)
async def test_a_constraint_refuses_stock_that_is_below_zero_or_does_not_add_up(
    database: Database, tenant: str, assignment: str, constraint: str
) -> None:
    """Red when: the named CHECK is missing."""
    await receive(database, tenant, LAMP=100)

    with pytest.raises(Bug, match=constraint):
        async with database.transaction() as tx:
            await tx.execute(
                text(f"UPDATE stock SET {assignment} WHERE tenant = :tenant"), {"tenant": tenant}
            )


@pytest.mark.requirement("T1")
async def test_two_lines_of_one_sku_are_checked_as_their_sum(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    """Three and three of five: refused, and nothing of either line is held.

    Red when: each line is checked against the stock that the other has not taken yet.
    """
    await receive(database, tenant, LAMP=5)
    lines = (StockLine(sku="LAMP", units=3), StockLine(sku="LAMP", units=3))

    answer = await ActivityEnvironment().run(
        stock.reserve_stock, ReserveStock(**step(tenant, "o-1"), lines=lines)
    )

    assert answer == OutOfStock(sku="LAMP", units_wanted=6, units_free=5)
    assert await shelf(database, tenant) == (5, 5, 0, 0, 0)


@pytest.mark.requirement("T2")
async def test_of_200_orders_racing_for_the_last_50_units_exactly_50_win(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    """Through the activity itself, as any flow would call it.

    Red when: the free units are read before the stock row is locked.
    """
    await receive(database, tenant, LAMP=50)

    answers = await asyncio.gather(
        *(
            ActivityEnvironment().run(stock.reserve_stock, reserve(tenant, f"o-{n}", LAMP=1))
            for n in range(200)
        )
    )

    assert Counter(type(answer) for answer in answers) == {Reserved: 50, OutOfStock: 150}
    assert await shelf(database, tenant) == (50, 0, 50, 0, 0)
    assert await broken_rules(database, tenant) == []


@pytest.mark.requirement("AC2.3")
async def test_between_try_and_confirm_the_sellable_units_exclude_the_hold(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    """Red when: a Try only notes the reservation and the Confirm takes the units."""
    await receive(database, tenant, LAMP=5)
    await ActivityEnvironment().run(stock.reserve_stock, reserve(tenant, "o-1", LAMP=3))

    assert await shelf(database, tenant) == (5, 2, 3, 0, 0)
    other = await ActivityEnvironment().run(stock.reserve_stock, reserve(tenant, "o-2", LAMP=3))
    assert other == OutOfStock(sku="LAMP", units_wanted=3, units_free=2)

    await ActivityEnvironment().run(stock.commit_stock, commit(tenant, "o-1"))
    assert await shelf(database, tenant) == (5, 2, 0, 3, 0)


async def test_an_order_holds_all_of_its_lines_or_none(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5, VASE=1)

    answer = await stock.reserve_stock(reserve(tenant, "o-1", LAMP=2, VASE=2))

    assert answer == OutOfStock(sku="VASE", units_wanted=2, units_free=1)
    assert await shelf(database, tenant, "LAMP") == (5, 5, 0, 0, 0)


async def test_a_sku_that_nobody_received_is_out_of_stock(
    stock: InventoryActivities, tenant: str
) -> None:
    answer = await stock.reserve_stock(reserve(tenant, "o-1", GHOST=1))

    assert answer == OutOfStock(sku="GHOST", units_wanted=1, units_free=0)


async def test_a_refusal_is_the_answer_of_its_key_even_after_a_restock(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    refused = await stock.reserve_stock(reserve(tenant, "o-1", LAMP=1))
    await receive(database, tenant, LAMP=5)

    assert await stock.reserve_stock(reserve(tenant, "o-1", LAMP=1)) == refused
    assert await shelf(database, tenant) == (5, 5, 0, 0, 0)


async def test_shops_do_not_see_each_others_stock(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5)

    answer = await stock.reserve_stock(reserve(f"{tenant}-b", "o-1", LAMP=1))

    assert isinstance(answer, OutOfStock)


# --- Commit and release ---


async def test_a_repeated_commit_sells_once(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5)
    await stock.reserve_stock(reserve(tenant, "o-1", LAMP=3))

    answers = await asyncio.gather(*(stock.commit_stock(commit(tenant, "o-1")) for _ in range(10)))

    assert set(answers) == {StockCommitted(lines=(StockLine(sku="LAMP", units=3),))}
    assert await shelf(database, tenant) == (5, 2, 0, 3, 0)


async def test_a_repeated_release_frees_once(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5)
    await stock.reserve_stock(reserve(tenant, "o-1", LAMP=3))

    answers = await asyncio.gather(
        *(stock.release_stock(release(tenant, "o-1")) for _ in range(10))
    )

    assert set(answers) == {StockReleased(lines=(StockLine(sku="LAMP", units=3),))}
    assert await shelf(database, tenant) == (5, 5, 0, 0, 0)


async def test_releasing_a_refused_reservation_frees_nothing(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5)
    await stock.reserve_stock(reserve(tenant, "o-1", LAMP=6))

    assert await stock.release_stock(release(tenant, "o-1")) == StockReleased(lines=())
    assert await shelf(database, tenant) == (5, 5, 0, 0, 0)


async def test_four_writers_of_the_same_keys_and_skus_in_any_order_never_deadlock(
    database: Database, tenant: str
) -> None:
    """Try, Confirm and Cancel batches of the same orders in shuffled order: all of them answer."""
    skus = [f"SKU-{n}" for n in range(8)]
    await receive(database, tenant, **dict.fromkeys(skus, 200))
    orders = [f"o-{n}" for n in range(40)]
    wishes = random.Random(7)
    wanted = {order: dict.fromkeys(wishes.sample(skus, 4), 1) for order in orders}

    async def write(seed: int) -> None:
        shuffle = random.Random(seed)
        for round_of in range(6):
            mine = shuffle.sample([o for o in orders if int(o[2:]) % 6 == round_of or seed % 2], 6)
            async with database.transaction() as tx:
                await inventory.reserve_stock(tx, [reserve(tenant, o, **wanted[o]) for o in mine])
            shuffle.shuffle(mine)
            async with database.transaction() as tx:
                await inventory.commit_stock(tx, [commit(tenant, o) for o in mine[:3]])
            async with database.transaction() as tx:
                await inventory.release_stock(tx, [release(tenant, o) for o in mine[2:]])
            async with database.transaction() as tx:
                await inventory.receive_stock(
                    tx,
                    [
                        ReceiveStock(
                            **step(tenant, f"in-{seed}-{round_of}", f"receive/{sku}"),
                            sku=sku,
                            units=1,
                        )
                        for sku in shuffle.sample([*skus, f"NEW-{round_of}"], 5)
                    ],
                )

    await asyncio.gather(*(write(seed) for seed in range(4)))

    assert await broken_rules(database, tenant) == []


# --- Bookings ---


async def test_goods_that_arrive_at_once_under_their_own_keys_all_count(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    requests = [
        ReceiveStock(**step(tenant, f"in-{n}", "receive"), sku="LAMP", units=3) for n in range(20)
    ]

    answers = await asyncio.gather(*(stock.receive_stock(r) for r in [*requests, *requests]))

    assert answers[:20] == answers[20:]
    assert sorted(a.units_free for a in answers[:20]) == [3 * n for n in range(1, 21)]
    assert await shelf(database, tenant) == (60, 60, 0, 0, 0)


async def test_setting_a_level_books_the_difference_in_or_out_and_spares_what_is_held(
    database: Database, stock: InventoryActivities, tenant: str
) -> None:
    await receive(database, tenant, LAMP=5)
    await stock.reserve_stock(reserve(tenant, "o-1", LAMP=2))

    up = await stock.set_stock(SetStock(**step(tenant, "count-1"), sku="LAMP", free_units=10))
    down = await stock.set_stock(SetStock(**step(tenant, "count-2"), sku="LAMP", free_units=1))

    assert up == StockBooked(sku="LAMP", units_booked=7, units_free=10)
    assert down == StockBooked(sku="LAMP", units_booked=-9, units_free=1)
    assert await shelf(database, tenant) == (12, 1, 2, 0, 9)


async def test_two_levels_of_one_sku_in_a_batch_follow_each_other(
    database: Database, tenant: str
) -> None:
    async with database.transaction() as tx:
        answers = await inventory.set_stock(
            tx,
            [
                SetStock(**step(tenant, "count-1"), sku="LAMP", free_units=10),
                SetStock(**step(tenant, "count-2"), sku="LAMP", free_units=4),
                SetStock(**step(tenant, "count-3"), sku="LAMP", free_units=6),
            ],
        )

    assert answers == [
        StockBooked(sku="LAMP", units_booked=10, units_free=10),
        StockBooked(sku="LAMP", units_booked=-6, units_free=4),
        StockBooked(sku="LAMP", units_booked=2, units_free=6),
    ]
    assert await shelf(database, tenant) == (12, 6, 0, 0, 6)
