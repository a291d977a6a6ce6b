"""Whether an order is still wanted: until it is decided, every Try asks here."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, RetryState

with workflow.unsafe.imports_passed_through():
    from activities.boundary import error_of
    from everycent.domain.order import CancelOrder, Decision, OrderStatus, PlaceOrder, Verdict
    from everycent.domain.outcome import Refusal
    from workflows.checkout_steps import CheckoutSteps
    from workflows.tcc import forget

T = TypeVar("T")


class RefusedError(Exception):
    """The order cannot be sold; where that leads, and why."""

    def __init__(self, status: OrderStatus, reason: str) -> None:
        super().__init__(reason)
        self.verdict = Verdict(decision=Decision.ABORTING, status=status, reason=reason)


class Replaced(Refusal):
    """The customer named another payment before this one had an answer."""

    kind: str = "replaced"


class Wish:
    """The customer's wish for one order: it ends with a cancellation, or with the window."""

    def __init__(self, order: PlaceOrder, steps: CheckoutSteps) -> None:
        self._order = order
        self._steps = steps
        self.cancel: CancelOrder | None = None
        self.given_up = False  # Decided, or about to be: what runs beside begins nothing more.

    async def while_wanted(
        self,
        handle: asyncio.Task[T],
        replaced: Callable[[], bool] = lambda: False,
        timeout: timedelta | None = None,
    ) -> T | Refusal:
        """Wait for a step, unless the order is cancelled, its window ends or the step is replaced.

        The step may still run then, and nobody asks for its answer any more: the undo that comes
        next finds out what became of it, and a late attempt finds the tombstone.
        """
        handle.add_done_callback(forget)
        try:
            await workflow.wait_condition(
                lambda: handle.done() or self.cancel is not None or replaced() or self.given_up,
                timeout=timeout,
                timeout_summary="payment window",
            )
            self.check_given_up()
            if handle.done():
                return await handle
        except TimeoutError:
            raise RefusedError(OrderStatus.EXPIRED, self.expired()) from None
        except ActivityError as error:
            self._stop_trying(error)
        self.check_cancelled()
        return Replaced()

    def _stop_trying(self, error: ActivityError) -> NoReturn:
        ours = error_of(error)
        if error.retry_state is RetryState.TIMEOUT:  # The window is the only limit of these steps.
            raise RefusedError(OrderStatus.EXPIRED, self.expired()) from error
        workflow.logger.error("a step failed before the decision: %s", ours)
        raise RefusedError(OrderStatus.REJECTED, f"{type(ours).__name__}: {ours}") from error

    def check(self) -> None:
        """Stop before a step of an order that is cancelled, or whose window is over."""
        self.check_given_up()
        self.check_cancelled()
        if workflow.now() >= self._steps.window_ends_at:
            raise RefusedError(OrderStatus.EXPIRED, self.expired())

    def give_up(self) -> None:
        """Stop everything that is still under way before the decision."""
        self.given_up = True

    def check_given_up(self) -> None:
        """Stop if another branch has given the order up; its reason counts, nobody hears ours."""
        if self.given_up:
            raise RefusedError(OrderStatus.REJECTED, "another branch was refused")

    def check_cancelled(self) -> None:
        """Stop if the order is cancelled."""
        if self.cancel is not None:
            raise RefusedError(OrderStatus.CANCELLED, self.cancel.reason)

    def expired(self) -> str:
        """Say why an order whose window is over ends."""
        return f"not paid within {self._order.payment_window_seconds} s"
