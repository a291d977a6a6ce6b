"""The cells of the matrix: which fault is put at which boundary of which outcome."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Deed = Literal[
    "", "cancel", "end session", "lose commit", "lose reply", "stall commit", "commit late",
    "kill worker", "stop database", "stop Temporal", "put Temporal back",
    "put Temporal back alone",
]  # fmt: skip
ACTIVITY = ("activity.before", "activity.after")
MESSAGE = ("message.before", "message.after")
COMMIT = ("commit.before", "commit.after")
PROVIDER = ("provider.before", "provider.after")
TASK = ("workflow_task.after",)
PART = 800


@dataclass(frozen=True, order=True)
class Boundary:
    """The nth time that an order comes to a point of a step, as a run without faults has shown."""

    point: str
    step: str
    nth: int

    def __str__(self) -> str:
        return f"{self.point} {self.step}" + (f" #{self.nth}" if self.nth > 1 else "")


@dataclass(frozen=True)
class Fault:
    """One kind of fault: the rule's action at a boundary, and what is done while a run halts there.

    In a wave many runs halt, each at its own boundary, and one deed strikes all of them. After a
    fault `for_good` the order may also end as one whose step has failed. Where a fault
    `needs_operator`, it can leave a run that cannot go on: that is looked for from the beginning.
    """

    name: str
    points: tuple[str, ...]
    action: str = "halt"
    deed: Deed = ""
    wave: bool = False
    for_good: bool = False
    needs_operator: bool = False


FAULTS: tuple[Fault, ...] = (
    Fault("Transient", ("activity.before", "message.before", "commit.before", "provider.before"),
          "transient"),
    Fault("Unknown", (*ACTIVITY, *MESSAGE, *COMMIT, *PROVIDER), "unknown"),
    Fault("Bug", (*ACTIVITY, *MESSAGE), "bug", for_good=True),
    Fault("zombie", (*ACTIVITY, "message.before", "commit.before"), "zombie"),
    Fault("delivered twice", ("activity.before", "message.before"), "twice"),
    Fault("delivered late", ("activity.after", "message.after"), "late"),
    Fault("overtaken", ("activity.before", "message.before"), "overtaken", for_good=True),
    Fault("cancelled here", (*ACTIVITY, *MESSAGE), deed="cancel"),
    Fault("session ended", ("commit.before",), deed="end session"),
    Fault("COMMIT lost", ("commit.before",), deed="lose commit"),
    Fault("COMMIT's reply lost", ("commit.before",), deed="lose reply"),
    Fault("COMMIT stalls", ("commit.before",), deed="stall commit"),
    Fault("COMMIT comes late", ("commit.before",), deed="commit late"),
    Fault("worker killed", (*ACTIVITY, *MESSAGE, *COMMIT, *PROVIDER, *TASK), deed="kill worker",
          wave=True),
    Fault("database stopped", (*ACTIVITY, *MESSAGE, *COMMIT), deed="stop database", wave=True),
    Fault("Temporal stopped", (*ACTIVITY, *TASK), deed="stop Temporal", wave=True),
    Fault("Temporal put back", (*ACTIVITY, *TASK), deed="put Temporal back", wave=True),
    Fault(
        "Temporal put back under live workers", (*ACTIVITY, *TASK),
        deed="put Temporal back alone", wave=True, needs_operator=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One fault at one boundary of one outcome."""

    outcome: str
    boundary: Boundary
    fault: Fault

    @property
    def victim(self) -> str:
        """Return whose worker is killed, as its steps begin; nothing for other faults."""
        return self.boundary.step.partition(".")[0] if self.fault.deed == "kill worker" else ""


def boundaries(journal: Iterable[dict[str, Any]]) -> dict[str, list[Boundary]]:
    """Return, per order, the boundaries it has come to, in their order."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found: dict[str, list[Boundary]] = {}
    for line in journal:
        if "hit" in line:
            place = (line["order"], line["point"], line["step"])
            seen[place] += 1
            found.setdefault(line["order"], []).append(Boundary(*place[1:], nth=seen[place]))
    return found


def cells_of(outcome: str, places: Sequence[Boundary], faults: Sequence[Fault]) -> list[Cell]:
    """Return every cell of an outcome: each fault at each boundary where it can happen."""
    return [
        Cell(outcome, boundary, fault)
        for fault in faults
        for boundary in places
        if boundary.point in fault.points
    ]


def sample(cells: Sequence[Cell], per_place: int) -> list[Cell]:
    """Return so many cells of each fault at each kind of point, spread over outcomes and steps.

    Left out are attempts at the provider that outlive their time, for 90 s are too long, and what
    an order comes to again: how often it polls is a matter of time.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        is_long = cell.fault.action == "zombie" and cell.boundary.step.startswith("payment.")
        if cell.boundary.nth == 1 and not is_long:
            groups.setdefault((cell.fault.name, cell.boundary.point), []).append(cell)
    chosen: list[Cell] = []
    for number, group in enumerate(groups.values()):
        stride = len(group) / per_place
        chosen += [group[int(stride * n + number * 7) % len(group)] for n in range(per_place)]
    return list(dict.fromkeys(chosen))


def parts_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cut the cells into parts that are swept as one; a part with waves has one fault alone.

    Faults of one order come first, those of a wave last. Within a part attempts that outlive their
    time go first, so that the others fill the wait. Workers are killed service by service: a wave
    that stands in one worker has one to wait for. Else all is mixed, so that no lane is full.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in random.Random(0).sample(cells, len(cells)):  # noqa: S311
        groups.setdefault(cell.fault.name if cell.fault.wave else "", []).append(cell)
    parts = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda cell: (cell.fault.action != "zombie", cell.victim))
        count = -(-len(group) // PART)
        parts += [group[number::count] for number in range(count)]
    return parts
