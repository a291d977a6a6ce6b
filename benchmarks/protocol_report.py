"""What was measured of each way to sell the same order."""

from collections import Counter, defaultdict
from statistics import median
from typing import Any, Self

from pydantic import BaseModel

from benchmarks.machine import describe
from benchmarks.protocol_watch import Look, Seen


class StateSeen(BaseModel):
    """A state between before and after, in how many orders it was seen, and for how long."""

    look: Look
    orders: int
    median_ms: float


class WayFigures(BaseModel):
    """The figures of one way; lists of rates and ratios have one value for each round."""

    name: str
    lines_of_code: int = 0
    per_second: list[float] = []
    cpu_ms: list[float] = []  # Of all processes, for an order.
    answered_ms: list[float] = []  # Of each order, with several in flight.
    done_ms: list[float] = []
    alone_ms: list[float] = []  # Of each order, when it was the only one.
    locked_ms: list[float] = []  # Of each order that was watched: its stock's row.
    held_ms: list[float] = []
    states: list[StateSeen] = []
    watched: int = 0
    fsyncs: float = 0.0
    writes: float = 0.0
    messages: float = 0.0
    events: float = 0.0
    actions: float = 0.0

    def ratios(self, limit: "WayFigures") -> list[float]:
        """Return the share of the limit's pace, round by round."""
        pairs = zip(self.per_second, limit.per_second, strict=True)
        return [own / most for own, most in pairs]

    def add_seen(self, seen: list[Seen]) -> None:
        """Sum up what an outside reader saw of these orders; states by how many had them."""
        self.watched = len(seen)
        self.locked_ms = [round(each.locked_ms, 3) for each in seen]
        self.held_ms = [round(each.held_ms, 3) for each in seen]
        orders: Counter[Look] = Counter()
        stood: defaultdict[Look, list[float]] = defaultdict(list)
        places: defaultdict[Look, list[int]] = defaultdict(list)
        for each in seen:
            of_this: Counter[Look] = Counter()
            for place, (look, seconds) in enumerate(each.between):
                of_this[look] += int(seconds * 1_000_000)
                places[look].append(place)
            for look, microseconds in of_this.items():
                orders[look] += 1
                stood[look].append(microseconds / 1000)
        in_turn = sorted(orders, key=lambda look: (median(places[look]), look))
        self.states = [
            StateSeen(look=look, orders=orders[look], median_ms=round(median(stood[look]), 2))
            for look in in_turn
        ]


class ProtocolReport(BaseModel):
    """The figures of one run and the machine they were taken on."""

    taken_at: str
    quick: bool
    size: dict[str, Any]
    machine: dict[str, Any]
    load_average_at_end: list[float] = []
    audited_orders: int = 0
    ways: list[WayFigures] = []

    @classmethod
    def begin(cls, *, at: str, quick: bool, size: dict[str, Any]) -> Self:
        """Describe the machine as it is before the load."""
        return cls(taken_at=at, quick=quick, size=size, machine=describe())
