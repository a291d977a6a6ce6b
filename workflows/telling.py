"""What people read about an order in Temporal's Web UI; it alone must tell what happened."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from temporalio.exceptions import ApplicationError

from everycent.domain.money import readable
from everycent.domain.order import Decision, OrderDiffers, OrderLine, PlaceOrder
from everycent.domain.outcome import Refusal
from everycent.domain.outcome import told as told
from everycent.domain.withdrawal import OrderWithdrawn
from workflows.saga import ParkedStep

LINES_SHOWN = 20  # The details are a page for people; the input holds every line.


@dataclass(frozen=True)
class Standing:
    """How an order stands, as its run knows it."""

    doing: str
    decision: Decision
    refusals: Sequence[Refusal]
    captured_minor: int
    refunded_minor: int
    redirect_url: str | None
    parked: Collection[ParkedStep]
    undone: Sequence[str]


def summary(order: PlaceOrder) -> str:
    """Say in one line what is sold."""
    units = sum(line.units for line in order.lines)
    items = f"{units} unit{'s' * (units != 1)} for {readable(order.total_minor, order.currency)}"
    return f"{order.order_id} of {order.customer}: {items}"


def details(order: PlaceOrder, standing: Standing) -> str:
    """Tell the whole order in Markdown."""
    facts = [
        *(_line(line, order.currency) for line in order.lines[:LINES_SHOWN]),
        *([f"{len(order.lines) - LINES_SHOWN} more lines"] * (len(order.lines) > LINES_SHOWN)),
        *([f"{order.points} points pay a part"] * bool(order.points)),
        *(f"refused: {told(refusal, order.currency)}" for refusal in standing.refusals),
        *([f"the customer pays at {standing.redirect_url}"] * bool(standing.redirect_url)),
        *(f"undone: {name}" for name in standing.undone),
        *(f"**parked: {s.name}** ({s.error_class}: {s.error})" for s in standing.parked),
    ]
    if order.due_minor:
        captured, refunded = (
            readable(minor, order.currency)
            for minor in (standing.captured_minor, standing.refunded_minor)
        )
        facts.append(f"captured {captured}, refunded {refunded}")
    listed = "\n".join(f"- {fact}" for fact in facts)
    return (
        f"**{standing.doing}**\n\nOrder `{order.order_id}` of {order.customer}:"
        f" {readable(order.total_minor, order.currency)}, decision {standing.decision}\n\n{listed}"
    )


def _line(line: OrderLine, currency: str) -> str:
    return f"{line.units} × {line.sku}: {readable(line.amount_minor, currency)}"


def unopened(order: PlaceOrder, answer: OrderDiffers | OrderWithdrawn) -> ApplicationError:
    """Return the error that tells why an order could not be written down."""
    if isinstance(answer, OrderDiffers):
        return differs(order, answer.fields)
    return ApplicationError(
        f"order {order.order_id} cannot be placed: {answer.reason};"
        " please place it under another order id",
        type="OrderWithdrawn",
        non_retryable=True,
    )


def differs(order: PlaceOrder, fields: tuple[str, ...]) -> ApplicationError:
    """Return the error that tells whoever placed this order that its id is taken by another."""
    return ApplicationError(
        f"order {order.order_id} exists with other {', '.join(fields)}",
        list(fields),
        type="OrderDiffers",
        non_retryable=True,
    )
