"""What the steps of one order are asked: each request, under the key that the plan names."""

from asyncio import Task
from datetime import date, datetime, timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.domain.account import (
        BalanceDebited,
        BalanceUnfrozen,
        CreditAnswer,
        CreditBalance,
        DebitBalance,
        FreezeAnswer,
        FreezeBalance,
        UnfreezeBalance,
    )
    from everycent.domain.inventory import (
        CommitStock,
        ReleaseStock,
        ReserveAnswer,
        ReserveStock,
        StockCommitted,
        StockLine,
        StockReleased,
    )
    from everycent.domain.ledger import (
        Leg,
        PostAnswer,
        PostTransfer,
        ReverseAnswer,
        ReverseTransfer,
    )
    from everycent.domain.order import (
        AddAttempt,
        AttemptAnswer,
        BalancePayment,
        CardPayment,
        CaseSettled,
        CloseOrder,
        Decide,
        Marked,
        MarkOrder,
        OpenAnswer,
        OpenOrder,
        OrderResult,
        OrderStatus,
        Parked,
        ParkStep,
        Payment,
        PlaceOrder,
        SettleCase,
        Verdict,
        WaitsFor,
    )
    from everycent.domain.payment import (
        AuthoriseAnswer,
        AuthorisePayment,
        AwaitCustomer,
        CaptureAnswer,
        CapturePayment,
        CustomerAnswer,
        RefundAnswer,
        RefundPayment,
        VoidAnswer,
        VoidPayment,
    )
    from everycent.domain.points import (
        FreezePoints,
        FreezePointsAnswer,
        GrantPoints,
        PointsGranted,
        PointsRedeemed,
        PointsRestored,
        PointsRevoked,
        PointsUnfrozen,
        RedeemPoints,
        RestorePoints,
        RevokePoints,
        UnfreezePoints,
    )
    from workflows import checkout_plan as plan
    from workflows.place import Place
    from workflows.saga import ParkedStep
    from workflows.steps import Step

REVENUE = "sales:revenue"
PROVIDER_RECEIVABLE = "provider:receivable"
CUSTOMER_BALANCES = "customers:balance"
POINTS_LIABILITY = "points:liability"


class CheckoutSteps:
    """One order's steps. A key is business id + step, so every run of the order makes the same."""

    def __init__(self, order: PlaceOrder) -> None:
        self._order = order
        self._place = Place.of_this_run()
        self.together = self._place.together
        self.opened_on: date = date.min
        self.window_ends_at: datetime = workflow.now()

    @property
    def window_left(self) -> timedelta:
        """How long a step before the decision may take; a second at least."""
        return max(self.window_ends_at - workflow.now(), timedelta(seconds=1))

    def attempt_key(self, request_id: str) -> str:
        """Return the key of a payment attempt."""
        return self._order.step_key("pay", request_id)

    # -- the order's own row

    async def open(self) -> OpenAnswer:
        """Write the order down, or learn how far it has come."""
        return await self._place.start(
            plan.OPEN,
            OpenOrder(
                order=self._order,
                at=workflow.now(),
                driver=workflow.info().workflow_id,
                run=workflow.info().run_id,
            ),
        )

    async def add_attempt(self, payment: Payment) -> AttemptAnswer:
        """Write another payment attempt down before it is made."""
        return await self._place.start(
            plan.ADD_ATTEMPT,
            AddAttempt(payment=payment, **self._of_order()),
            summary=f"note payment {payment.request_id}",
        )

    async def decide(self, wanted: Verdict, pivot_refusal: dict[str, Any] | None) -> Verdict:
        """Move the one decision; the answer is the one that stands."""
        return await self._place.start(
            plan.DECIDE,
            Decide(
                to=wanted.decision,
                run=workflow.info().run_id,
                attempt=wanted.attempt,
                status=wanted.status,
                reason=wanted.reason,
                pivot_refusal=pivot_refusal,
                **self._of_order(),
            ),
            summary=f"decide {wanted.decision}",
        )

    async def mark(self, waits_for: WaitsFor, status: OrderStatus | None = None) -> Marked:
        """Say in the order's row what it waits for."""
        request = MarkOrder(waits_for=waits_for, status=status, **self._of_order())
        return await self._place.start(plan.MARK, request, summary=f"waits for {waits_for}")

    async def close(self, result: OrderResult) -> OrderResult:
        """Store how the order ended."""
        return await self._place.start(
            plan.CLOSE,
            CloseOrder(result=result, **self._of_order()),
            summary=f"close as {result.status}",
        )

    async def park(self, step: ParkedStep, proposals: tuple[str, ...]) -> Parked:
        """Open the step's repair case."""
        return await self._place.start(
            plan.PARK,
            ParkStep(
                case_key=step.key,
                step=step.name,
                error_class=step.error_class,
                error=step.error,
                owner=workflow.info().workflow_id,
                proposals=proposals,
                **self._of_order(),
            ),
            summary=f"park: {step.name}",
        )

    async def settle(self, case_key: str, *, by: str, reason: str, by_hand: bool) -> CaseSettled:
        """Close a repair case."""
        return await self._place.start(
            plan.SETTLE,
            SettleCase(
                case_key=case_key, by=by, reason=reason, by_hand=by_hand, **self._of_order()
            ),
            summary="settle the case",
        )

    # -- stock

    def reserve_stock(self) -> Task[ReserveAnswer]:
        """Try: hold every line."""
        lines = tuple(StockLine(sku=line.sku, units=line.units) for line in self._order.lines)
        return self._place.start(
            plan.HOLD_STOCK,
            ReserveStock(lines=lines, **self._step(plan.HOLD_STOCK)),
            within=self.window_left,
        )

    async def commit_stock(self) -> StockCommitted:
        """Confirm: the held units are sold."""
        return await self._place.start(
            plan.SELL_STOCK,
            CommitStock(**self._step(plan.SELL_STOCK)),
        )

    async def release_stock(self, reason: str) -> StockReleased:
        """Cancel: the held units are free again."""
        return await self._place.start(
            plan.RELEASE_STOCK,
            ReleaseStock(reason=reason, **self._step(plan.RELEASE_STOCK)),
        )

    # -- points

    def freeze_points(self) -> Task[FreezePointsAnswer]:
        """Try: hold the points that pay a part."""
        return self._place.start(
            plan.HOLD_POINTS,
            FreezePoints(
                customer=self._order.customer,
                points=self._order.points,
                **self._step(plan.HOLD_POINTS),
            ),
            within=self.window_left,
        )

    async def redeem_points(self) -> PointsRedeemed:
        """Confirm: the held points are used."""
        return await self._place.start(
            plan.USE_POINTS,
            RedeemPoints(**self._step(plan.USE_POINTS)),
        )

    async def unfreeze_points(self, reason: str) -> PointsUnfrozen:
        """Cancel: the held points are available again."""
        return await self._place.start(
            plan.RELEASE_POINTS,
            UnfreezePoints(reason=reason, **self._step(plan.RELEASE_POINTS)),
        )

    async def earn_points(self) -> PointsGranted:
        """Grant what the order earns."""
        return await self._place.start(
            plan.EARN_POINTS,
            GrantPoints(
                customer=self._order.customer,
                points=self._order.points_earned,
                **self._step(plan.EARN_POINTS),
            ),
        )

    async def revoke_points(self) -> PointsRevoked:
        """Take back what the order had earned."""
        return await self._place.start(
            plan.TAKE_EARNED_POINTS_BACK,
            RevokePoints(
                customer=self._order.customer,
                points=self._order.points_earned,
                **self._step(plan.TAKE_EARNED_POINTS_BACK),
            ),
        )

    async def restore_points(self) -> PointsRestored:
        """Give used points back."""
        return await self._place.start(
            plan.GIVE_POINTS_BACK,
            RestorePoints(
                customer=self._order.customer,
                points=self._order.points,
                **self._step(plan.GIVE_POINTS_BACK),
            ),
        )

    # -- payment by a provider

    def authorise(self, payment: Payment) -> Task[AuthoriseAnswer]:
        """Try: hold the amount on the card, or open the page to pay on."""
        return self._place.start(
            plan.AUTHORISE,
            AuthorisePayment(
                amount_minor=self._order.due_minor,
                currency=self._order.currency,
                method=payment.method,
                card_token=payment.card_token if isinstance(payment, CardPayment) else None,
                **self._step(plan.AUTHORISE, payment.request_id),
            ),
            summary=f"authorise payment {payment.request_id}",
            within=self.window_left,
        )

    def await_customer(self, payment: Payment) -> Task[CustomerAnswer]:
        """Ask the provider until the customer has paid on its page."""
        return self._place.start(
            plan.AWAIT_CUSTOMER,
            AwaitCustomer(**self._step(plan.AWAIT_CUSTOMER, payment.request_id)),
            summary=f"has the customer paid {payment.request_id}?",
        )

    async def capture(self, request_id: str) -> CaptureAnswer:
        """Confirm, the pivot: take the money."""
        return await self._place.start(
            plan.CAPTURE,
            CapturePayment(**self._step(plan.CAPTURE, request_id)),
        )

    async def void(self, request_id: str, reason: str) -> VoidAnswer:
        """Cancel: this attempt must never take money."""
        return await self._place.start(
            plan.VOID,
            VoidPayment(reason=reason, **self._step(plan.VOID, request_id)),
            summary=f"void payment {request_id}",
        )

    async def refund(self, request_id: str, amount_minor: int, refund_key: str) -> RefundAnswer:
        """Give captured money back."""
        return await self._place.start(
            plan.REFUND,
            RefundPayment(
                payment_key=self.attempt_key(request_id),
                amount_minor=amount_minor,
                currency=self._order.currency,
                **{**self._step(plan.REFUND), "key": refund_key},
            ),
            summary=f"refund payment {request_id}",
        )

    # -- payment from the stored balance

    def freeze_balance(self, payment: BalancePayment) -> Task[FreezeAnswer]:
        """Try: hold the amount on the customer's account."""
        return self._place.start(
            plan.HOLD_BALANCE,
            FreezeBalance(
                account=payment.account,
                currency=self._order.currency,
                amount_minor=self._order.due_minor,
                **self._step(plan.HOLD_BALANCE, payment.request_id),
            ),
            within=self.window_left,
        )

    async def debit_balance(self, request_id: str) -> BalanceDebited:
        """Confirm: the held amount is ours."""
        return await self._place.start(
            plan.DEBIT_BALANCE,
            DebitBalance(**self._step(plan.DEBIT_BALANCE, request_id)),
        )

    async def unfreeze_balance(self, request_id: str, reason: str) -> BalanceUnfrozen:
        """Cancel: the held amount is available again."""
        return await self._place.start(
            plan.RELEASE_BALANCE,
            UnfreezeBalance(reason=reason, **self._step(plan.RELEASE_BALANCE, request_id)),
        )

    async def credit_balance(self, payment: BalancePayment, refund_key: str) -> CreditAnswer:
        """Give debited money back to the account."""
        return await self._place.start(
            plan.CREDIT_BALANCE,
            CreditBalance(
                account=payment.account,
                currency=self._order.currency,
                amount_minor=self._order.due_minor,
                **{**self._step(plan.CREDIT_BALANCE), "key": refund_key},
            ),
        )

    # -- ledger

    async def post_ledger(self, payment: Payment | None) -> PostAnswer:
        """Book the sale: what each tender brought against the revenue."""
        order = self._order
        money = CUSTOMER_BALANCES if isinstance(payment, BalancePayment) else PROVIDER_RECEIVABLE
        legs = (
            (money, order.due_minor),
            (POINTS_LIABILITY, order.points),
            (REVENUE, -order.total_minor),
        )
        entries = tuple(
            Leg(account=account, amount_minor=minor, currency=order.currency)
            for account, minor in legs
            if minor
        )
        return await self._place.start(
            plan.BOOK_SALE,
            PostTransfer(entries=entries, **self._step(plan.BOOK_SALE)),
        )

    async def reverse_ledger(self) -> ReverseAnswer:
        """Book the sale back."""
        return await self._place.start(
            plan.REVERSE_SALE,
            ReverseTransfer(
                original_key=self._order.step_key("ledger"), **self._step(plan.REVERSE_SALE)
            ),
        )

    def _of_order(self) -> dict[str, Any]:
        order = self._order
        return {"tenant": order.tenant, "order_id": order.order_id, "at": workflow.now()}

    def _step(self, step: Step[Any, Any], request: str | None = None) -> dict[str, Any]:
        return {
            "key": self._order.step_key(step.key, request),
            "at": workflow.now(),
            "opened_on": self.opened_on,
        }
