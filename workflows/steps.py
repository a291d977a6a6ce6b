"""What a flow is made of: the flow calls with it, and the start of a worker checks it.

A flow declares its steps once, as constants, and starts each through `workflows.place`. Nothing is
declared beside the code, so nothing can drift from it; and nothing is computed per order.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any, Generic, TypeVar

from .options import StepOptions

R = TypeVar("R")
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class Step(Generic[R, A]):
    """One step: which activity, under which key, in which lane, with which patience.

    Exactly one of these says how the flow gets back from it: `undo`, another step that takes it
    back; `irreversible`, the reason why nothing has to; `pivot`, after which there is no way back;
    or it is itself the `undo` or the `confirm` of another step. A Try `holds` something and needs
    both. A step that is taken `forward` is begun after the decision only; in TCC every other step
    with an undo has to be a Try. One attempt makes up to `transactions` transactions and holds up
    to `talks` talks with another company, one after the other: its start-to-close time must be
    longer than all of them.
    """

    name: str
    activity: Callable[[Any, R], Awaitable[A]]
    queue: str
    options: StepOptions
    key: str = ""
    undo: "Step[Any, Any] | None" = None
    confirm: "Step[Any, Any] | None" = None
    holds: bool = False
    pivot: bool = False
    forward: bool = False
    irreversible: str = ""
    transactions: int = 1
    talks: int = 0


@dataclass(frozen=True)
class Plan:
    """A flow's steps, how long it may wait for its customer, and its own deadline if it has one."""

    steps: tuple[Step[Any, Any], ...]
    window: timedelta = timedelta(0)
    deadline: timedelta | None = None

    @classmethod
    def of(cls, module: ModuleType, **times: timedelta) -> "Plan":
        """Take every step that is a constant of the module: none can be left out."""
        steps = tuple(value for value in vars(module).values() if isinstance(value, Step))
        return cls(steps, **times)
