"""What can be counted and runs out: uses of a coupon, a quota, what one customer may buy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import StringConstraints

from everycent.domain.message import Message, Units
from everycent.domain.outcome import Refusal
from everycent.domain.participant import BranchRequest

Item = Annotated[str, StringConstraints(pattern=r"\A[^\x00]{1,200}\z")]
Counter: TypeAlias = tuple[str, str]  # The tenant and the item.


class TakeUnits(BranchRequest):
    """Hold units of an item: a code, a quota's period, a customer and what she buys."""

    HASHED = ("item", "units")
    item: Item
    units: Units = 1

    @property
    def counter(self) -> Counter:
        """The row that it takes from."""
        return self.tenant, self.item


class UnitsHeld(Message):
    """The units are set aside."""

    kind: Literal["units_held"] = "units_held"
    item: str
    units: int


class NotEnough(Refusal):
    """Fewer units are free than wanted; those of an open hold may come back."""

    kind: Literal["not_enough"] = "not_enough"
    item: str
    units_wanted: int
    units_free: int


class NoSuchItem(Refusal):
    """Nothing was ever allowed of this item."""

    kind: Literal["no_such_item"] = "no_such_item"
    item: str


Taken: TypeAlias = UnitsHeld | NotEnough | NoSuchItem


@dataclass(frozen=True)
class Taking:
    """The answer to each request by its key, and how many units each counter holds more."""

    answers: Mapping[str, Taken]
    units: Mapping[Counter, int]


def take(free: Mapping[Counter, int], requests: Sequence[TakeUnits]) -> Taking:
    """Give each request its units or say no, in their order; one that gets none takes none."""
    left = dict(free)
    answers: dict[str, Taken] = {}
    units: dict[Counter, int] = {}
    for request in requests:
        place, wanted = request.counter, request.units
        if place not in left:
            answers[request.key] = NoSuchItem(item=request.item)
        elif left[place] < wanted:
            answers[request.key] = NotEnough(
                item=request.item, units_wanted=wanted, units_free=left[place]
            )
        else:
            answers[request.key] = UnitsHeld(item=request.item, units=wanted)
            left[place] -= wanted
            units[place] = units.get(place, 0) + wanted
    return Taking(answers, units)
