"""Payments at a provider: authorise (Try), capture (Confirm, the pivot), void (Cancel), refund.

NEW -> SENT -> AUTHORISED -> CAPTURED, with VOIDED, REFUSED and UNKNOWN beside. Amounts are minor
units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import ClassVar, Literal

from pydantic import Field, JsonValue, TypeAdapter

from everycent.domain.fence import FenceState
from everycent.domain.message import Currency, Key, Message, StepRequest, Text, Told
from everycent.domain.outcome import Refusal
from everycent.errors import Bug, EverycentError, Unknown


class PaymentStatus(StrEnum):
    """What we know of a payment at the provider."""

    NEW = "NEW"
    SENT = "SENT"
    AUTHORISED = "AUTHORISED"
    CAPTURED = "CAPTURED"
    VOIDED = "VOIDED"
    REFUSED = "REFUSED"
    UNKNOWN = "UNKNOWN"


class AuthorisePayment(StepRequest):
    """Try: hold the amount on the customer's card, or open a page where the customer pays.

    The key names the payment attempt: `<tenant>/<order>/pay/<request>`.
    """

    HASHED: ClassVar = ("amount_minor", "currency", "method", "card_token")

    amount_minor: int = Field(strict=True, gt=0)
    currency: Currency
    method: Literal["card", "redirect"]
    card_token: Text | None = None


class AwaitCustomer(StepRequest):
    """Ask whether the customer has paid on the redirect page of the attempt `key`."""


class CapturePayment(StepRequest):
    """Confirm, and the pivot: take the money of attempt `key`, or accept what came by redirect."""


class VoidPayment(StepRequest):
    """Cancel: the attempt `key` must never take money from now on."""

    reason: Told


class RefundPayment(StepRequest):
    """Give back captured money, once per `key`: `<tenant>/<order>/refund/<request>`."""

    HASHED: ClassVar = ("payment_key", "amount_minor", "currency")

    payment_key: Key
    amount_minor: int = Field(strict=True, gt=0)
    currency: Currency


class Authorised(Message):
    """The amount is held on the card."""

    kind: Literal["authorised"] = "authorised"
    amount_minor: int
    provider_id: str


class RedirectOpened(Message):
    """The customer can pay at `url`; nothing is taken or held yet."""

    kind: Literal["redirect_opened"] = "redirect_opened"
    amount_minor: int
    provider_id: str
    url: str


class PaymentDeclined(Refusal):
    """The provider said no, for good, to this attempt; another card may work."""

    kind: Literal["payment_declined"] = "payment_declined"
    code: Told
    message: Told = ""


class CustomerPaid(Message):
    """The provider has the customer's money; it is ours once the order is decided COMMITTING."""

    kind: Literal["customer_paid"] = "customer_paid"
    amount_minor: int
    provider_id: str


class Captured(Message):
    """The money is taken."""

    kind: Literal["captured"] = "captured"
    amount_minor: int
    provider_id: str


class CaptureRefused(Refusal):
    """The provider will never take this money (the authorisation ran out or was withdrawn)."""

    kind: Literal["capture_refused"] = "capture_refused"
    code: Told
    message: Told = ""


class Voided(Message):
    """The attempt can take no money any more; `amount_minor` is what had been held, or 0."""

    kind: Literal["voided"] = "voided"
    amount_minor: int


class PaidAnyway(Message):
    """The money had been taken before the void came: it is with us and has to be refunded."""

    kind: Literal["paid_anyway"] = "paid_anyway"
    amount_minor: int
    provider_id: str


class Refunded(Message):
    """The money went back."""

    kind: Literal["refunded"] = "refunded"
    amount_minor: int
    provider_refund_id: str


class RefundRefused(Refusal):
    """More than is left of what was captured, or the provider said no; no balance changed."""

    kind: Literal["refund_refused"] = "refund_refused"
    code: Told
    refundable_minor: int


AuthoriseAnswer = Authorised | RedirectOpened | PaymentDeclined
CustomerAnswer = CustomerPaid | PaymentDeclined
CaptureAnswer = Captured | CaptureRefused
VoidAnswer = Voided | PaidAnyway
RefundAnswer = Refunded | RefundRefused
AUTHORISE_ANSWERS: TypeAdapter[AuthoriseAnswer] = TypeAdapter(AuthoriseAnswer)
CAPTURE_ANSWERS: TypeAdapter[CaptureAnswer] = TypeAdapter(CaptureAnswer)
VOID_ANSWERS: TypeAdapter[VoidAnswer] = TypeAdapter(VoidAnswer)
REFUND_ANSWERS: TypeAdapter[RefundAnswer] = TypeAdapter(RefundAnswer)


# What the provider told us, and what follows from it.


class ProviderSays(Message):
    """How a payment stands at the provider; kept as the answer on the row of the call.

    `absent`: the provider has none, and no call of ours can still bring one. `held`: the amount was
    on hold until the void that this answers.
    """

    state: Literal[
        "requires_confirmation", "requires_action", "authorised", "captured", "cancelled",
        "declined", "expired", "absent",
    ]  # fmt: skip
    provider_id: str | None = None
    currency: str | None = None
    amount_minor: int = 0
    captured_minor: int = 0
    code: Told = ""
    url: str | None = None
    held: bool = False

    @property
    def is_over_without_money(self) -> bool:
        """Whether nothing was taken and nothing can be taken any more."""
        return self.state in ("cancelled", "declined", "expired", "absent")


class RefundSays(Message):
    """How a refund stands at the provider; `pending` is no answer yet."""

    state: Literal["succeeded", "pending", "failed"]
    provider_refund_id: str = ""
    code: Told = ""


# In the order in which one talk with the provider makes them.
CallName = Literal["create", "confirm", "capture", "void", "refund"]


@dataclass(frozen=True)
class SentCall:
    """A call we wrote down before we made it.

    `sent_at` is the first sending under the key that the provider may still remember, and
    `may_arrive_until` the end of the last; `open_sends` counts the sendings of which we do not know
    that they failed before they left.
    """

    sent_at: datetime
    may_arrive_until: datetime
    open_sends: int
    answered: bool = False


class CallPlan(Enum):
    """What an attempt may do with a call."""

    FIRST = "no sending of it is open: send"
    SAME_KEY = "look up, then send again: the provider answers the same key with its first answer"
    FORGOTTEN = "look up; if there is nothing, nothing can come any more, and sending starts anew"
    LOOK_ONLY = "look up, do not send: the key may be forgotten while an earlier call still flies"


def plan_call(
    earlier: SentCall | None, *, at: datetime, until: datetime, key_lifetime: timedelta
) -> CallPlan:
    """Say how a call, begun at `at` and arriving by `until`, is safe beside the earlier ones.

    The provider remembers a key from its first execution on, which is not before `sent_at`.
    """
    if earlier is None or earlier.answered or earlier.open_sends == 0:
        return CallPlan.FIRST
    if until <= earlier.sent_at + key_lifetime:
        return CallPlan.SAME_KEY
    return CallPlan.FORGOTTEN if at > earlier.may_arrive_until else CallPlan.LOOK_ONLY


@dataclass(frozen=True)
class PaymentRow:
    """A payment as its row tells it; a tombstone has no amount."""

    key: str
    state: FenceState
    status: PaymentStatus
    request_hash: str | None
    amount_minor: int
    currency: str
    method: Literal["card", "redirect"]
    card_token: str | None
    try_answer: JsonValue
    provider_id: str | None
    captured_minor: int
    refunded_minor: int
    cancelling: bool
    capture_refusal: JsonValue

    @property
    def holds(self) -> bool:
        """Whether our last word to the order was that the amount is held."""
        answer = self.try_answer
        return isinstance(answer, dict) and answer.get("kind") == "authorised"


def answer_authorise(row: PaymentRow, says: ProviderSays) -> AuthoriseAnswer | EverycentError:
    """Turn what the provider says into the answer of a Try, or an error that stores nothing."""
    wrong = _another_payment(row, says)
    if wrong is not None:
        return wrong
    if says.is_over_without_money:
        return PaymentDeclined(code=says.code or says.state)
    paid_by_customer = row.method == "redirect" and says.state == "captured"
    if says.state == "requires_action" or paid_by_customer:
        return RedirectOpened(
            amount_minor=row.amount_minor, provider_id=_id_of(says), url=says.url or ""
        )
    if row.method == "card" and says.state == "authorised":
        return Authorised(amount_minor=row.amount_minor, provider_id=_id_of(says))
    if says.state == "requires_confirmation":
        return Unknown(f"{row.key}: the provider has not decided yet")
    return Bug(f"{row.key}: a {row.method} payment is {says.state} after its authorisation")


def answer_customer(row: PaymentRow, says: ProviderSays) -> CustomerAnswer | EverycentError | None:
    """Say whether the customer has paid on the redirect page; None as long as she may still pay."""
    wrong = _another_payment(row, says)
    if wrong is not None:
        return wrong
    if says.is_over_without_money:
        return PaymentDeclined(code=says.code or says.state)
    if says.state != "captured":
        return None
    return _whole(row, says) or CustomerPaid(
        amount_minor=row.amount_minor, provider_id=_id_of(says)
    )


def answer_capture(row: PaymentRow, says: ProviderSays) -> CaptureAnswer | EverycentError:
    """Turn what the provider says into the pivot's answer; only a state without return is a no."""
    wrong = _another_payment(row, says)
    if wrong is not None:
        return wrong
    if says.is_over_without_money:
        return CaptureRefused(code=says.code or says.state)
    if says.state == "captured":
        return _whole(row, says) or Captured(
            amount_minor=row.amount_minor, provider_id=_id_of(says)
        )
    return Unknown(f"{row.key}: the provider has neither taken nor refused it ({says.state})")


def answer_void(row: PaymentRow, says: ProviderSays) -> VoidAnswer | EverycentError:
    """Turn what the provider says into the answer of a Cancel; money it took is told, not lost."""
    wrong = _another_payment(row, says)
    if wrong is not None:
        return wrong
    if says.state == "captured":
        return _whole(row, says) or PaidAnyway(
            amount_minor=row.amount_minor, provider_id=_id_of(says)
        )
    if says.is_over_without_money:
        return Voided(amount_minor=row.amount_minor if row.holds or says.held else 0)
    return Unknown(f"{row.key}: the provider has not given it up yet ({says.state})")


@dataclass(frozen=True)
class RefundAllocation:
    """Which refunds of a batch are refused at once, and what the others take of each payment."""

    refused: dict[str, RefundRefused]
    reserved: dict[str, int]


def reserve_refunds(
    payments: Mapping[str, PaymentRow], requests: Sequence[RefundPayment]
) -> RefundAllocation:
    """Reserve captured money for each refund, first come, first served; never more than is left."""
    refused: dict[str, RefundRefused] = {}
    reserved: dict[str, int] = {}
    for request in requests:
        payment = payments.get(request.payment_key)
        left = 0
        if payment is not None:
            left = payment.captured_minor - payment.refunded_minor - reserved.get(payment.key, 0)
        code = _why_not_refundable(payment, request, left)
        if code is not None:
            refused[request.key] = RefundRefused(code=code, refundable_minor=left)
        else:
            taken = reserved.get(request.payment_key, 0)
            reserved[request.payment_key] = taken + request.amount_minor
    return RefundAllocation(refused, reserved)


def answer_refund(
    request: RefundPayment, payment: PaymentRow, says: RefundSays
) -> RefundAnswer | EverycentError:
    """Turn what the provider says into the answer of a refund whose money is reserved."""
    if says.state == "succeeded":
        return Refunded(
            amount_minor=request.amount_minor, provider_refund_id=says.provider_refund_id
        )
    if says.state == "pending":
        return Unknown(f"{request.key}: the provider has not finished the refund yet")
    # What was reserved for this refund is given back with the answer.
    left = payment.captured_minor - payment.refunded_minor + request.amount_minor
    return RefundRefused(code=says.code or "failed", refundable_minor=left)


def _why_not_refundable(
    payment: PaymentRow | None, request: RefundPayment, left_minor: int
) -> str | None:
    if payment is None or payment.captured_minor == 0:
        return "nothing_captured"
    if payment.currency != request.currency:
        return "currency_differs"
    return "exceeds_captured" if request.amount_minor > left_minor else None


def _another_payment(row: PaymentRow, says: ProviderSays) -> Bug | None:
    if says.provider_id is None:  # It refused to open one at all, or has none.
        return None
    told, asked = (says.amount_minor, says.currency), (row.amount_minor, row.currency)
    if told == asked and row.provider_id in (None, says.provider_id):
        return None
    return Bug(f"{row.key}: the provider speaks of {says.provider_id} over {told}, not of {asked}")


def _whole(row: PaymentRow, says: ProviderSays) -> Bug | None:
    if says.captured_minor == row.amount_minor:
        return None
    return Bug(f"{row.key}: {says.captured_minor} was taken instead of {row.amount_minor}")


def _id_of(says: ProviderSays) -> str:
    assert says.provider_id is not None, f"a {says.state} payment has no id"
    return says.provider_id
