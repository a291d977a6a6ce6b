"""The kinds of resource rows that are interleaved, and the generic fence on a table of its own."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import account, fence, inventory, ledger, points
from everycent.database.engine import sql
from everycent.database.fence_ddl import fence_table
from everycent.domain.account import DebitBalance, FreezeBalance, UnfreezeBalance
from everycent.domain.fence import FenceState
from everycent.domain.inventory import CommitStock, ReleaseStock, ReserveStock, StockLine
from everycent.domain.ledger import HoldTransfer, Leg, SettleTransfer, VoidTransfer
from everycent.domain.message import Message, StepRequest
from everycent.domain.points import FreezePoints, RedeemPoints, UnfreezePoints
from everycent.proof.interleavings_kinds import START, UNITS, Kind, Parts, resource, step_of

_PLACES = "unnest(CAST(:places AS text[])) AS place"
_EACH = f"FROM {_PLACES}, unnest(ARRAY['x', 'y']) AS name"
_OURS = "WHERE tenant = ANY(CAST(:places AS text[])) GROUP BY tenant"


def _doing(statement: str) -> Callable[[AsyncConnection, Sequence[str]], Awaitable[None]]:
    async def prepare(tx: AsyncConnection, places: Sequence[str]) -> None:
        await tx.execute(sql(statement), {"places": list(places)})

    return prepare


def _reading(
    statement: str,
) -> Callable[[AsyncConnection, Sequence[str]], Awaitable[dict[str, Parts]]]:
    async def parts(tx: AsyncConnection, places: Sequence[str]) -> dict[str, Parts]:
        result = await tx.execute(sql(statement), {"places": list(places)})
        return {row.place: Parts(int(row.free), int(row.held), int(row.done)) for row in result}

    return parts


def _requesting(
    try_: Callable[[dict[str, Any], str], StepRequest],
    confirm: type[StepRequest],
    cancel: type[StepRequest],
) -> Callable[[str, str, int], StepRequest]:
    def request(operation: str, place: str, number: int) -> StepRequest:
        step = step_of(place, number)
        if operation == "try":
            return try_(step, resource(number))
        return confirm(**step) if operation == "confirm" else cancel(**step, reason="given up")

    return request


STOCK = Kind(
    name="stock reservation",
    service="inventory",
    table="reservation",
    operations={
        "try": inventory.reserve_stock,
        "confirm": inventory.commit_stock,
        "cancel": inventory.release_stock,
    },
    request=_requesting(
        lambda step, name: ReserveStock(**step, lines=(StockLine(sku=name, units=UNITS),)),
        CommitStock,
        ReleaseStock,
    ),
    prepare=_doing(
        "INSERT INTO stock (tenant, sku, received, free)"
        f" SELECT place, name, {START}, {START} {_EACH}"
    ),
    parts=_reading(
        "SELECT tenant AS place, sum(free) AS free, sum(held) AS held, sum(sold) AS done"
        f" FROM stock {_OURS}"
    ),
)

BALANCE = Kind(
    name="balance hold",
    service="account",
    table="balance_hold",
    operations={
        "try": account.freeze_balance,
        "confirm": account.debit_balance,
        "cancel": account.unfreeze_balance,
    },
    request=_requesting(
        lambda step, name: FreezeBalance(**step, account=name, currency="EUR", amount_minor=UNITS),
        DebitBalance,
        UnfreezeBalance,
    ),
    prepare=_doing(
        "INSERT INTO account (tenant, account, currency, balance, available)"
        f" SELECT place, name, 'EUR', {START}, {START} {_EACH}"
    ),
    parts=_reading(
        "SELECT tenant AS place, sum(available) AS free, sum(frozen) AS held,"
        f" sum({START} - balance) AS done FROM account {_OURS}"
    ),
)

POINTS = Kind(
    name="points hold",
    service="points",
    table="points_hold",
    operations={
        "try": points.freeze_points,
        "confirm": points.redeem_points,
        "cancel": points.unfreeze_points,
    },
    request=_requesting(
        lambda step, name: FreezePoints(**step, customer=name, points=UNITS),
        RedeemPoints,
        UnfreezePoints,
    ),
    prepare=_doing(
        "INSERT INTO points_account (tenant, customer, available)"
        f" SELECT place, name, {START} {_EACH}"
    ),
    parts=_reading(
        "SELECT tenant AS place, sum(available) AS free, sum(frozen) AS held,"
        f" sum({START} - available - frozen) AS done FROM points_account {_OURS}"
    ),
)


def _legs(name: str) -> tuple[Leg, ...]:
    return (
        Leg(account=name, amount_minor=UNITS, currency="EUR"),
        Leg(account="sales", amount_minor=-UNITS, currency="EUR"),
    )


TRANSFER = Kind(
    name="ledger pending transfer",
    service="ledger",
    table="transfer",
    operations={
        "try": ledger.hold_transfer,
        "confirm": ledger.settle_transfer,
        "cancel": ledger.void_transfer,
    },
    request=_requesting(
        lambda step, name: HoldTransfer(**step, entries=_legs(name)), SettleTransfer, VoidTransfer
    ),
    prepare=_doing(
        "INSERT INTO ledger_account (tenant, account, currency)"
        f" SELECT place, name, 'EUR' FROM {_PLACES}, unnest(ARRAY['sales', 'x', 'y']) AS name"
    ),
    # Pending and posted are read from the debits; what is left over, from the credits.
    parts=_reading(
        f"SELECT tenant AS place, {2 * START} - sum(credits_pending + credits_posted) AS free,"
        f" sum(debits_pending) AS held, sum(debits_posted) AS done FROM ledger_account {_OURS}"
    ),
)


# The generic fence in both of its forms, as somebody uses it who has a resource of her own (README,
# "Only the parts").

SEAT_HOLD = fence.FenceTable("seat_hold", {"area": "text"})
AGING_HOLD = fence.FenceTable("aging_hold", {"area": "text"}, aging=True)
SEAT_TABLES = (
    *fence_table(SEAT_HOLD.name, SEAT_HOLD.columns),
    *fence_table(AGING_HOLD.name, AGING_HOLD.columns, aging=True),
    """
CREATE TABLE seats (
    tenant text NOT NULL,
    area text NOT NULL,
    free bigint NOT NULL,
    held bigint NOT NULL DEFAULT 0,
    sold bigint NOT NULL DEFAULT 0,
    CONSTRAINT seats_pkey PRIMARY KEY (tenant, area),
    CONSTRAINT seats_free_not_negative CHECK (free >= 0),
    CONSTRAINT seats_held_not_negative CHECK (held >= 0)
)""",
)


class HoldSeats(StepRequest):
    """Try: hold seats of an area."""

    HASHED = ("area",)

    area: str


class SellSeats(StepRequest):
    """Confirm."""


class FreeSeats(StepRequest):
    """Cancel."""

    reason: str


class SeatsDone(Message):
    """What became of it: how many seats moved."""

    what: str
    seats: int


_ANSWERS = TypeAdapter(SeatsDone)


async def hold_seats(
    tx: AsyncConnection, requests: Sequence[HoldSeats], table: fence.FenceTable = SEAT_HOLD
) -> list[Any]:
    """Hold the seats of each request."""
    claims = await fence.claim_tries(tx, table, requests)
    await move_seats(tx, [(r.tenant, r.area) for r in claims.new], free=-1, held=+1, sold=0)
    fresh = {r.key: SeatsDone(what="held", seats=UNITS) for r in claims.new}
    await fence.store_tries(tx, table, fresh, requests=claims.new)
    return claims.in_order(requests, fresh, _ANSWERS)


async def sell_seats(
    tx: AsyncConnection, requests: Sequence[SellSeats], table: fence.FenceTable = SEAT_HOLD
) -> list[Any]:
    """Sell what each row holds."""
    claims = await fence.lock_for_confirm(tx, table, requests)
    await move_seats(tx, await areas_of(tx, claims.new, table), free=0, held=-1, sold=+1)
    fresh = {r.key: SeatsDone(what="sold", seats=UNITS) for r in claims.new}
    await fence.store_ends(tx, table, claims.new, fresh, state=FenceState.CONFIRMED)
    return claims.in_order(requests, fresh, _ANSWERS)


async def free_seats(
    tx: AsyncConnection, requests: Sequence[FreeSeats], table: fence.FenceTable = SEAT_HOLD
) -> list[Any]:
    """Give back what each row holds, if anything."""
    claims = await fence.claim_cancels(tx, table, requests)
    holding = [r for r in claims.new if r.key in claims.rows]
    await move_seats(tx, await areas_of(tx, holding, table), free=+1, held=-1, sold=0)
    fresh = {r.key: SeatsDone(what="freed", seats=UNITS * (r in holding)) for r in claims.new}
    await fence.store_ends(tx, table, claims.new, fresh, state=FenceState.CANCELLED)
    return claims.in_order(requests, fresh, _ANSWERS)


async def areas_of(
    tx: AsyncConnection, requests: Sequence[StepRequest], table: fence.FenceTable
) -> list[tuple[str, str]]:
    """Return the area of each request's row: what moves comes from the row, not from the call."""
    result = await tx.execute(
        sql(
            f"SELECT key, area FROM {table.name} WHERE key = ANY(CAST(:keys AS text[]))"
            " AND opened_on = ANY(CAST(:days AS date[]))"
        ),
        {"keys": [r.key for r in requests], "days": [r.opened_on for r in requests]},
    )
    areas = {row.key: row.area for row in result}
    return [(r.tenant, areas[r.key]) for r in requests]


async def move_seats(
    tx: AsyncConnection, areas: Sequence[tuple[str, str]], *, free: int, held: int, sold: int
) -> None:
    """Move `UNITS` per area between the parts, with these signs, in the areas' order."""
    for tenant, area in sorted(areas):
        await tx.execute(
            sql(
                "UPDATE seats SET free = free + :free, held = held + :held, sold = sold + :sold"
                " WHERE tenant = :tenant AND area = :area"
            ),
            {
                "free": free * UNITS,
                "held": held * UNITS,
                "sold": sold * UNITS,
                "tenant": tenant,
                "area": area,
            },
        )


def _seats(name: str, table: fence.FenceTable) -> Kind:
    return Kind(
        name=name,
        service=None,
        table=table.name,
        operations={
            "try": partial(hold_seats, table=table),
            "confirm": partial(sell_seats, table=table),
            "cancel": partial(free_seats, table=table),
        },
        request=_requesting(lambda step, name: HoldSeats(**step, area=name), SellSeats, FreeSeats),
        prepare=_doing(
            f"INSERT INTO seats (tenant, area, free) SELECT place, name, {START} {_EACH}"
        ),
        parts=_reading(
            "SELECT tenant AS place, sum(free) AS free, sum(held) AS held, sum(sold) AS done"
            f" FROM seats {_OURS}"
        ),
    )


SEATS = _seats("generic fence", SEAT_HOLD)
AGING = _seats("aging fence", AGING_HOLD)
