"""Stock in SQL. A reservation is the fence of its own hold; its lines lie beside it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.domain.fence import FenceState
from everycent.domain.inventory import (
    BOOKED_ANSWERS,
    COMMIT_ANSWERS,
    RELEASE_ANSWERS,
    RESERVE_ANSWERS,
    Allocation,
    CommitStock,
    ReceiveStock,
    ReleaseStock,
    ReserveAnswer,
    Reserved,
    ReserveStock,
    SetStock,
    Shelf,
    StockBooked,
    StockCommitted,
    StockLine,
    StockReleased,
    allocate,
    units_by_sku,
)
from everycent.errors import EverycentError

B = TypeVar("B", ReceiveStock, SetStock)

RESERVATION = fence.FenceTable("reservation")
BOOKING = fence.FenceTable("stock_booking", {"sku": "text"})


async def reserve_stock(
    tx: AsyncConnection, requests: Sequence[ReserveStock]
) -> list[ReserveAnswer | EverycentError]:
    """Hold the units of each order, all of its lines or none; a repeated key: its first answer."""
    claims = await fence.claim_tries(tx, RESERVATION, requests)
    wanted = {(r.tenant, line.sku) for r in claims.new for line in r.lines}
    shelf = await _lock_stock(tx, wanted)
    decided = allocate(shelf, claims.new)
    await _store_reservations(tx, claims.new, decided)
    return claims.in_order(requests, decided.answers, RESERVE_ANSWERS)


async def commit_stock(
    tx: AsyncConnection, requests: Sequence[CommitStock]
) -> list[StockCommitted | EverycentError]:
    """Sell what each reservation holds; what moves comes from its rows, never from the call."""
    claims = await fence.lock_for_confirm(tx, RESERVATION, requests)
    lines = await _lines_of(tx, [r.key for r in claims.new])
    await _lock_stock(tx, _skus(claims.new, lines))
    await _move(tx, _sum(claims.new, lines), "held = held - units, sold = sold + units")
    answers = {r.key: StockCommitted(lines=tuple(lines[r.key])) for r in claims.new}
    await fence.store_ends(tx, RESERVATION, claims.new, answers, state=FenceState.CONFIRMED)
    return claims.in_order(requests, answers, COMMIT_ANSWERS)


async def release_stock(
    tx: AsyncConnection, requests: Sequence[ReleaseStock]
) -> list[StockReleased | EverycentError]:
    """Give back what each reservation holds; one that holds nothing gets its tombstone."""
    claims = await fence.claim_cancels(tx, RESERVATION, requests)
    holding = [r.key for r in claims.new if _holds(claims, r.key)]
    lines = await _lines_of(tx, holding)
    released = [r for r in claims.new if r.key in lines]
    await _lock_stock(tx, _skus(released, lines))
    await _move(tx, _sum(released, lines), "held = held - units, free = free + units")
    answers = {r.key: StockReleased(lines=tuple(lines.get(r.key, ()))) for r in claims.new}
    await fence.store_ends(tx, RESERVATION, claims.new, answers, state=FenceState.CANCELLED)
    return claims.in_order(requests, answers, RELEASE_ANSWERS)


async def receive_stock(
    tx: AsyncConnection, requests: Sequence[ReceiveStock]
) -> list[StockBooked | EverycentError]:
    """Book arrived units in; a SKU that is new gets its row."""
    claims = await fence.claim_tries(tx, BOOKING, requests)
    return await _book(tx, claims, requests, lambda r, _free: r.units)


async def set_stock(
    tx: AsyncConnection, requests: Sequence[SetStock]
) -> list[StockBooked | EverycentError]:
    """Bring the free units of each SKU to a level; the difference is goods in or written off."""
    claims = await fence.claim_tries(tx, BOOKING, requests)
    return await _book(tx, claims, requests, lambda r, free: r.free_units - free)


async def _book(
    tx: AsyncConnection,
    claims: fence.Claims[B],
    requests: Sequence[B],
    units_booked: Callable[[B, int], int],
) -> list[StockBooked | EverycentError]:
    """Move each booking's units in or out of the free stock and store the level it left.

    `units_booked` tells them from the request and from the free units that the one before left.
    """
    skus = {(r.tenant, r.sku) for r in claims.new}
    await _add_skus(tx, skus)
    shelf = await _lock_stock(tx, skus)
    answers: dict[str, StockBooked] = {}
    arrived: Shelf = {}
    written_off: Shelf = {}
    for r in claims.new:
        units = units_booked(r, shelf[r.tenant, r.sku])
        shelf[r.tenant, r.sku] += units
        moved = arrived if units >= 0 else written_off
        moved[r.tenant, r.sku] = moved.get((r.tenant, r.sku), 0) + abs(units)
        answers[r.key] = StockBooked(
            sku=r.sku, units_booked=units, units_free=shelf[r.tenant, r.sku]
        )
    await _move(tx, arrived, "free = free + units, received = received + units")
    await _move(tx, written_off, "free = free - units, written_off = written_off + units")
    await fence.store_tries(tx, BOOKING, answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, answers, BOOKED_ANSWERS)


def _holds(claims: fence.Claims[ReleaseStock], key: str) -> bool:
    row = claims.rows.get(key)
    return row is not None and row.state is FenceState.TRIED


def _skus(
    requests: Iterable[CommitStock | ReleaseStock], lines: dict[str, list[StockLine]]
) -> set[tuple[str, str]]:
    return {(r.tenant, line.sku) for r in requests for line in lines[r.key]}


def _sum(
    requests: Iterable[CommitStock | ReleaseStock], lines: dict[str, list[StockLine]]
) -> Shelf:
    total: Shelf = {}
    for r in requests:
        for sku, units in units_by_sku(lines[r.key]).items():
            total[r.tenant, sku] = total.get((r.tenant, sku), 0) + units
    return total


async def _lock_stock(tx: AsyncConnection, skus: Iterable[tuple[str, str]]) -> Shelf:
    """Lock the stock rows in (tenant, sku) order and return their free units."""
    wanted = sorted(skus)
    if not wanted:
        return {}
    result = await tx.execute(
        sql(
            "SELECT tenant, sku, free FROM stock"
            " WHERE (tenant, sku) IN (SELECT * FROM unnest(CAST(:tenants AS text[]),"
            " CAST(:skus AS text[])))"
            ' ORDER BY tenant COLLATE "C", sku COLLATE "C" FOR NO KEY UPDATE'
        ),
        {"tenants": [tenant for tenant, _ in wanted], "skus": [sku for _, sku in wanted]},
    )
    return {(row.tenant, row.sku): row.free for row in result}


async def _move(tx: AsyncConnection, units: Shelf, assignments: str) -> None:
    """Apply the same assignments to every SKU's row, with its own `units`; the rows are locked."""
    if not units:
        return
    result = await tx.execute(
        sql(
            f"UPDATE stock AS s SET {assignments}, version = version + 1"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:skus AS text[]),"
            " CAST(:units AS bigint[])) AS moved (tenant, sku, units)"
            " WHERE s.tenant = moved.tenant AND s.sku = moved.sku"
        ),
        {
            "tenants": [tenant for tenant, _ in units],
            "skus": [sku for _, sku in units],
            "units": list(units.values()),
        },
    )
    fence.assert_all_written(result, len(units))


async def _add_skus(tx: AsyncConnection, skus: Iterable[tuple[str, str]]) -> None:
    wanted = sorted(skus)
    await tx.execute(
        sql(
            "INSERT INTO stock (tenant, sku) SELECT tenant, sku"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:skus AS text[])) AS new (tenant, sku)"
            " WHERE NOT EXISTS (SELECT FROM stock AS s"
            " WHERE s.tenant = new.tenant AND s.sku = new.sku)"
            ' ORDER BY tenant COLLATE "C", sku COLLATE "C" ON CONFLICT (tenant, sku) DO NOTHING'
        ),
        {"tenants": [tenant for tenant, _ in wanted], "skus": [sku for _, sku in wanted]},
    )


async def _store_reservations(
    tx: AsyncConnection, requests: Sequence[ReserveStock], decided: Allocation
) -> None:
    """Take the units, write lines and answers, in one trip: the stock rows are locked."""
    if not requests:
        return
    held = [r for r in requests if isinstance(decided.answers[r.key], Reserved)]
    lines = [(r.key, n, line) for r in held for n, line in enumerate(r.lines)]
    result = await tx.execute(
        sql(
            "WITH taken AS (UPDATE stock AS s"
            " SET free = free - units, held = held + units, version = version + 1"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:skus AS text[]),"
            " CAST(:units AS bigint[])) AS moved (tenant, sku, units)"
            " WHERE s.tenant = moved.tenant AND s.sku = moved.sku RETURNING 1),"
            " written AS (INSERT INTO reservation_line (key, line, sku, units)"
            " SELECT * FROM unnest(CAST(:line_keys AS text[]), CAST(:line_numbers AS int[]),"
            " CAST(:line_skus AS text[]), CAST(:line_units AS bigint[])) RETURNING 1),"
            f" stored AS ({fence.tries_stored(RESERVATION)} RETURNING 1)"
            " SELECT (SELECT count(*) FROM taken) AS taken,"
            " (SELECT count(*) FROM written) AS written,"
            " (SELECT count(*) FROM stored) AS stored"
        ),
        {
            "tenants": [tenant for tenant, _ in decided.taken],
            "skus": [sku for _, sku in decided.taken],
            "units": list(decided.taken.values()),
            "line_keys": [key for key, _, _ in lines],
            "line_numbers": [n for _, n, _ in lines],
            "line_skus": [line.sku for _, _, line in lines],
            "line_units": [line.units for _, _, line in lines],
            **fence.tries_values(decided.answers),
        },
    )
    wanted = (len(decided.taken), len(lines), len(decided.answers))
    assert tuple(result.one()) == wanted, f"a reservation was not written as decided: {wanted}"


async def _lines_of(tx: AsyncConnection, keys: Sequence[str]) -> dict[str, list[StockLine]]:
    if not keys:
        return {}
    result = await tx.execute(
        sql(
            "SELECT key, sku, units FROM reservation_line"
            " WHERE key = ANY(CAST(:keys AS text[])) ORDER BY key, line"
        ),
        {"keys": list(keys)},
    )
    lines: dict[str, list[StockLine]] = {key: [] for key in keys}
    for row in result:
        lines[row.key].append(StockLine(sku=row.sku, units=row.units))
    return lines
