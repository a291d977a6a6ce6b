"""The requests of an order's steps as its participants make them: the saga's keys and fields.

A step of an order is the same request whoever asks for it, or its fence would refuse the second;
`test_a_participant_asks_for_what_the_saga_asks_for` holds both to it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from everycent.domain.account import CreditBalance, DebitBalance, FreezeBalance, UnfreezeBalance
from everycent.domain.events import OrderTold
from everycent.domain.inventory import CommitStock, ReleaseStock, ReserveStock, StockLine
from everycent.domain.ledger import Leg, PostTransfer, ReverseTransfer
from everycent.domain.order import BalancePayment, CardPayment, Payment
from everycent.domain.payment import (
    AuthorisePayment,
    CapturePayment,
    PaidAnyway,
    RefundPayment,
    VoidPayment,
)
from everycent.domain.points import (
    FreezePoints,
    GrantPoints,
    RedeemPoints,
    RestorePoints,
    RevokePoints,
    UnfreezePoints,
)

REVENUE = "sales:revenue"
PROVIDER_RECEIVABLE = "provider:receivable"
CUSTOMER_BALANCES = "customers:balance"
POINTS_LIABILITY = "points:liability"

Answers = Mapping[tuple[str, str | None], object]  # By operation and request id.


def hold_stock(told: OrderTold, at: datetime) -> ReserveStock:
    """Try: hold every line."""
    lines = tuple(StockLine(sku=line.sku, units=line.units) for line in told.order.lines)
    return ReserveStock(lines=lines, **_step(told, at, "reserve"))


def sell_stock(told: OrderTold, at: datetime) -> CommitStock:
    """Confirm: the held units are sold."""
    return CommitStock(**_step(told, at, "reserve"))


def release_stock(told: OrderTold, at: datetime) -> ReleaseStock:
    """Cancel: the held units are free again."""
    return ReleaseStock(reason=told.reason, **_step(told, at, "reserve"))


def hold_points(told: OrderTold, at: datetime) -> FreezePoints:
    """Try: hold the points that pay a part."""
    order = told.order
    return FreezePoints(customer=order.customer, points=order.points, **_step(told, at, "points"))


def use_points(told: OrderTold, at: datetime) -> RedeemPoints:
    """Confirm: the held points are used."""
    return RedeemPoints(**_step(told, at, "points"))


def release_points(told: OrderTold, at: datetime) -> UnfreezePoints:
    """Cancel: the held points are available again."""
    return UnfreezePoints(reason=told.reason, **_step(told, at, "points"))


def earn_points(told: OrderTold, at: datetime) -> GrantPoints:
    """Grant what the order earns."""
    order = told.order
    return GrantPoints(
        customer=order.customer, points=order.points_earned, **_step(told, at, "earn")
    )


def revoke_points(told: OrderTold, at: datetime) -> RevokePoints:
    """Take back what the order had earned."""
    order = told.order
    return RevokePoints(
        customer=order.customer, points=order.points_earned, **_step(told, at, "unearn")
    )


def restore_points(told: OrderTold, at: datetime) -> RestorePoints:
    """Give used points back."""
    order = told.order
    return RestorePoints(
        customer=order.customer, points=order.points, **_step(told, at, "points-refund")
    )


def hold_balance(told: OrderTold, payment: BalancePayment, at: datetime) -> FreezeBalance:
    """Try: hold the amount on the customer's account."""
    return FreezeBalance(
        account=payment.account,
        currency=told.order.currency,
        amount_minor=told.order.due_minor,
        **_step(told, at, "pay", payment.request_id),
    )


def debit_balance(told: OrderTold, payment: BalancePayment, at: datetime) -> DebitBalance:
    """Confirm: the held amount is taken."""
    return DebitBalance(**_step(told, at, "pay", payment.request_id))


def release_balance(told: OrderTold, payment: BalancePayment, at: datetime) -> UnfreezeBalance:
    """Cancel: the held amount is available again."""
    return UnfreezeBalance(reason=told.reason, **_step(told, at, "pay", payment.request_id))


def credit_balance(told: OrderTold, payment: BalancePayment, at: datetime) -> CreditBalance:
    """Give debited money back to the account."""
    return CreditBalance(
        account=payment.account,
        currency=told.order.currency,
        amount_minor=told.order.due_minor,
        **_step(told, at, "full-refund"),
    )


def authorise(told: OrderTold, payment: Payment, at: datetime) -> AuthorisePayment:
    """Try: hold the amount on the card."""
    assert payment.method != "balance", f"{payment.request_id} is no payment by a provider"
    return AuthorisePayment(
        amount_minor=told.order.due_minor,
        currency=told.order.currency,
        method=payment.method,
        card_token=payment.card_token if isinstance(payment, CardPayment) else None,
        **_step(told, at, "pay", payment.request_id),
    )


def capture(told: OrderTold, payment: Payment, at: datetime) -> CapturePayment:
    """Confirm, the pivot: take the money."""
    return CapturePayment(**_step(told, at, "pay", payment.request_id))


def void(told: OrderTold, payment: Payment, at: datetime) -> VoidPayment:
    """Cancel: this attempt must never take money."""
    return VoidPayment(reason=told.reason, **_step(told, at, "pay", payment.request_id))


def refund(told: OrderTold, payment: Payment, at: datetime) -> RefundPayment:
    """Give the captured money of an order back that cannot be fulfilled."""
    return _refund(told, payment, told.order.due_minor, _step(told, at, "full-refund"))


def late_refunds(
    told: OrderTold, at: datetime, payments: Sequence[Payment], answers: Answers, operation: str
) -> list[tuple[str | None, RefundPayment]]:
    """Give back what payments took in spite of their void: the answers of that operation tell."""
    return [
        (p.request_id, _refund(told, p, answer.amount_minor, _late(told, at, p)))
        for p in payments
        if isinstance(answer := answers.get((operation, p.request_id)), PaidAnyway)
    ]


def book_sale(told: OrderTold, at: datetime) -> PostTransfer:
    """Book the sale: what each tender brought against the revenue."""
    order = told.order
    money = CUSTOMER_BALANCES if isinstance(told.payment(), BalancePayment) else PROVIDER_RECEIVABLE
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
    return PostTransfer(entries=entries, **_step(told, at, "ledger"))


def reverse_sale(told: OrderTold, at: datetime) -> ReverseTransfer:
    """Book the sale back."""
    original = told.order.step_key("ledger")
    return ReverseTransfer(original_key=original, **_step(told, at, "ledger-reversal"))


def _refund(
    told: OrderTold, payment: Payment, amount_minor: int, step: dict[str, Any]
) -> RefundPayment:
    return RefundPayment(
        payment_key=told.order.step_key("pay", payment.request_id),
        amount_minor=amount_minor,
        currency=told.order.currency,
        **step,
    )


def _late(told: OrderTold, at: datetime, payment: Payment) -> dict[str, Any]:
    return _step(told, at, "late-refund", payment.request_id)


def _step(told: OrderTold, at: datetime, step: str, request: str | None = None) -> dict[str, Any]:
    return {
        "key": told.order.step_key(step, request),
        "at": at,
        "opened_on": told.opened_on,
    }
