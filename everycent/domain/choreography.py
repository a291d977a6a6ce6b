"""The choreographed checkout: which service reacts to what, and what the order's own row decides.

order.opened -> stock.held -> points.held -> the payment is held -> COMMITTING
  by card:  order.committing -> captured, the pivot -> order.paid
  else:     the decision is the pivot            -> order.paid
order.paid -> sold | used | debited | booked | earned, each reported -> COMMITTED
refused, cancelled, window over: ABORTING, order.aborting -> undone, each reported -> ABORTED
paid, but the stock is gone: order.refunding -> given back, each reported -> COMMITTED, REFUNDED

Nobody leads: every service knows who comes after it, and the order service only writes its decision
and closes when all have reported. Steps, keys and requests are those of the saga.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from everycent.domain.events import (
    ORDER_ABORTING,
    ORDER_COMMITTING,
    ORDER_PAID,
    ORDER_REFUNDING,
    EventType,
    OrderTold,
    StepReported,
    event_of,
)
from everycent.domain.messaging import Event, inboxes
from everycent.domain.order import (
    MAX_ATTEMPTS,
    BalancePayment,
    Decision,
    OpenedOrder,
    OrderResult,
    OrderStatus,
    Payment,
    PlaceOrder,
    RedirectPayment,
    Verdict,
)
from everycent.errors import InvalidRequest

DRIVER: Final = "choreographed/"
RUN: Final = "choreographed"

HOLD_STOCK, HOLD_POINTS, HOLD_PAYMENT = "hold stock", "hold points", "hold payment"
CAPTURE, SELL_STOCK, USE_POINTS = "capture payment", "commit stock", "use points"
EARN_POINTS, DEBIT, BOOK_SALE = "earn points", "debit balance", "post ledger"
RELEASE_STOCK, RELEASE_POINTS, VOID = "release stock", "release points", "void payment"
REFUND, RESTORE, REVOKE = "refund payment", "restore points", "revoke points"
REVERSE, LATE_REFUND = "reverse ledger", "refund late payment"

# What an order's own row is told next about depends on these; the others are only counted.
TURNS: Final = (CAPTURE, SELL_STOCK)

GONE = "the stock was gone after the payment: refunded"
Report = tuple[str, str | None]  # An operation, and the request id of a repeated one.


def driver_of(order: PlaceOrder) -> str:
    """Return who drives a choreographed order: its messages, no workflow."""
    return f"{DRIVER}{order.tenant}/{order.order_id}"


def check_can_be_choreographed(order: PlaceOrder) -> None:
    """Refuse at the door what this mode does not have. Raises InvalidRequest."""
    if isinstance(order.payment, RedirectPayment) and order.due_minor:
        raise InvalidRequest(
            "a choreographed order is paid by card, balance or points: nobody asks the provider's"
            " page for it; use the mode saga"
        )


def payer(payment: Payment) -> str:
    """Return the service that holds and takes this payment."""
    return "account" if isinstance(payment, BalancePayment) else "payment"


def holders(order: PlaceOrder) -> tuple[str, ...]:
    """Return the services that hold something for an order, in the order in which they do."""
    points = ("points",) if order.points else ()
    paid = (payer(order.payment),) if order.payment is not None and order.due_minor else ()
    return ("inventory", *points, *paid)


def after(service: str, order: PlaceOrder) -> str:
    """Return who reacts to what this service has held: the next holder, or the order itself."""
    chain = (*holders(order), "order")
    return chain[chain.index(service) + 1]


@dataclass(frozen=True)
class Standing:
    """An order as its own service knows it."""

    order: PlaceOrder
    opened: OpenedOrder
    reports: Mapping[Report, StepReported]

    @property
    def verdict(self) -> Verdict:
        """The decision as it stands."""
        return self.opened.verdict

    @property
    def chosen(self) -> Payment | None:
        """The payment that the decision names."""
        named = (p for p in self.opened.attempts if p.request_id == self.verdict.attempt)
        return next(named, None)

    def told(self) -> OrderTold:
        """Return what participants are told about it."""
        return OrderTold(
            order=self.order,
            opened_on=self.opened.opened_on,
            window_ends_at=self.opened.window_ends_at,
            attempts=self.opened.attempts,
            attempt=self.verdict.attempt,
            status=self.verdict.status,
            reason=self.verdict.reason,
        )


@dataclass(frozen=True)
class Wanted:
    """A decision that a report asks for; with the pivot's refusal, if it takes a commit back."""

    verdict: Verdict
    pivot_refusal: dict[str, object] | None = None


def decision_after(standing: Standing, report: StepReported) -> Wanted | None:
    """Say which decision follows from a report, if any."""
    if standing.verdict.decision is Decision.OPEN:
        return _while_open(standing, report)
    captures = standing.verdict.decision is Decision.COMMITTING and report.operation == CAPTURE
    if captures and report.refused:
        rejected = Verdict(
            decision=Decision.ABORTING,
            attempt=report.request,
            status=OrderStatus.REJECTED,
            reason=report.reason,
        )
        return Wanted(rejected, report.answer)
    return None


def _while_open(standing: Standing, report: StepReported) -> Wanted | None:
    if report.operation not in (HOLD_STOCK, HOLD_POINTS, HOLD_PAYMENT):
        return None
    if not report.refused:
        return Wanted(Verdict(decision=Decision.COMMITTING, attempt=report.request))
    reason = report.reason
    if report.operation == HOLD_PAYMENT:
        refused = [r for r in standing.reports.values() if r.operation == HOLD_PAYMENT]
        if len(refused) < MAX_ATTEMPTS:
            return None
        reason = f"{MAX_ATTEMPTS} payments refused, last: {reason}"
    return Wanted(Verdict(decision=Decision.ABORTING, status=OrderStatus.REJECTED, reason=reason))


def waits_for_payment(standing: Standing) -> bool:
    """Tell whether every payment that the customer has named was refused."""
    refused = {r.request for r in standing.reports.values() if r.operation == HOLD_PAYMENT}
    named = {payment.request_id for payment in standing.opened.attempts}
    return standing.verdict.decision is Decision.OPEN and bool(named) and named <= refused


def announced(standing: Standing, at: datetime) -> list[Event]:
    """Return what has to be told as an order stands; the same again is known by its keys."""
    decision = standing.verdict.decision
    if decision is Decision.ABORTING:
        return [_event(ORDER_ABORTING, standing, at, _undoers(standing))]
    if decision is not Decision.COMMITTING:
        return []
    chosen = standing.chosen
    by_card = chosen is not None and not isinstance(chosen, BalancePayment)
    if by_card and (CAPTURE, standing.verdict.attempt) not in standing.reports:
        return [_event(ORDER_COMMITTING, standing, at, ("payment",))]
    if (SELL_STOCK, None) in standing.reports:
        gone = _is_gone(standing)
        return [_event(ORDER_REFUNDING, standing, at, _refunders(standing))] if gone else []
    return [_event(ORDER_PAID, standing, at, _confirmers(standing))]


def expected(standing: Standing) -> set[Report]:
    """Return the reports without which a decided order is not over."""
    order, attempts = standing.order, standing.opened.attempts
    if standing.verdict.decision is Decision.ABORTING:
        points = {(RELEASE_POINTS, None)} if order.points else set()
        return {(RELEASE_STOCK, None), *points, *((VOID, p.request_id) for p in attempts)}
    wanted: set[Report] = {(SELL_STOCK, None)}
    chosen = standing.chosen
    if chosen is not None:
        takes = DEBIT if isinstance(chosen, BalancePayment) else CAPTURE
        wanted.add((takes, chosen.request_id))
    wanted |= {(USE_POINTS, None)} if order.points else set()
    wanted |= {(EARN_POINTS, None)} if order.points_earned else set()
    wanted |= {(BOOK_SALE, None)} if order.total_minor else set()
    wanted |= {(VOID, p.request_id) for p in attempts if p != chosen}
    return wanted | (_given_back(standing) if _is_gone(standing) else set())


def _given_back(standing: Standing) -> set[Report]:
    order, chosen = standing.order, standing.chosen
    wanted: set[Report] = {(REFUND, chosen.request_id)} if chosen is not None else set()
    wanted |= {(RESTORE, None)} if order.points else set()
    wanted |= {(REVOKE, None)} if order.points_earned else set()
    return wanted | ({(REVERSE, None)} if order.total_minor else set())


def result_of(standing: Standing) -> OrderResult | None:
    """Return how an order has ended, None while a report of it is still to come."""
    verdict, order = standing.verdict, standing.order
    decided = verdict.decision in (Decision.COMMITTING, Decision.ABORTING)
    if not decided or expected(standing) - standing.reports.keys():
        return None
    aborted, gone = verdict.decision is Decision.ABORTING, _is_gone(standing)
    status = OrderStatus.REFUNDED if gone else OrderStatus.CONFIRMED
    confirmed = not aborted and not gone
    reports = standing.reports.values()
    due = 0 if aborted else order.due_minor
    return OrderResult(
        tenant=order.tenant,
        order_id=order.order_id,
        status=verdict.status if aborted else status,
        decision=Decision.ABORTED if aborted else Decision.COMMITTED,
        reason=GONE if gone and not aborted else verdict.reason,
        refusals=tuple(r.answer for r in reports if r.refused and r.answer),
        total_minor=order.total_minor,
        captured_minor=due + sum(r.captured_minor for r in reports),
        refunded_minor=sum(r.refunded_minor for r in reports),
        points_used=order.points if confirmed else 0,
        points_earned=order.points_earned if confirmed else 0,
        undone=_undone(standing) if aborted else (),
    )


def _undone(standing: Standing) -> tuple[str, ...]:
    voids = [f"{VOID} {p.request_id}" for p in reversed(standing.opened.attempts)]
    points = [RELEASE_POINTS] if standing.order.points else []
    return (*voids, *points, RELEASE_STOCK)


def _is_gone(standing: Standing) -> bool:
    sold = standing.reports.get((SELL_STOCK, None))
    return sold is not None and sold.refused


def _event(kind: EventType, standing: Standing, at: datetime, services: Collection[str]) -> Event:
    return event_of(
        kind,
        standing.told(),
        key=standing.order.step_key(kind.name),
        opened_on=standing.opened.opened_on,
        at=at,
        to=inboxes(*services),
    )


def _payers(payments: Sequence[Payment]) -> set[str]:
    return {payer(payment) for payment in payments}


def _undoers(standing: Standing) -> set[str]:
    points = {"points"} if standing.order.points else set()
    return {"inventory", *points, *_payers(standing.opened.attempts)}


def _confirmers(standing: Standing) -> set[str]:
    order, attempts = standing.order, standing.opened.attempts
    points = {"points"} if order.points or order.points_earned else set()
    books = {"ledger"} if order.total_minor else set()
    dropped = [p for p in attempts if p != standing.chosen or isinstance(p, BalancePayment)]
    return {"inventory", *points, *books, *_payers(dropped)}


def _refunders(standing: Standing) -> set[str]:
    order, chosen = standing.order, standing.chosen
    points = {"points"} if order.points or order.points_earned else set()
    books = {"ledger"} if order.total_minor else set()
    return {*points, *books, *([payer(chosen)] if chosen is not None else [])}
