"""The tree of all orders in which sessions can take their steps, counted against the formula.

Sessions with k₁ … kₙ steps can be interleaved in (k₁ + … + kₙ)! / (k₁! … kₙ!) orders. A walk down
the tree is one order on the database; what a walk saw at each point tells which orders PostgreSQL
makes impossible (they send on a session that waits) and which are equal to one that is walked.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import factorial, prod
from typing import Literal


@dataclass(frozen=True)
class Standing:
    """How a session stands: `left` steps to take, of which the first `idle` have nothing to do."""

    left: int
    state: Literal["ready", "waits", "done"]
    idle: int = 0
    begun: bool = True


@dataclass
class Counts:
    """What became of the orders of the formula; `variants` come on top of it.

    `equal` orders differ from a walked one only in when an empty step takes place, or in which of
    two equal sessions is called the first. `variants` are further outcomes of an order in which
    PostgreSQL itself chose whom it let go first.
    """

    formula: int = 0
    executed: int = 0
    impossible: int = 0
    equal: int = 0
    variants: int = 0

    def add(self, other: "Counts") -> None:
        """Add another tree's counts."""
        for name in ("formula", "executed", "impossible", "equal", "variants"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def add_up(self) -> bool:
        """Whether every order of the formula is accounted for, none of them twice."""
        return self.formula == self.executed + self.impossible + self.equal


def orders(steps: Sequence[int]) -> int:
    """Return the number of interleavings of sessions with so many steps each."""
    return factorial(sum(steps)) // prod(map(factorial, steps))


Seen = tuple[Standing, ...]


@dataclass
class Node:
    """A point in the tree: whom one can send on from here, and what was seen after it.

    A child that is None was walked to its end in every way.
    """

    choices: list[int]
    counted: bool
    children: dict[int, dict[Seen, "Node | None"]] = field(default_factory=dict)

    def open_choice(self) -> int | None:
        """Return a session whose going on from here is not walked in every way yet."""
        for choice in self.choices:
            seen = self.children.get(choice)
            if seen is None or any(child is not None for child in seen.values()):
                return choice
        return None


class Tree:
    """All orders of one case. `names` tell which sessions are equal to each other."""

    def __init__(self, names: Sequence[Hashable], steps: Sequence[int] | None) -> None:
        self.counts = Counts(formula=orders(steps) if steps else 0)
        self.walks = 0
        self._names = names
        self._counts_orders = steps is not None
        self._root: Node | None = None
        self._path: list[tuple[Node, int, Seen]] = []
        self._node: Node | None = None

    @property
    def is_walked(self) -> bool:
        """Whether nothing is left to walk."""
        return self._root is not None and self._root.open_choice() is None

    def begin(self, seen: Seen) -> None:
        """Stand at the root again."""
        self._path = []
        self._root = self._root or self._grow(seen, counted=True)
        self._node = self._root

    def choose(self, seen: Seen) -> int:
        """Return whom to send on: an order not walked yet, wherever one is left."""
        choice = None if self._node is None else self._node.open_choice()
        if choice is None:
            self._node = None  # Known ground: PostgreSQL chose as it did before.
            return next(i for i, each in enumerate(seen) if each.state == "ready")
        return choice

    def went(self, choice: int, seen: Seen) -> None:
        """Note what was seen when the chosen session had gone on."""
        if self._node is None:
            return
        children = self._node.children.setdefault(choice, {})
        if seen not in children:
            counted = self._node.counted and not children
            children[seen] = self._grow(seen, counted=counted)
        self._path.append((self._node, choice, seen))
        self._node = children[seen]

    def end(self) -> bool:
        """Note that all sessions are at their end; tell whether this order was new."""
        new = self._node is not None
        self.walks += 1
        if self._node is not None and self._counts_orders:
            if self._node.counted:
                self.counts.executed += 1
            else:
                self.counts.variants += 1
        for node, choice, seen in reversed(self._path):
            child = node.children[choice][seen]
            if child is not None and child.open_choice() is None:
                node.children[choice][seen] = None
        return new

    def _grow(self, seen: Seen, *, counted: bool) -> Node:
        """Return a new point, with the orders counted that need not be walked from here."""
        ready = [i for i, each in enumerate(seen) if each.state == "ready"]
        left = self._skip_idle(seen, counted=counted)
        fresh: set[Hashable] = set()
        choices: list[int] = []
        for i in ready:
            name = self._names[i]
            if not seen[i].begun and name in fresh:
                self._count("equal", left, i, counted=counted)
                continue
            if not seen[i].begun:
                fresh.add(name)
            choices.append(i)
        for i, each in enumerate(seen):
            if each.state == "waits" and left[i]:
                self._count("impossible", left, i, counted=counted)
        return Node(choices, counted)

    def _skip_idle(self, seen: Seen, *, counted: bool) -> list[int]:
        """Take the empty steps at once: with whom they are interleaved makes no difference."""
        left = [each.left for each in seen]
        for i, each in enumerate(seen):
            for _ in range(each.idle):
                for j in range(len(left)):
                    if j != i and left[j]:
                        self._count("equal", left, j, counted=counted)
                left[i] -= 1
        return left

    def _count(
        self,
        what: Literal["equal", "impossible"],
        left: Sequence[int],
        next_: int,
        *,
        counted: bool,
    ) -> None:
        """Count the orders in which the session `next_` goes on from here."""
        if counted and self._counts_orders:
            rest = [steps - (i == next_) for i, steps in enumerate(left)]
            setattr(self.counts, what, getattr(self.counts, what) + orders(rest))
