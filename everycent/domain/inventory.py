"""Stock: free -> held -> sold. Units are integers; a reservation holds all of its lines or none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, TypeAdapter

from everycent.domain.message import Id, Message, StepRequest, Told, Units
from everycent.domain.outcome import Refusal

Shelf = dict[tuple[str, str], int]  # (tenant, sku) -> free units


class StockLine(Message):
    """So many units of one SKU."""

    sku: Id
    units: Units


class ReserveStock(StepRequest):
    """Try: hold the units of every line, all or none, once per `key`."""

    HASHED: ClassVar = ("lines",)

    lines: tuple[StockLine, ...] = Field(min_length=1, max_length=1000)


class CommitStock(StepRequest):
    """Confirm: the held units are sold."""


class ReleaseStock(StepRequest):
    """Cancel: the held units, if any, are free again; a Try that comes later is refused."""

    reason: Told


class SetStock(StepRequest):
    """Make so many units of a SKU free by booking the difference in or out, once per `key`."""

    HASHED: ClassVar = ("sku", "free_units")

    sku: Id
    free_units: int = Field(ge=0, le=10**9)


class ReceiveStock(StepRequest):
    """Book units that arrived, once per `key`."""

    HASHED: ClassVar = ("sku", "units")

    sku: Id
    units: Units


class Reserved(Message):
    """Every line is held."""

    kind: Literal["reserved"] = "reserved"
    lines: tuple[StockLine, ...]


class OutOfStock(Refusal):
    """Fewer units are free than wanted; only a restock helps."""

    kind: Literal["out_of_stock"] = "out_of_stock"
    sku: str
    units_wanted: int
    units_free: int


class StockCommitted(Message):
    """The units of the reservation are sold."""

    kind: Literal["stock_committed"] = "stock_committed"
    lines: tuple[StockLine, ...]


class StockReleased(Message):
    """What was held is free again; no lines if nothing was held."""

    kind: Literal["stock_released"] = "stock_released"
    lines: tuple[StockLine, ...]


class StockBooked(Message):
    """The stock of a SKU after a booking of goods in (+) or out (-)."""

    kind: Literal["stock_booked"] = "stock_booked"
    sku: str
    units_booked: int
    units_free: int


ReserveAnswer = Reserved | OutOfStock
RESERVE_ANSWERS: TypeAdapter[ReserveAnswer] = TypeAdapter(ReserveAnswer)
COMMIT_ANSWERS = TypeAdapter(StockCommitted)
RELEASE_ANSWERS = TypeAdapter(StockReleased)
BOOKED_ANSWERS = TypeAdapter(StockBooked)


@dataclass(frozen=True)
class Allocation:
    """The answers of a batch of reservations, and the units each SKU gives to them."""

    answers: dict[str, ReserveAnswer]
    taken: Shelf


def allocate(shelf: Mapping[tuple[str, str], int], requests: Sequence[ReserveStock]) -> Allocation:
    """Give each order its lines or refuse it, first come, first served; never below zero.

    Lines of one order that name the same SKU are checked as their sum. The refusal names the SKU
    that is shortest. A SKU that is not on the shelf has no units.
    """
    free = dict(shelf)
    taken: Shelf = {}
    answers: dict[str, ReserveAnswer] = {}
    for request in requests:
        wanted = units_by_sku(request.lines)
        short = _shortest(free, request.tenant, wanted)
        answers[request.key] = short or Reserved(lines=request.lines)
        if short is None:
            for sku, units in wanted.items():
                free[request.tenant, sku] -= units
                taken[request.tenant, sku] = taken.get((request.tenant, sku), 0) + units
    return Allocation(answers, taken)


def units_by_sku(lines: Sequence[StockLine]) -> dict[str, int]:
    """Sum the units of each SKU over the lines."""
    units: dict[str, int] = {}
    for line in lines:
        units[line.sku] = units.get(line.sku, 0) + line.units
    return units


def _shortest(free: Shelf, tenant: str, wanted: Mapping[str, int]) -> OutOfStock | None:
    gaps = [(free.get((tenant, sku), 0) - units, sku) for sku, units in wanted.items()]
    gap, sku = min(gaps)
    if gap >= 0:
        return None
    return OutOfStock(sku=sku, units_wanted=wanted[sku], units_free=wanted[sku] + gap)
