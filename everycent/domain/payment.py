"""Payments through a third party: authorise (Try), capture (Confirm, the pivot), void (Cancel), refund.

NEW -> SENT -> AUTHORISED -> CAPTURED, with VOIDED, REFUSED and UNKNOWN beside; amounts in minor units.
"""

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field, TypeAdapter

from everycent.domain.message import Currency, Key, Message, StepRequest
from everycent.domain.outcome import Refusal


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
    card_token: str | None = None


class AwaitCustomer(StepRequest):
    """Ask whether the customer has paid on the redirect page of the attempt `key`."""


class CapturePayment(StepRequest):
    """Confirm, and the pivot: take the money of the attempt `key`, or accept what was paid by redirect."""


class VoidPayment(StepRequest):
    """Cancel: the attempt `key` must never take money from now on."""

    reason: str


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
    code: str
    message: str = ""


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
    code: str
    message: str = ""


class Voided(Message):
    """The attempt can take no money any more; `amount_minor` is what had been held, 0 if nothing."""

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
    code: str
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
