"""The steps of a checkout: which activity, under which key, in which lane, with which patience."""

from asyncio import Task
from datetime import date, datetime, timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.account import AccountActivities
    from activities.inventory import InventoryActivities
    from activities.ledger import LedgerActivities
    from activities.order import OrderActivities
    from activities.payment import PaymentActivities
    from activities.points import PointsActivities
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
    from workers.queues import finishes, tries
    from workflows.options import (
        DATABASE_MUST,
        DATABASE_STEP,
        POLL_STEP,
        PROVIDER_MUST,
        PROVIDER_STEP,
        StepOptions,
    )
    from workflows.place import Place
    from workflows.saga import ParkedStep

REVENUE = "sales:revenue"
PROVIDER_RECEIVABLE = "provider:receivable"
CUSTOMER_BALANCES = "customers:balance"
POINTS_LIABILITY = "points:liability"


class CheckoutSteps:
    """One order's steps. A key is business id + step, so every run of the order makes the same."""

    def __init__(self, order: PlaceOrder) -> None:
        self._order = order
        self._place = Place.of_this_run()
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
        return await self._place.database_step(
            OrderActivities.open_order,
            OpenOrder(
                order=self._order,
                at=workflow.now(),
                driver=workflow.info().workflow_id,
                run=workflow.info().run_id,
            ),
            queue=tries("order"),
            summary="open the order",
            options=DATABASE_STEP,
        )

    async def add_attempt(self, payment: Payment) -> AttemptAnswer:
        """Write another payment attempt down before it is made."""
        return await self._place.database_step(
            OrderActivities.add_attempt,
            AddAttempt(payment=payment, **self._of_order()),
            queue=tries("order"),
            summary=f"note payment {payment.request_id}",
            options=DATABASE_STEP,
        )

    async def decide(self, wanted: Verdict, pivot_refusal: dict[str, Any] | None) -> Verdict:
        """Move the one decision; the answer is the one that stands."""
        return await self._place.database_step(
            OrderActivities.decide,
            Decide(
                to=wanted.decision,
                run=workflow.info().run_id,
                attempt=wanted.attempt,
                status=wanted.status,
                reason=wanted.reason,
                pivot_refusal=pivot_refusal,
                **self._of_order(),
            ),
            queue=finishes("order"),
            summary=f"decide {wanted.decision}",
            options=DATABASE_MUST,
        )

    async def mark(self, waits_for: WaitsFor, status: OrderStatus | None = None) -> Marked:
        """Say in the order's row what it waits for."""
        return await self._place.database_step(
            OrderActivities.mark_order,
            MarkOrder(waits_for=waits_for, status=status, **self._of_order()),
            queue=finishes("order"),
            summary=f"waits for {waits_for}",
            options=DATABASE_STEP,
        )

    async def close(self, result: OrderResult) -> OrderResult:
        """Store how the order ended."""
        return await self._place.database_step(
            OrderActivities.close_order,
            CloseOrder(result=result, **self._of_order()),
            queue=finishes("order"),
            summary=f"close as {result.status}",
            options=DATABASE_MUST,
        )

    async def park(self, step: ParkedStep, proposals: tuple[str, ...]) -> Parked:
        """Open the step's repair case."""
        return await self._place.database_step(
            OrderActivities.park_step,
            ParkStep(
                case_key=step.key,
                step=step.name,
                error_class=step.error_class,
                error=step.error,
                owner=workflow.info().workflow_id,
                proposals=proposals,
                **self._of_order(),
            ),
            queue=finishes("order"),
            summary=f"park: {step.name}",
            options=DATABASE_STEP,
        )

    async def settle(self, case_key: str, *, by: str, reason: str, by_hand: bool) -> CaseSettled:
        """Close a repair case."""
        return await self._place.database_step(
            OrderActivities.settle_case,
            SettleCase(
                case_key=case_key, by=by, reason=reason, by_hand=by_hand, **self._of_order()
            ),
            queue=finishes("order"),
            summary="settle the case",
            options=DATABASE_STEP,
        )

    # -- stock

    def reserve_stock(self) -> Task[ReserveAnswer]:
        """Try: hold every line."""
        lines = tuple(StockLine(sku=line.sku, units=line.units) for line in self._order.lines)
        return self._place.database_step(
            InventoryActivities.reserve_stock,
            ReserveStock(lines=lines, **self._step("reserve")),
            queue=tries("inventory"),
            summary="hold the stock",
            options=self._within_window(DATABASE_STEP),
        )

    async def commit_stock(self) -> StockCommitted:
        """Confirm: the held units are sold."""
        return await self._place.database_step(
            InventoryActivities.commit_stock,
            CommitStock(**self._step("reserve")),
            queue=finishes("inventory"),
            summary="sell the stock",
            options=DATABASE_MUST,
        )

    async def release_stock(self, reason: str) -> StockReleased:
        """Cancel: the held units are free again."""
        return await self._place.database_step(
            InventoryActivities.release_stock,
            ReleaseStock(reason=reason, **self._step("reserve")),
            queue=finishes("inventory"),
            summary="release the stock",
            options=DATABASE_MUST,
        )

    # -- points

    def freeze_points(self) -> Task[FreezePointsAnswer]:
        """Try: hold the points that pay a part."""
        return self._place.database_step(
            PointsActivities.freeze_points,
            FreezePoints(
                customer=self._order.customer, points=self._order.points, **self._step("points")
            ),
            queue=tries("points"),
            summary="hold the points",
            options=self._within_window(DATABASE_STEP),
        )

    async def redeem_points(self) -> PointsRedeemed:
        """Confirm: the held points are used."""
        return await self._place.database_step(
            PointsActivities.redeem_points,
            RedeemPoints(**self._step("points")),
            queue=finishes("points"),
            summary="use the points",
            options=DATABASE_MUST,
        )

    async def unfreeze_points(self, reason: str) -> PointsUnfrozen:
        """Cancel: the held points are available again."""
        return await self._place.database_step(
            PointsActivities.unfreeze_points,
            UnfreezePoints(reason=reason, **self._step("points")),
            queue=finishes("points"),
            summary="release the points",
            options=DATABASE_MUST,
        )

    async def earn_points(self) -> PointsGranted:
        """Grant what the order earns."""
        return await self._place.database_step(
            PointsActivities.grant_points,
            GrantPoints(
                customer=self._order.customer,
                points=self._order.points_earned,
                **self._step("earn"),
            ),
            queue=finishes("points"),
            summary="earn points",
            options=DATABASE_MUST,
        )

    async def revoke_points(self) -> PointsRevoked:
        """Take back what the order had earned."""
        return await self._place.database_step(
            PointsActivities.revoke_points,
            RevokePoints(
                customer=self._order.customer,
                points=self._order.points_earned,
                **self._step("unearn"),
            ),
            queue=finishes("points"),
            summary="take earned points back",
            options=DATABASE_MUST,
        )

    async def restore_points(self) -> PointsRestored:
        """Give used points back."""
        return await self._place.database_step(
            PointsActivities.restore_points,
            RestorePoints(
                customer=self._order.customer,
                points=self._order.points,
                **self._step("points-refund"),
            ),
            queue=finishes("points"),
            summary="give used points back",
            options=DATABASE_MUST,
        )

    # -- payment by a provider

    def authorise(self, payment: Payment) -> Task[AuthoriseAnswer]:
        """Try: hold the amount on the card, or open the page to pay on."""
        return self._place.provider_step(
            PaymentActivities.authorise,
            AuthorisePayment(
                amount_minor=self._order.due_minor,
                currency=self._order.currency,
                method=payment.method,
                card_token=payment.card_token if isinstance(payment, CardPayment) else None,
                **self._step("pay", payment.request_id),
            ),
            queue=tries("payment"),
            summary=f"authorise payment {payment.request_id}",
            options=self._within_window(PROVIDER_STEP),
        )

    def await_customer(self, payment: Payment) -> Task[CustomerAnswer]:
        """Ask the provider until the customer has paid on its page."""
        return self._place.provider_step(
            PaymentActivities.await_customer,
            AwaitCustomer(**self._step("pay", payment.request_id)),
            queue=tries("payment"),
            summary=f"has the customer paid {payment.request_id}?",
            options=POLL_STEP,
        )

    async def capture(self, request_id: str) -> CaptureAnswer:
        """Confirm, the pivot: take the money."""
        return await self._place.provider_step(
            PaymentActivities.capture,
            CapturePayment(**self._step("pay", request_id)),
            queue=finishes("payment"),
            summary="capture the payment",
            options=PROVIDER_MUST,
        )

    async def void(self, request_id: str, reason: str) -> VoidAnswer:
        """Cancel: this attempt must never take money."""
        return await self._place.provider_step(
            PaymentActivities.void,
            VoidPayment(reason=reason, **self._step("pay", request_id)),
            queue=finishes("payment"),
            summary=f"void payment {request_id}",
            options=PROVIDER_MUST,
        )

    async def refund(self, request_id: str, amount_minor: int, refund_key: str) -> RefundAnswer:
        """Give captured money back."""
        return await self._place.provider_step(
            PaymentActivities.refund,
            RefundPayment(
                payment_key=self.attempt_key(request_id),
                amount_minor=amount_minor,
                currency=self._order.currency,
                **{**self._step("refund"), "key": refund_key},
            ),
            queue=finishes("payment"),
            summary=f"refund payment {request_id}",
            options=PROVIDER_MUST,
        )

    # -- payment from the stored balance

    def freeze_balance(self, payment: BalancePayment) -> Task[FreezeAnswer]:
        """Try: hold the amount on the customer's account."""
        return self._place.database_step(
            AccountActivities.freeze_balance,
            FreezeBalance(
                account=payment.account,
                currency=self._order.currency,
                amount_minor=self._order.due_minor,
                **self._step("pay", payment.request_id),
            ),
            queue=tries("account"),
            summary="hold the balance",
            options=self._within_window(DATABASE_STEP),
        )

    async def debit_balance(self, request_id: str) -> BalanceDebited:
        """Confirm: the held amount is ours."""
        return await self._place.database_step(
            AccountActivities.debit_balance,
            DebitBalance(**self._step("pay", request_id)),
            queue=finishes("account"),
            summary="debit the balance",
            options=DATABASE_MUST,
        )

    async def unfreeze_balance(self, request_id: str, reason: str) -> BalanceUnfrozen:
        """Cancel: the held amount is available again."""
        return await self._place.database_step(
            AccountActivities.unfreeze_balance,
            UnfreezeBalance(reason=reason, **self._step("pay", request_id)),
            queue=finishes("account"),
            summary="release the balance",
            options=DATABASE_MUST,
        )

    async def credit_balance(self, payment: BalancePayment, refund_key: str) -> CreditAnswer:
        """Give debited money back to the account."""
        return await self._place.database_step(
            AccountActivities.credit_balance,
            CreditBalance(
                account=payment.account,
                currency=self._order.currency,
                amount_minor=self._order.due_minor,
                **{**self._step("refund"), "key": refund_key},
            ),
            queue=finishes("account"),
            summary="refund to the balance",
            options=DATABASE_MUST,
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
        return await self._place.database_step(
            LedgerActivities.post_transfer,
            PostTransfer(entries=entries, **self._step("ledger")),
            queue=finishes("ledger"),
            summary="book the sale",
            options=DATABASE_MUST,
        )

    async def reverse_ledger(self) -> ReverseAnswer:
        """Book the sale back."""
        return await self._place.database_step(
            LedgerActivities.reverse_transfer,
            ReverseTransfer(
                original_key=self._order.step_key("ledger"), **self._step("ledger-reversal")
            ),
            queue=finishes("ledger"),
            summary="book the sale back",
            options=DATABASE_MUST,
        )

    def _of_order(self) -> dict[str, Any]:
        order = self._order
        return {"tenant": order.tenant, "order_id": order.order_id, "at": workflow.now()}

    def _step(self, step: str, request: str | None = None) -> dict[str, Any]:
        return {
            "key": self._order.step_key(step, request),
            "at": workflow.now(),
            "opened_on": self.opened_on,
        }

    def _within_window(self, options: StepOptions) -> StepOptions:
        return {**options, "schedule_to_close_timeout": self.window_left}
