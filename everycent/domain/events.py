"""What services tell one another, each type with the version of its schema.

A reader of version N reads what writers of N-1 and N+1 send: within that window a field is only
added, with a default, and never taken away, renamed or given another meaning. A writer's version
goes up with every such addition (tests/contracts keeps the schemas and samples of each version).
What is further ahead waits in the inbox for the release that knows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from everycent.domain.message import Id, Message, Told
from everycent.domain.messaging import Envelope, Event
from everycent.domain.order import OrderResult, OrderStatus, Payment, PlaceOrder
from everycent.errors import Bug, Transient


class OrderTold(Message):
    """An order as far as it has come: all that a participant needs for its steps.

    `attempt` is the payment that is to be held, or that pays once the order is decided.
    """

    order: PlaceOrder
    opened_on: date
    window_ends_at: AwareDatetime
    attempts: tuple[Payment, ...] = ()
    attempt: Id | None = None
    status: OrderStatus = OrderStatus.PENDING
    reason: Told = ""

    def payment(self) -> Payment | None:
        """Return the payment that `attempt` names."""
        return next((p for p in self.attempts if p.request_id == self.attempt), None)


class StepReported(Message):
    """What became of one step of an order, told to the order service. Amounts are minor units.

    Since version 2 with what a step took and gave back against our wish.
    """

    tenant: Id
    order_id: Id
    operation: str
    request: Id | None = None
    refused: bool = False
    reason: Told = ""
    answer: dict[str, Any] = Field(default_factory=dict)
    captured_minor: int = 0
    refunded_minor: int = 0


class CaseParked(Message):
    """A step that did not succeed within its budget waits for a person, or for its next try."""

    tenant: Id
    order_id: Id
    case_key: str
    step: str
    error_class: str
    error: Told
    proposals: tuple[str, ...] = ()


@dataclass(frozen=True)
class EventType:
    """A type of event: its name, what it says, and the version that is written today."""

    name: str
    model: type[Message]
    version: int = 1


ORDER_OPENED: Final = EventType("order.opened", OrderTold)
PAYMENT_NAMED: Final = EventType("payment.named", OrderTold)
STOCK_HELD: Final = EventType("stock.held", OrderTold)
POINTS_HELD: Final = EventType("points.held", OrderTold)
ORDER_COMMITTING: Final = EventType("order.committing", OrderTold)
ORDER_PAID: Final = EventType("order.paid", OrderTold)
ORDER_ABORTING: Final = EventType("order.aborting", OrderTold)
ORDER_REFUNDING: Final = EventType("order.refunding", OrderTold)
ORDER_CLOSED: Final = EventType("order.closed", OrderResult)
CASE_PARKED: Final = EventType("case.parked", CaseParked)
STEP_REPORTED: Final = EventType("step.reported", StepReported, version=2)

EVENT_TYPES: Final[tuple[EventType, ...]] = (
    ORDER_OPENED, PAYMENT_NAMED, STOCK_HELD, POINTS_HELD, ORDER_COMMITTING, ORDER_PAID,
    ORDER_ABORTING, ORDER_REFUNDING, ORDER_CLOSED, STEP_REPORTED, CASE_PARKED,
)  # fmt: skip
BY_NAME: Final[Mapping[str, EventType]] = {kind.name: kind for kind in EVENT_TYPES}

M = TypeVar("M", bound=Message)


def told_by(envelope: Envelope, model: type[M]) -> M:
    """Read a message. Raises Transient for one that is more than a version ahead of us."""
    kind = BY_NAME.get(envelope.type)
    if kind is None or kind.model is not model:
        raise Bug(f"{envelope.key} is a {envelope.type}, which is no {model.__name__}")
    if envelope.schema_version > kind.version + 1:
        raise Transient(
            f"{envelope.key} has version {envelope.schema_version} of {kind.name}, and this release"
            f" reads up to {kind.version + 1}"
        )
    try:
        return model.model_validate(envelope.payload)
    except ValidationError as error:
        raise Bug(f"{envelope.key} cannot be read: {error.error_count()} problems") from error


def event_of(
    kind: EventType,
    said: Message,
    *,
    key: str,
    opened_on: date,
    at: datetime,
    to: tuple[str, ...],
) -> Event:
    """Make the event of an order for these sinks; its order is kept within the order."""
    return Event(
        key=key,
        aggregate="/".join(key.split("/", 2)[:2]),
        opened_on=opened_on,
        at=at,
        type=kind.name,
        schema_version=kind.version,
        payload=said.model_dump(mode="json"),
        to=to,
    )
