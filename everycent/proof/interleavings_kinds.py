"""What is interleaved: a kind of row, its operations, and what each has to answer when.

A schedule plays at a place of its own: a tenant with two resources of `START` each. A step of key
number n takes `UNITS` of one of them, in another order than that of the keys.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    EverycentError,
    NotConfirmable,
    NothingTried,
)
from everycent.proof.interleavings_session import Operation, Point
from everycent.settings import ServiceName

START = 1000
UNITS = 3
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
TODAY = date(2026, 1, 2)
ABSENT = "absent"

# What an operation answers: its own new answer, its first answer again, this error, or (any other
# text) what the kind shows of the answer.
Outcome = str | type[EverycentError]
Rules = Mapping[tuple[str, str], tuple[str, Outcome]]

# Design rule 3, written down once more: the judge shares no code with the fence.
FENCE_RULES: Rules = {
    (ABSENT, "try"): ("TRIED", "new"),
    ("TRIED", "try"): ("TRIED", "same"),
    ("CONFIRMED", "try"): ("CONFIRMED", "same"),
    ("CANCELLED", "try"): ("CANCELLED", AlreadyCancelled),
    (ABSENT, "confirm"): (ABSENT, NothingTried),
    ("TRIED", "confirm"): ("CONFIRMED", "new"),
    ("CONFIRMED", "confirm"): ("CONFIRMED", "same"),
    ("CANCELLED", "confirm"): ("CANCELLED", NotConfirmable),
    (ABSENT, "cancel"): ("CANCELLED", "new"),
    ("TRIED", "cancel"): ("CANCELLED", "new"),
    ("CONFIRMED", "cancel"): ("CONFIRMED", AlreadyConfirmed),
    ("CANCELLED", "cancel"): ("CANCELLED", "same"),
}
_CLAIMS = (Point.CLAIM, Point.LOCK, Point.EFFECT, Point.END)
FENCE_POINTS: Mapping[str, tuple[Point, ...]] = {
    "try": _CLAIMS,
    "confirm": (Point.LOCK, Point.EFFECT, Point.END),  # A Confirm makes no row: it claims nothing.
    "cancel": _CLAIMS,
}


@dataclass(frozen=True)
class Parts:
    """What a place has in each part, summed over its resources."""

    free: int
    held: int
    done: int


@dataclass(frozen=True)
class Kind:
    """A kind of row, its operations, and how to read what they left.

    A key without a row is in the state `begins`. `names` are what the requirements call the
    operations; a duplicate is the same request once more, to the byte. `rules` say what each
    answers in each state; `after` is sent when a schedule has ended: nothing late moves anything.
    """

    name: str
    service: ServiceName | None  # None: a database of the proof's own.
    table: str
    operations: Mapping[str, Operation]
    request: Callable[[str, str, int], Any]
    prepare: Callable[[AsyncConnection, Sequence[str]], Awaitable[None]]
    parts: Callable[[AsyncConnection, Sequence[str]], Awaitable[dict[str, Parts]]] | None = None
    shows: Callable[[Any], str] = str
    begins: str = ABSENT
    states_query: str | None = None
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=lambda: FENCE_POINTS)
    rules: Rules = field(default_factory=lambda: FENCE_RULES)
    names: tuple[str, ...] = ("try", "try", "confirm", "cancel", "cancel")
    starts: tuple[tuple[str, ...], ...] = ((), ("try",))
    after: tuple[str, ...] = ("try", "confirm", "cancel", "try")
    key_by_key: bool = False  # Whether keys are locked by a call each, in their order.

    def key(self, place: str, number: int) -> str:
        """Return the key of a place's step: its order's number tells them apart."""
        return str(step_of(place, number)["key"])

    async def states(self, tx: AsyncConnection, keys: Sequence[str]) -> dict[str, str]:
        """Return the state of each key that has a row."""
        query = f"SELECT key, state FROM {self.table} WHERE key = ANY(CAST(:keys AS text[]))"
        result = await tx.execute(sql(self.states_query or query), {"keys": list(keys)})
        return {row.key: row.state for row in result}


def resource(number: int) -> str:
    """Return the resource that key number n takes from: not in the order of the keys."""
    return ("y", "x")[number % 2]


def step_of(place: str, number: int) -> dict[str, Any]:
    """Return what every request of a place's step carries."""
    return {"key": f"{place}/o-{number}/step", "at": NOON, "opened_on": TODAY}
