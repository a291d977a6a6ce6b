"""Checkout: sell one order, or leave no trace of it (docs/flows/checkout.md).

open -> hold stock and points -> take payment -> decide COMMITTING -> capture, the pivot
     -> sell stock | use points | book the sale | earn points -> COMMITTED
refused, cancelled or the window over: decide ABORTING -> undo, newest first -> ABORTED
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.boundary import error_of
    from everycent.domain.order import (
        MAX_ATTEMPTS,
        BalancePayment,
        Decision,
        OpenedOrder,
        OrderDiffers,
        OrderResult,
        OrderStatus,
        Payment,
        PlaceOrder,
        Verdict,
        WaitsFor,
    )
    from everycent.domain.outcome import Refusal
    from everycent.domain.payment import CaptureAnswer, CaptureRefused, RedirectOpened
    from everycent.domain.withdrawal import OrderWithdrawn
    from everycent.errors import NotConfirmable
    from workflows.checkout_counter import Counter
    from workflows.checkout_wish import RefusedError, Replaced
    from workflows.protocols import PROTOCOLS
    from workflows.saga import ParkedStep, Saga, run_or_park, uninterrupted
    from workflows.telling import unopened

T = TypeVar("T")
GONE = "the stock was gone after the payment: refunded"


@workflow.defn(name="checkout")
class Checkout(Counter):
    """One order. Its row in the order database decides; this run drives it there."""

    @workflow.init
    def __init__(self, order: PlaceOrder) -> None:
        super().__init__(order)

    @workflow.run
    async def run(self, order: PlaceOrder) -> OrderResult:
        """Sell the order and return how it ended; a cancellation counts as the customer's."""
        try:
            return await uninterrupted(self._sell(), on_cancel=self._cancelled_in_temporal)
        except ApplicationError as failure:  # Before anything was begun: see `_begin`.
            self._failure = failure
            raise
        finally:
            await workflow.wait_condition(workflow.all_handlers_finished)

    async def _sell(self) -> OrderResult:
        opened = await self._begin()
        if opened.verdict.decision is Decision.OPEN:
            await self._try_to_sell()
        else:
            self._adopt(opened)
        if self._verdict.decision is Decision.COMMITTING:
            await self._capture()
        if self._verdict.decision is Decision.COMMITTING:
            return await self._fulfil()
        if self._verdict.decision is Decision.ABORTING:
            return await self._abort()
        return self._tell(await self._stored())

    # -- until the decision: everything can still be undone

    async def _begin(self) -> OpenedOrder:
        """Write the order down. What cannot even be written down ends the run: nothing is held."""
        opened = await run_or_park("open", self._order.step_key("open"), self._steps.open)
        if isinstance(opened, ParkedStep):
            raise ApplicationError(opened.error, type=opened.error_class, non_retryable=True)
        if isinstance(opened, OrderDiffers | OrderWithdrawn):
            raise unopened(self._order, opened)
        return self._know(opened)

    async def _open_again(self) -> OpenedOrder:
        """Ask the order's row how far the order has come."""
        opened = await self._desk.must("open", self._order.step_key("open"), self._steps.open)
        if isinstance(opened, OrderWithdrawn) and self._opened is not None:
            opened = self._opened.withdrawn(opened, tuple(self._payments.values()))
        assert isinstance(opened, OpenedOrder), "an order does not change what was asked for"
        return self._know(opened)

    def _know(self, opened: OpenedOrder) -> OpenedOrder:
        self._opened = opened
        self._steps.opened_on = opened.opened_on
        self._steps.window_ends_at = opened.window_ends_at
        self._payments = dict(enumerate(opened.attempts, start=1))
        self._protocol = PROTOCOLS[opened.mode](self._wish)
        self._ahead.follows = self._protocol.follows
        return opened

    async def _try_to_sell(self) -> None:
        try:
            self._wish.check()
            holds = (self._reserve_stock, self._freeze_points)
            paid_by = await self._protocol.claim(holds, self._take_payment)
        except RefusedError as refused:
            await self._decide(refused.verdict)
        else:
            await self._decide(Verdict(decision=Decision.COMMITTING, attempt=paid_by))

    async def _reserve_stock(self) -> None:
        self._tell_details("holding the stock")
        await self._try(
            "release stock",
            self._order.step_key("reserve"),
            lambda: self._wish.while_wanted(self._steps.reserve_stock()),
            lambda _: self._steps.release_stock(self._verdict.reason),
        )

    async def _freeze_points(self) -> None:
        if self._order.points:
            await self._try(
                "release points",
                self._order.step_key("points"),
                lambda: self._wish.while_wanted(self._steps.freeze_points()),
                lambda _: self._steps.unfreeze_points(self._verdict.reason),
            )

    async def _try(
        self,
        undo_name: str,
        key: str,
        action: Callable[[], Awaitable[T | Refusal]],
        undo: Callable[[object], Awaitable[object]],
    ) -> None:
        answer = await self._saga.step(undo_name, key, action, undo)
        if isinstance(answer, Refusal):
            self._refusals.append(answer)
            raise RefusedError(OrderStatus.REJECTED, self._told(answer))

    async def _take_payment(self) -> str | None:
        """Return the request id of the attempt that pays, None if nothing is due."""
        if self._order.due_minor == 0:
            self._wish.check_cancelled()
            return None
        for number in range(1, MAX_ATTEMPTS + 1):
            payment = await self._payment(number)
            refusal = await self._authorise(payment, number)
            if refusal is None:
                self._wish.check_cancelled()
                return payment.request_id
            self._refusals.append(refusal)
        last = self._told(self._refusals[-1])
        raise RefusedError(OrderStatus.REJECTED, f"{MAX_ATTEMPTS} payments refused, last: {last}")

    async def _payment(self, number: int) -> Payment:
        """Return the payment of that number; wait for the customer to name it if need be."""
        if number not in self._payments:
            await self._wait_for_customer(lambda: number in self._payments)
        self._wish.check()
        return self._payments[number]

    async def _wait_for_customer(self, named: Callable[[], bool]) -> None:
        await self._protocol.all_held()
        await self._mark(WaitsFor.PAYMENT)
        try:
            await workflow.wait_condition(
                lambda: named() or self._wish.cancel is not None or self._wish.given_up,
                timeout=self._steps.window_left,
                timeout_summary="payment window",
            )
        except TimeoutError:
            raise RefusedError(OrderStatus.EXPIRED, self._wish.expired()) from None
        await self._mark(WaitsFor.NOTHING)

    async def _authorise(self, payment: Payment, number: int) -> Refusal | None:
        """Try one payment; None means that it can pay the order."""

        def replaced() -> bool:
            return number + 1 in self._payments

        if replaced():
            return Replaced()
        self._tell_details(f"authorising payment {payment.request_id} by {payment.method}")
        self._begun.add(payment.request_id)
        answer: object = await self._saga.step(
            f"void payment {payment.request_id}",
            self._steps.attempt_key(payment.request_id),
            lambda: self._wish.while_wanted(
                self._steps.freeze_balance(payment)
                if isinstance(payment, BalancePayment)
                else self._steps.authorise(payment),
                replaced,
            ),
            lambda _: self._undo_payment(payment),
        )
        if isinstance(answer, RedirectOpened):
            self._redirect_url = answer.url
            await self._protocol.all_held()
            await self._mark(WaitsFor.PAYMENT)
            answer = await self._wish.while_wanted(
                self._steps.await_customer(payment), replaced, self._steps.window_left
            )
            await self._mark(WaitsFor.NOTHING)
        return answer if isinstance(answer, Refusal) else None

    async def _decide(self, wanted: Verdict, pivot_refusal: Refusal | None = None) -> None:
        """Write the decision; who loses the race adopts what the winner wrote.

        An order that another run has opened too is undone whole: every step gets its tombstone, so
        that nothing the other run has begun is left, or comes later. So are steps that run where
        the run is: a workflow task that was lost may have done them.
        """
        self._deciding = True
        self._waits_for = WaitsFor.NOTHING
        evidence = None if pivot_refusal is None else pivot_refusal.model_dump(mode="json")
        self._verdict = await self._desk.must(
            f"decide {wanted.decision}",
            self._order.step_key("decide"),
            lambda: self._steps.decide(wanted, evidence),
        )
        ours = not self._verdict.shared and self._verdict.agrees_with(wanted)
        if not ours or self._steps.together:
            self._adopt(await self._open_again(), only_local=ours)

    def _adopt(self, opened: OpenedOrder, *, only_local: bool = False) -> None:
        """Take over a decided order: whatever it may have done is ours to undo or to finish.

        `only_local`: but for calls to the provider that this run knows it did not begin.
        """
        self._verdict = opened.verdict
        self._deciding = True
        self._saga = saga = Saga()
        saga.may_have_run(
            "release stock",
            self._order.step_key("reserve"),
            lambda _: self._steps.release_stock(self._verdict.reason),
        )
        if self._order.points:
            saga.may_have_run(
                "release points",
                self._order.step_key("points"),
                lambda _: self._steps.unfreeze_points(self._verdict.reason),
            )
        for payment in opened.attempts:
            if not only_local or isinstance(payment, BalancePayment):
                self._begun.add(payment.request_id)
            if payment.request_id not in self._begun:
                continue
            saga.may_have_run(
                f"void payment {payment.request_id}",
                self._steps.attempt_key(payment.request_id),
                lambda _, payment=payment: self._undo_payment(payment),  # type: ignore[misc]
            )

    # -- after the decision: forward only, or back to the start

    async def _capture(self) -> None:
        """Take the money. A definite refusal of this pivot is the only way back to ABORTING."""
        payment = self._chosen()
        if payment is None or isinstance(payment, BalancePayment):
            return  # The decision itself was the pivot.
        self._tell_details("capturing the payment")
        answer = await self._desk.must(
            "capture payment",
            self._order.step_key("capture", payment.request_id),
            lambda: self._capture_or_adopt(payment.request_id),
        )
        if isinstance(answer, CaptureRefused):
            self._refusals.append(answer)
            wanted = Verdict(
                decision=Decision.ABORTING,
                attempt=payment.request_id,
                status=OrderStatus.REJECTED,
                reason=self._told(answer),
            )
            await self._decide(wanted, pivot_refusal=answer)

    async def _capture_or_adopt(self, request_id: str) -> CaptureAnswer | None:
        """Capture; None if another run has taken the order back meanwhile, which we adopt."""
        try:
            return await self._steps.capture(request_id)
        except ActivityError as error:
            if not isinstance(error_of(error), NotConfirmable):
                raise
            opened = await self._open_again()
            if opened.verdict.decision is Decision.COMMITTING:
                raise
        self._adopt(opened)
        return None

    async def _fulfil(self) -> OrderResult:
        """Give the customer what is paid for; all of it, or all of the money back."""
        assert self._chosen() or not self._order.due_minor, "what is due is paid by somebody"
        self._tell_details("selling the stock and booking the sale")
        payment = self._chosen()
        sold, *_ = await asyncio.gather(
            self._ahead.sell_stock(),
            self._ahead.use_tenders(payment),
            self._ahead.book_sale(payment),
            self._ahead.earn_points(),
            self._drop_other_payments(),
        )
        if sold:
            return await self._close(OrderStatus.CONFIRMED)
        self._tell_details("the stock is gone: refunding")
        await self._ahead.give_everything_back(payment)
        return await self._close(OrderStatus.REFUNDED)

    async def _drop_other_payments(self) -> None:
        """Void every attempt but the one that pays; what one took all the same goes back."""
        for payment in self._payments.values():
            if payment.request_id in self._begun and payment.request_id != self._verdict.attempt:
                await self._desk.see_done(
                    f"void payment {payment.request_id}",
                    self._steps.attempt_key(payment.request_id),
                    lambda payment=payment: self._undo_payment(payment),  # type: ignore[misc]
                )
        await self._ahead.refund_late()

    async def _undo_payment(self, payment: Payment) -> None:
        await self._ahead.undo_payment(payment, self._verdict.reason)

    async def _abort(self) -> OrderResult:
        self._tell_details(f"undoing: {self._verdict.reason}")
        parked = await self._saga.compensate(at_once=self._protocol.undoes_at_once)
        await asyncio.gather(
            self._ahead.refund_late(), *(self._desk.repair(step) for step in parked)
        )
        await self._ahead.refund_late()  # What a void that was repaired has found.
        self._saga.undone += [step.name for step in parked]
        return await self._close(self._verdict.status)

    async def _stored(self) -> OrderResult:
        """Return the result of an order that another run has ended."""
        result = (await self._open_again()).result
        assert result is not None, "a final order has a result"
        return result

    async def _close(self, status: OrderStatus) -> OrderResult:
        order, aborted = self._order, self._verdict.decision is Decision.ABORTING
        result = OrderResult(
            tenant=order.tenant,
            order_id=order.order_id,
            status=status,
            decision=Decision.ABORTED if aborted else Decision.COMMITTED,
            reason=GONE if status is OrderStatus.REFUNDED else self._verdict.reason,
            refusals=tuple(refusal.model_dump(mode="json") for refusal in self._refusals),
            total_minor=order.total_minor,
            captured_minor=self._captured_minor(),
            refunded_minor=self._ahead.refunded_minor,
            points_used=order.points if status is OrderStatus.CONFIRMED else 0,
            points_earned=order.points_earned if status is OrderStatus.CONFIRMED else 0,
            undone=tuple(self._saga.undone),
        )
        stored = await self._desk.must(
            "close", order.step_key("close"), lambda: self._steps.close(result)
        )
        return self._tell(stored)

    def _chosen(self) -> Payment | None:
        """Return the payment that the decision named."""
        chosen = (p for p in self._payments.values() if p.request_id == self._verdict.attempt)
        return next(chosen, None)
