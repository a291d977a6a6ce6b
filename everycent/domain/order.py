"""The order: what was asked, the one decision about it, how it ended, and its repair cases.

decision: OPEN -> COMMITTING -> COMMITTED, OPEN -> ABORTING -> ABORTED, and COMMITTING -> ABORTING
only on a stored refusal of the pivot. It moves by a guarded write; who loses adopts the winner's.
"""

from datetime import date
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from everycent.domain.message import (
    Currency,
    Id,
    Key,
    Message,
    MinorUnits,
    OrderRequest,
    Text,
    Told,
    Units,
    problems_of,
    step_key,
)
from everycent.domain.mode import Mode
from everycent.domain.outcome import Refusal
from everycent.domain.withdrawal import OrderWithdrawn
from everycent.errors import InvalidRequest

MAX_ATTEMPTS = 3
POINTS_PER_MINOR = 100  # One point is earned per 100 minor units that are paid in money.


class Decision(StrEnum):
    """The one decision per order (design rule 7)."""

    OPEN = "OPEN"
    COMMITTING = "COMMITTING"
    COMMITTED = "COMMITTED"
    ABORTING = "ABORTING"
    ABORTED = "ABORTED"


class OrderStatus(StrEnum):
    """How the customer reads the order."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


class WaitsFor(StrEnum):
    """What an unfinished order waits for."""

    NOTHING = "nothing"
    PAYMENT = "payment"
    STOCK = "stock"
    PROVIDER = "provider"
    REPAIR = "repair"


class CardPayment(Message):
    """A card that the provider knows by its token: authorised now, captured when it is decided."""

    method: Literal["card"] = "card"
    request_id: Id = "first"
    card_token: Text = Field(min_length=1, max_length=200)


class RedirectPayment(Message):
    """The customer pays on the provider's page; we look whether it happened."""

    method: Literal["redirect"] = "redirect"
    request_id: Id = "first"


class BalancePayment(Message):
    """Paid from the customer's stored balance with us."""

    method: Literal["balance"] = "balance"
    request_id: Id = "first"
    account: Id


Payment = Annotated[CardPayment | RedirectPayment | BalancePayment, Field(discriminator="method")]
PAYMENTS: TypeAdapter[Payment] = TypeAdapter(Payment)


class OrderLine(Message):
    """Units of one SKU for `amount_minor`, the amount of the whole line as quoted."""

    sku: Id
    units: Units
    amount_minor: MinorUnits


class PlaceOrder(Message):
    """An order as the shop hands it in. Amounts are minor units and stay as quoted.

    `points` is how many of the customer's points pay a part, one minor unit each. `payment` pays
    the rest (`due_minor`) and may be missing only when nothing is left to pay.
    """

    HASHED: ClassVar = (
        "customer", "currency", "lines", "payment", "points", "payment_window_seconds",
    )  # fmt: skip

    tenant: Id = "default"
    order_id: Id
    customer: Id
    currency: Currency
    lines: tuple[OrderLine, ...] = Field(min_length=1, max_length=500)
    payment: Payment | None = None
    points: int = Field(default=0, strict=True, ge=0, le=10**12)
    payment_window_seconds: int = Field(default=900, strict=True, ge=1, le=30 * 86400)
    mode: Mode | None = None  # Chosen by the starter; the order's row has the last word.

    @classmethod
    def from_door(cls, document: str | bytes) -> Self:
        """Read an order that a person or another system hands in; unknown fields are refused.

        Raises InvalidRequest with one line that names each field at fault.
        """
        try:
            order = cls.model_validate_json(document, extra="forbid")
        except ValidationError as error:
            raise InvalidRequest(problems_of(error)) from error
        if order.mode is not None:
            raise InvalidRequest("mode: not for the shop to say; `everycent route set` does")
        return order

    @model_validator(mode="after")
    def _pays_all(self) -> Self:
        if self.points > self.total_minor:
            raise ValueError(f"{self.points} points are more than the total of {self.total_minor}")
        if self.due_minor > 0 and self.payment is None:
            raise ValueError(f"{self.due_minor} is due and no payment is named")
        return self

    @property
    def total_minor(self) -> int:
        """Everything the order costs, in minor units: the sum of its lines."""
        return sum(line.amount_minor for line in self.lines)

    @property
    def due_minor(self) -> int:
        """What is left to pay in money after the points."""
        return self.total_minor - self.points

    @property
    def points_earned(self) -> int:
        """The points that the order brings when it is paid."""
        return self.due_minor // POINTS_PER_MINOR

    def step_key(self, step: str, request: str | None = None) -> str:
        """Return the key of one of the order's steps."""
        return step_key(self.tenant, self.order_id, step, request)

    def workflow_id(self) -> str:
        """Return the id of the workflow that drives this order."""
        return f"checkout/{self.tenant}/{self.order_id}"


def differing_fields(stored: dict[str, Any], request: PlaceOrder) -> tuple[str, ...]:
    """Name the business fields in which a request differs from the stored one."""
    new = request.model_dump(mode="json")
    return tuple(name for name in request.HASHED if stored.get(name) != new[name])


class OpenOrder(Message):
    """Write the order down before anything else happens, once per id.

    `driver` is the workflow's id and `run` its run: another run that opens the order shares it.
    """

    order: PlaceOrder
    at: AwareDatetime
    driver: str
    run: str


class Verdict(Message):
    """The order's decision as it stands, with what it was decided on."""

    kind: Literal["verdict"] = "verdict"
    decision: Decision
    attempt: Id | None = None  # The payment attempt that is captured, if money is due.
    status: OrderStatus = OrderStatus.PENDING  # Where an abort leads.
    reason: Told = ""
    shared: bool = False  # Another run has opened the order too: it may have begun any step.

    def agrees_with(self, other: "Verdict") -> bool:
        """Tell whether both say the same about the order, whoever else has opened it."""
        return self.model_copy(update={"shared": other.shared}) == other


class OrderResult(Message):
    """How an order ended, as it is stored and told again to everybody who asks. Minor units."""

    tenant: str
    order_id: str
    status: OrderStatus
    decision: Decision
    reason: Told = ""
    refusals: tuple[dict[str, Any], ...] = ()
    total_minor: int
    captured_minor: int = 0
    refunded_minor: int = 0
    points_used: int = 0
    points_earned: int = 0
    undone: tuple[str, ...] = ()  # The undos that ran, in their order.


class OpenedOrder(Message):
    """The order is in the books: new, or as far as it had come; final once `result` is there."""

    kind: Literal["opened"] = "opened"
    opened_at: AwareDatetime
    opened_on: date
    window_ends_at: AwareDatetime
    verdict: Verdict
    attempts: tuple[Payment, ...] = ()
    result: OrderResult | None = None
    mode: Mode = Mode.SAGA  # For the order's whole life, whoever runs it.

    def withdrawn(self, why: OrderWithdrawn, attempts: tuple[Payment, ...]) -> "OpenedOrder":
        """Return it as one to be undone: its row was lost under its run, and its id withdrawn."""
        status = OrderStatus.REJECTED
        verdict = Verdict(decision=Decision.ABORTING, status=status, reason=why.reason)
        return self.model_copy(update={"verdict": verdict, "attempts": attempts})


class OrderDiffers(Refusal):
    """The id is taken by another order; `fields` are those that differ."""

    kind: Literal["order_differs"] = "order_differs"
    fields: tuple[str, ...]


OpenAnswer = OpenedOrder | OrderDiffers | OrderWithdrawn


class Decide(OrderRequest):
    """Move the decision to COMMITTING (with the attempt to capture) or ABORTING (with the status).

    `pivot_refusal` is the stored refusal of the pivot: the only way from COMMITTING back. `run` is
    the run that asks; one that did not open the order shares it (a reset run opens nothing).
    """

    to: Literal[Decision.COMMITTING, Decision.ABORTING]
    run: str
    attempt: Id | None = None
    status: OrderStatus = OrderStatus.PENDING
    reason: Told = ""
    pivot_refusal: dict[str, Any] | None = None


class CloseOrder(OrderRequest):
    """Store how the order ended: COMMITTING -> COMMITTED or ABORTING -> ABORTED."""

    result: OrderResult


class MarkOrder(OrderRequest):
    """Tell what the unfinished order waits for; `status` when that is known before the end."""

    waits_for: WaitsFor
    status: OrderStatus | None = None


class AddAttempt(OrderRequest):
    """Write down another payment attempt before it is made; only while the order is OPEN."""

    payment: Payment


class AttemptAdded(Message):
    """The attempt may be made; `number` counts from 1."""

    kind: Literal["attempt_added"] = "attempt_added"
    number: int


class AttemptRefused(Refusal):
    """No further attempt: too many, too late, or the request id stands for another payment."""

    kind: Literal["attempt_refused"] = "attempt_refused"
    reason: Told


AttemptAnswer = AttemptAdded | AttemptRefused


class Marked(Message):
    """The order row says so now; False if the order was final already."""

    kind: Literal["marked"] = "marked"
    changed: bool


class CaseState(StrEnum):
    """Whether a repair case still waits."""

    OPEN = "OPEN"
    RESOLVED = "RESOLVED"


class ParkStep(OrderRequest):
    """Open the repair case of a step that did not succeed, or count another failure of it."""

    case_key: Key
    step: str
    error_class: str
    error: Told
    owner: str
    proposals: tuple[str, ...] = ("retry", "resolve")


class Parked(Message):
    """The case is in the books; `settled_by_hand` if a person had taken the step as done before."""

    kind: Literal["parked"] = "parked"
    settled_by_hand: bool = False


class SettleCase(OrderRequest):
    """Close a repair case: the step succeeded at last, or a person took it over by hand."""

    case_key: Key
    by: Told
    reason: Told
    by_hand: bool


class CaseSettled(Message):
    """The case is closed; the first who closed it stays on record."""

    kind: Literal["case_settled"] = "case_settled"
    by: Told
    reason: Told


def move(verdict: Verdict, request: Decide) -> Verdict:
    """Return the decision after a request to move it: the request's, or the one that stands.

    Who loses adopts what stands. A commit is taken back only on a refusal of the pivot.
    """
    takes_back = (
        verdict.decision is Decision.COMMITTING
        and request.to is Decision.ABORTING
        and request.pivot_refusal is not None
    )
    if verdict.decision is not Decision.OPEN and not takes_back:
        return verdict
    return Verdict(
        decision=request.to,
        attempt=request.attempt if request.to is Decision.COMMITTING else verdict.attempt,
        status=request.status,
        reason=request.reason,
        shared=verdict.shared,
    )


class CancelOrder(Message):
    """The customer does not want the order any more."""

    reason: Text = "the customer cancelled"


class CancelAnswer(Message):
    """What became of a cancellation: cancelled, or the decision that had been made before."""

    cancelled: bool
    status: OrderStatus
    reason: Told


class PayOrder(Message):
    """Another payment for an order whose last one was refused."""

    payment: Payment


class RepairOrder(Message):
    """What to do about a parked step: run it again now, or take it as done by hand."""

    case_key: Key
    action: Literal["retry", "resolve"] = "retry"
    by: Text = Field(min_length=1, max_length=200)
    reason: Text = ""


class RepairAnswer(Message):
    """Whether the parked step is done now; if not, why it failed again."""

    done: bool
    error: Told = ""


class Placement(Message):
    """How far an order has come, told as soon as there is something to tell the customer.

    `waits_for` payment with the last refusal, or a page to pay on (`redirect_url`), wants the
    customer; otherwise the order is decided, and final once `result` is there.
    """

    order_id: str
    request_hash: str
    decision: Decision
    status: OrderStatus
    waits_for: WaitsFor = WaitsFor.NOTHING
    reason: Told = ""
    redirect_url: str | None = None
    parked: tuple[str, ...] = ()  # The keys of its open repair cases.
    result: OrderResult | None = None
