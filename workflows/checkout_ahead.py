"""What is done after the decision, and never undone: each step must succeed, or is parked."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.boundary import error_of
    from everycent.domain.extension import Extension
    from everycent.domain.order import BalancePayment, Payment, PlaceOrder
    from everycent.domain.outcome import Refusal
    from everycent.domain.payment import PaidAnyway
    from everycent.errors import NotConfirmable, NothingTried
    from workflows.checkout_steps import CheckoutSteps
    from workflows.repair import REFUSED, RepairDesk
    from workflows.telling import told


class StepsAhead:
    """The forward steps of one order. What is refused or fails in them waits for repair."""

    def __init__(self, order: PlaceOrder, steps: CheckoutSteps, desk: RepairDesk) -> None:
        self._order = order
        self._steps = steps
        self._desk = desk
        self.follows: Collection[Extension] = ()  # Not done here: messages carry it.
        self._paid_late: dict[str, tuple[Payment, int]] = {}  # Taken in spite of the void.
        self._refunded: dict[str, int] = {}  # What went back, by the refund's key.

    @property
    def paid_late_minor(self) -> int:
        """What payments took that should have taken nothing."""
        return sum(amount_minor for _, amount_minor in self._paid_late.values())

    @property
    def refunded_minor(self) -> int:
        """What went back to the customer."""
        return sum(self._refunded.values())

    async def sell_stock(self) -> bool:
        """Sell the held units; False if they are gone for good, which only a refund answers."""

        async def sell() -> bool:
            try:
                await self._steps.commit_stock()
            except ActivityError as error:
                if not isinstance(error_of(error), NothingTried | NotConfirmable):
                    raise
                workflow.logger.error("a paid order has no stock: %s", error.cause)
                return False
            return True

        sold = await self._desk.see_done("commit stock", self._order.step_key("reserve"), sell)
        return sold is not False

    async def use_tenders(self, payment: Payment | None) -> None:
        """Take what is held: the stored balance, the points."""
        if isinstance(payment, BalancePayment):
            await self._desk.see_done(
                "debit balance",
                self._steps.attempt_key(payment.request_id),
                lambda: self._steps.debit_balance(payment.request_id),
            )
        if self._order.points:
            await self._desk.see_done(
                "use points", self._order.step_key("points"), self._steps.redeem_points
            )

    async def book_sale(self, payment: Payment | None) -> None:
        """Book what each tender brought, unless the order was free."""
        if self._order.total_minor:
            await self._desk.see_done(
                "post ledger",
                self._order.step_key("ledger"),
                self._unless_refused(lambda: self._steps.post_ledger(payment)),
            )

    @property
    def _earns(self) -> bool:
        """Whether points are granted here, and taken back here."""
        return self._order.points_earned > 0 and Extension.POINTS not in self.follows

    async def earn_points(self) -> None:
        """Grant the points that the order earns, if any, unless they follow by a message."""
        if self._earns:
            await self._desk.see_done(
                "earn points", self._order.step_key("earn"), self._steps.earn_points
            )

    async def give_everything_back(self, payment: Payment | None) -> None:
        """Refund a paid order that cannot be fulfilled: forward steps with keys of their own."""
        order = self._order
        steps: list[Awaitable[object]] = []
        if payment is not None:
            steps.append(self._refund(payment, order.due_minor, order.step_key("full-refund")))
        if order.points:
            key = order.step_key("points-refund")
            steps.append(self._desk.see_done("restore points", key, self._steps.restore_points))
        if self._earns:
            key = order.step_key("unearn")
            steps.append(self._desk.see_done("revoke points", key, self._steps.revoke_points))
        if order.total_minor:
            key = order.step_key("ledger-reversal")
            reverse = self._unless_refused(self._steps.reverse_ledger)
            steps.append(self._desk.see_done("reverse ledger", key, reverse))
        await asyncio.gather(*steps)

    async def undo_payment(self, payment: Payment, reason: str) -> None:
        """Void an attempt, and note the money that it took in spite of that: it has to go back."""
        request_id = payment.request_id
        if isinstance(payment, BalancePayment):
            await self._steps.unfreeze_balance(request_id, reason)
            return
        answer = await self._steps.void(request_id, reason)
        if isinstance(answer, PaidAnyway):
            self._paid_late[request_id] = (payment, answer.amount_minor)

    async def refund_late(self) -> None:
        """Give back what came too late: forward steps, which hold up none of the undos."""
        await asyncio.gather(
            *(
                self._refund(payment, amount_minor, key)
                for request_id, (payment, amount_minor) in self._paid_late.items()
                if (key := self._order.step_key("late-refund", request_id)) not in self._refunded
            )
        )

    async def _refund(self, payment: Payment, amount_minor: int, key: str) -> None:
        self._refunded[key] = 0  # Begun; nobody begins it again.

        async def give_back() -> object:
            if isinstance(payment, BalancePayment):
                return await self._steps.credit_balance(payment, key)
            return await self._steps.refund(payment.request_id, amount_minor, key)

        name = f"refund payment {payment.request_id}"
        await self._desk.see_done(name, key, self._unless_refused(give_back))
        self._refunded[key] = amount_minor

    def _unless_refused(
        self, run: Callable[[], Awaitable[object]]
    ) -> Callable[[], Awaitable[object]]:
        """Park what is refused where the flow has no other way: it is never dropped."""

        async def accepted() -> object:
            answer = await run()
            if isinstance(answer, Refusal):
                raise ApplicationError(
                    told(answer, self._order.currency), type=REFUSED, non_retryable=True
                )
            return answer

        return accepted
