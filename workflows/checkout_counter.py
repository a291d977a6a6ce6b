"""What people see of a checkout and say to it: how it stands, and the words it takes."""

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from everycent.domain.message import request_hash, storable
    from everycent.domain.order import (
        AttemptAdded,
        AttemptAnswer,
        CancelAnswer,
        CancelOrder,
        Decision,
        OpenedOrder,
        OrderResult,
        OrderStatus,
        Payment,
        PayOrder,
        Placement,
        PlaceOrder,
        RepairAnswer,
        RepairOrder,
        Verdict,
        WaitsFor,
    )
    from everycent.domain.outcome import Refusal
    from workflows.attributes import STATUS, WAITS_FOR
    from workflows.checkout_ahead import StepsAhead
    from workflows.checkout_steps import CheckoutSteps
    from workflows.checkout_wish import Wish
    from workflows.protocols import InTurn
    from workflows.repair import RepairDesk, say
    from workflows.saga import Saga
    from workflows.telling import Standing, details, differs, told


class Counter:
    """Where one order stands, and what is said across the counter; `Checkout` does the work."""

    def __init__(self, order: PlaceOrder) -> None:
        self._order = order
        self._steps = CheckoutSteps(order)
        self._desk = RepairDesk(self._steps, on_change=self._tell_parked)
        self._ahead = StepsAhead(order, self._steps, self._desk)
        self._wish = Wish(order, self._steps)
        self._saga = Saga()
        self._protocol = InTurn(self._wish)  # Until the order's row has told its mode.
        self._verdict = Verdict(decision=Decision.OPEN)
        self._doing = ""
        self._opened: OpenedOrder | None = None
        self._deciding = False
        self._payments: dict[int, Payment] = {}  # By number, from 1, as they were written down.
        self._begun: set[str] = set()  # Request ids of the payments whose undo is registered.
        self._refusals: list[Refusal] = []
        self._redirect_url: str | None = None
        self._waits_for = WaitsFor.NOTHING
        self._result: OrderResult | None = None
        self._failure: ApplicationError | None = None

    async def _mark(self, waits_for: WaitsFor) -> None:
        """Say in the row and to Temporal what the order waits for; only people read it."""
        self._show(waits_for)
        aborting = self._verdict.decision is Decision.ABORTING
        status = self._verdict.status if aborting else None
        await say("what the order waits for", lambda: self._steps.mark(waits_for, status))

    def _show(self, waits_for: WaitsFor) -> None:
        self._waits_for = waits_for
        self._tell_details(
            f"waiting for {waits_for}" if waits_for is not WaitsFor.NOTHING else "going on"
        )
        workflow.upsert_search_attributes([WAITS_FOR.value_set(waits_for)])

    def _tell(self, result: OrderResult) -> OrderResult:
        """Show the end to whoever looks at this run."""
        self._result = result
        self._waits_for = WaitsFor.NOTHING
        workflow.upsert_search_attributes(
            [STATUS.value_set(result.status), WAITS_FOR.value_set(WaitsFor.NOTHING)]
        )
        self._tell_details(f"{result.status}: {result.reason}" if result.reason else result.status)
        return result

    def _tell_details(self, doing: str | None = None) -> None:
        self._doing = doing or self._doing
        end = self._result  # Which another run may have stored.
        standing = Standing(
            doing=self._doing,
            decision=end.decision if end else self._verdict.decision,
            refusals=self._refusals,
            captured_minor=end.captured_minor if end else self._captured_minor(),
            refunded_minor=end.refunded_minor if end else self._ahead.refunded_minor,
            redirect_url=self._redirect_url if self._waits_for is WaitsFor.PAYMENT else None,
            parked=[step for step, _ in self._desk.parked.values()],
            undone=end.undone if end else self._saga.undone,
        )
        workflow.set_current_details(details(self._order, standing))

    async def _tell_parked(self) -> None:
        """Let a step that was parked, or is done at last, be found and read."""
        await self._mark(WaitsFor.REPAIR if self._desk.parked else WaitsFor.NOTHING)

    def _captured_minor(self) -> int:
        """Return all that was taken: what was due, once that is decided, and what came too late."""
        due = self._order.due_minor if self._verdict.decision is Decision.COMMITTING else 0
        return due + self._ahead.paid_late_minor

    def _told(self, refusal: Refusal) -> str:
        return told(refusal, self._order.currency)

    @workflow.query
    def progress(self) -> Placement:
        """Tell how far the order has come."""
        closed = self._result
        return Placement(
            order_id=self._order.order_id,
            request_hash=request_hash(self._order, self._order.HASHED),
            decision=closed.decision if closed else self._verdict.decision,
            status=closed.status if closed else self._verdict.status,
            waits_for=WaitsFor.REPAIR if self._desk.parked else self._waits_for,
            reason=self._reason(),
            redirect_url=self._redirect_url if self._waits_for is WaitsFor.PAYMENT else None,
            parked=tuple(self._desk.parked),
            result=closed,
        )

    def _reason(self) -> str:
        if self._result is not None:
            return self._result.reason
        return self._verdict.reason or (self._told(self._refusals[-1]) if self._refusals else "")

    @workflow.update
    async def placed(self, order: PlaceOrder) -> Placement:
        """Answer once the order is decided or waits for its customer."""
        await workflow.wait_condition(
            lambda: (
                self._verdict.decision is not Decision.OPEN
                or self._result is not None
                or self._failure is not None
                or self._waits_for is WaitsFor.PAYMENT
            )
        )
        self._check_failure()
        return self.progress()

    @placed.validator
    def _placed_is_this_order(self, order: PlaceOrder) -> None:
        differing = tuple(
            name for name in order.HASHED if getattr(order, name) != getattr(self._order, name)
        )
        if differing:
            raise differs(order, differing)

    @workflow.update
    async def cancel(self, request: CancelOrder) -> CancelAnswer:
        """Cancel the order if it is not decided yet, and answer with the decision."""
        self._wish.cancel = self._wish.cancel or request
        await workflow.wait_condition(
            lambda: self._verdict.decision is not Decision.OPEN or self._failure is not None
        )
        self._check_failure()
        aborting = self._verdict.decision in (Decision.ABORTING, Decision.ABORTED)
        status = self._verdict.status if aborting else OrderStatus.PENDING
        return CancelAnswer(cancelled=aborting, status=status, reason=self._verdict.reason)

    @cancel.validator
    def _can_still_be_cancelled(self, request: CancelOrder) -> None:
        if self._deciding and self._verdict.status is not OrderStatus.CANCELLED:
            raise ApplicationError(
                f"too late to cancel: {self._standing()}", type="TooLate", non_retryable=True
            )

    @workflow.update
    async def pay(self, request: PayOrder) -> AttemptAnswer:
        """Name another payment for an order whose last one was refused or takes too long."""
        await workflow.wait_condition(lambda: self._opened is not None or self._failure is not None)
        self._check_failure()
        answer = await self._steps.add_attempt(request.payment)
        if isinstance(answer, AttemptAdded):
            self._payments.setdefault(answer.number, request.payment)
        return answer

    @pay.validator
    def _can_still_be_paid(self, request: PayOrder) -> None:
        if self._deciding:
            raise ApplicationError(
                f"too late to pay: {self._standing()}", type="TooLate", non_retryable=True
            )

    @workflow.update
    async def repair(self, request: RepairOrder) -> RepairAnswer:
        """Run a parked step again now, or take it as done by hand."""
        return await self._desk.instruct(request)

    @repair.validator
    def _is_parked(self, request: RepairOrder) -> None:
        self._desk.check(request)

    def _check_failure(self) -> None:
        """Give whoever waits the error that ended the run."""
        if self._failure is not None:
            raise self._failure

    def _standing(self) -> str:
        status = self._result.status if self._result else self._verdict.decision
        return f"the order is {status.replace('OPEN', 'being decided').lower()}"

    def _cancelled_in_temporal(self) -> None:
        reason = workflow.cancellation_reason() or "cancelled in Temporal"
        if not self._deciding:
            self._wish.cancel = self._wish.cancel or CancelOrder(reason=str(storable(reason)))
