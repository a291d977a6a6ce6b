"""What each service does about the events of a choreographed order; its steps are the saga's."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from activities.payment import PaymentActivities
from activities.reactions import Answers, Asked, OrderReaction, Reactions, Step
from everycent.database import account, inventory, ledger, points
from everycent.database.engine import Database
from everycent.domain import choreography as flow
from everycent.domain import order_steps as ask
from everycent.domain.events import (
    ORDER_ABORTING,
    ORDER_COMMITTING,
    ORDER_OPENED,
    ORDER_PAID,
    ORDER_REFUNDING,
    PAYMENT_NAMED,
    POINTS_HELD,
    STOCK_HELD,
    EventType,
    OrderTold,
)
from everycent.domain.order import Payment
from everycent.domain.payment import PaidAnyway, Refunded

Clock = Callable[[], datetime]
Ask = Callable[[OrderTold, datetime], Any]
AskPayment = Callable[[OrderTold, Any, datetime], Any]
Which = Callable[[OrderTold], Sequence[Payment]]


def inventory_reactions(database: Database, now: Clock) -> Reactions:
    """Hold, sell and release stock."""

    def reaction(*steps: Step, passes_on: EventType | None = None) -> OrderReaction:
        return OrderReaction("inventory", database, steps, now=now, passes_on=passes_on)

    hold = Step(flow.HOLD_STOCK, _one(ask.hold_stock), inventory.reserve_stock, holds=True)
    sell = Step(flow.SELL_STOCK, _one(ask.sell_stock), inventory.commit_stock, may_refuse=True)
    release = Step(flow.RELEASE_STOCK, _one(ask.release_stock), inventory.release_stock)
    return {
        ORDER_OPENED.name: reaction(hold, passes_on=STOCK_HELD),
        ORDER_PAID.name: reaction(sell),
        ORDER_ABORTING.name: reaction(release),
    }


def points_reactions(database: Database, now: Clock) -> Reactions:
    """Hold, use, release, earn and give back points."""

    def reaction(*steps: Step, passes_on: EventType | None = None) -> OrderReaction:
        return OrderReaction("points", database, steps, now=now, passes_on=passes_on)

    hold = Step(flow.HOLD_POINTS, _one(ask.hold_points), points.freeze_points, holds=True)
    use = Step(flow.USE_POINTS, _if_used(ask.use_points), points.redeem_points)
    release = Step(flow.RELEASE_POINTS, _one(ask.release_points), points.unfreeze_points)
    earn = Step(flow.EARN_POINTS, _if_earned(ask.earn_points), points.grant_points)
    restore = Step(flow.RESTORE, _if_used(ask.restore_points), points.restore_points)
    revoke = Step(flow.REVOKE, _if_earned(ask.revoke_points), points.revoke_points)
    return {
        STOCK_HELD.name: reaction(hold, passes_on=POINTS_HELD),
        ORDER_PAID.name: reaction(use, earn),
        ORDER_ABORTING.name: reaction(release),
        ORDER_REFUNDING.name: reaction(restore, revoke),
    }


def account_reactions(database: Database, now: Clock) -> Reactions:
    """Hold, take, release and give back a stored balance."""

    def reaction(*steps: Step) -> OrderReaction:
        return OrderReaction("account", database, steps, now=now)

    hold = Step(
        flow.HOLD_PAYMENT, _paid(ask.hold_balance, _chosen, "balance"), account.freeze_balance,
        holds=True,
    )  # fmt: skip
    debit = Step(flow.DEBIT, _paid(ask.debit_balance, _chosen, "balance"), account.debit_balance)
    release = Step(flow.VOID, _paid(ask.release_balance, _all, "balance"), account.unfreeze_balance)
    drop = Step(flow.VOID, _paid(ask.release_balance, _others, "balance"), account.unfreeze_balance)
    credit = Step(flow.REFUND, _paid(ask.credit_balance, _chosen, "balance"),
                  account.credit_balance, gave=_credited)  # fmt: skip
    holding = reaction(hold)
    return {
        STOCK_HELD.name: holding,
        POINTS_HELD.name: holding,
        PAYMENT_NAMED.name: holding,
        ORDER_PAID.name: reaction(drop, debit),
        ORDER_ABORTING.name: reaction(release),
        ORDER_REFUNDING.name: reaction(credit),
    }


def payment_reactions(database: Database, payments: PaymentActivities, now: Clock) -> Reactions:
    """Authorise, capture, void and refund through the provider, each in two transactions."""

    def reaction(*steps: Step) -> OrderReaction:
        return OrderReaction("payment", database, steps, now=now)

    hold = Step(
        flow.HOLD_PAYMENT, _paid(ask.authorise, _chosen, "card"), talk=payments.authorise_all,
        holds=True,
    )  # fmt: skip
    take = Step(
        flow.CAPTURE, _paid(ask.capture, _chosen, "card"), talk=payments.capture_all,
        may_refuse=True,
    )  # fmt: skip
    void = Step(flow.VOID, _paid(ask.void, _all, "card"), talk=payments.void_all, gave=_taken)
    drop = Step(flow.VOID, _paid(ask.void, _others, "card"), talk=payments.void_all, gave=_taken)
    late = Step(flow.LATE_REFUND, _late, talk=payments.refund_all, reports=False)
    give_back = Step(
        flow.REFUND, _paid(ask.refund, _chosen, "card"), talk=payments.refund_all, gave=_given_back
    )
    holding = reaction(hold)
    return {
        STOCK_HELD.name: holding,
        POINTS_HELD.name: holding,
        PAYMENT_NAMED.name: holding,
        ORDER_COMMITTING.name: reaction(take),
        ORDER_PAID.name: reaction(drop, late),
        ORDER_ABORTING.name: reaction(void, late),
        ORDER_REFUNDING.name: reaction(give_back),
    }


def ledger_reactions(database: Database, now: Clock) -> Reactions:
    """Book a sale, and book it back."""
    book = Step(flow.BOOK_SALE, _one(ask.book_sale), ledger.post_transfer)
    reverse = Step(flow.REVERSE, _one(ask.reverse_sale), ledger.reverse_transfer)
    return {
        ORDER_PAID.name: OrderReaction("ledger", database, [book], now=now),
        ORDER_REFUNDING.name: OrderReaction("ledger", database, [reverse], now=now),
    }


def _one(request: Ask) -> Callable[[OrderTold, datetime, Answers], Asked]:
    return lambda told, at, _: [(None, request(told, at))]


def _if_used(request: Ask) -> Callable[[OrderTold, datetime, Answers], Asked]:
    return lambda told, at, _: [(None, request(told, at))] if told.order.points else []


def _if_earned(request: Ask) -> Callable[[OrderTold, datetime, Answers], Asked]:
    return lambda told, at, _: [(None, request(told, at))] if told.order.points_earned else []


def _paid(
    request: AskPayment, which: Which, method: str
) -> Callable[[OrderTold, datetime, Answers], Asked]:
    """Ask for a step of those payments that are of this service."""
    return lambda told, at, _: [
        (payment.request_id, request(told, payment, at))
        for payment in which(told)
        if payment.method == method
    ]


def _chosen(told: OrderTold) -> Sequence[Payment]:
    payment = told.payment()
    return [] if payment is None else [payment]


def _all(told: OrderTold) -> Sequence[Payment]:
    return told.attempts


def _others(told: OrderTold) -> Sequence[Payment]:
    return [payment for payment in told.attempts if payment.request_id != told.attempt]


def _late(told: OrderTold, at: datetime, answers: Answers) -> Asked:
    return ask.late_refunds(told, at, told.attempts, answers, flow.VOID)


def _taken(answer: object) -> tuple[int, int]:
    """Return what a voided payment took all the same: it goes back in the same reaction."""
    minor = answer.amount_minor if isinstance(answer, PaidAnyway) else 0
    return minor, minor


def _given_back(answer: object) -> tuple[int, int]:
    return 0, answer.amount_minor if isinstance(answer, Refunded) else 0


def _credited(answer: Any) -> tuple[int, int]:
    return 0, int(answer.amount_minor)
