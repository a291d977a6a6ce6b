"""In which order a checkout takes its holds and gives them back; the steps are the same in all.

The mode stands in the order's row from its opening on, and is kept whatever run has the order.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.domain.extension import Extension, extensions_of
    from everycent.domain.mode import Mode
    from workflows.checkout_wish import RefusedError, Wish
    from workflows.tcc import at_once

T = TypeVar("T")
Hold = Callable[[], Awaitable[None]]
Pay = Callable[[], Awaitable[T]]


class InTurn:
    """The saga: hold by hold, then the payment; what was done is undone newest first."""

    undoes_at_once: ClassVar = False
    follows: ClassVar[tuple[Extension, ...]] = ()  # What messages carry behind the core's end.

    def __init__(self, wish: Wish) -> None:
        self._wish = wish

    async def claim(self, holds: Sequence[Hold], pay: Pay[T]) -> T:
        """Take every hold, then the payment, and return what it answers."""
        for hold in holds:
            await hold()
        return await pay()

    async def all_held(self) -> None:
        """Return when the customer may be asked for money: nobody pays for what is not there."""


class AtOnce(InTurn):
    """TCC: every branch is tried at once, and cancelled at once if one of them refuses."""

    undoes_at_once: ClassVar = True
    _held = False

    async def claim(self, holds: Sequence[Hold], pay: Pay[T]) -> T:
        """Take everything side by side; the first that is refused ends the waiting for all."""
        paying = asyncio.ensure_future(pay())
        branches: list[Awaitable[object]] = [self._take(holds), paying]
        try:
            await at_once(branches)
        except RefusedError:
            self._wish.give_up()  # What is still under way begins nothing more.
            raise
        return paying.result()

    async def all_held(self) -> None:
        """Wait until every hold is there, or the order is given up."""
        if not self._held:
            await workflow.wait_condition(lambda: self._held or self._wish.given_up)
        self._wish.check_given_up()

    async def _take(self, holds: Sequence[Hold]) -> None:
        await at_once([hold() for hold in holds])
        self._held = True


class Mixed(AtOnce):
    """A TCC core; its extensions follow by messages, which stand in the outbox as it closes."""

    follows: ClassVar = extensions_of(Mode.MIXED)


PROTOCOLS: dict[Mode, type[InTurn]] = {
    Mode.SAGA: InTurn,
    Mode.TCC: AtOnce,
    Mode.MIXED: Mixed,
}
