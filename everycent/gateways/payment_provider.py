"""The payment provider: what we ask of one, what it may answer, and the HTTP client that asks.

A gateway never retries and holds no state: it turns each thing that can happen on the wire into
exactly one answer or error, so that the caller (design rule 10) knows what it may assume.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol, TypeVar

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from everycent.errors import Bug, InvalidRequest, KeyReused, Transient, Unknown, Unreachable

IntentState = Literal[
    "requires_confirmation",
    "requires_action",
    "authorised",
    "captured",
    "cancelled",
    "declined",
    "expired",
]
Method = Literal["card", "redirect"]
CaptureMode = Literal["manual", "automatic"]

SIGNATURE_HEADER: Final = "Everypay-Signature"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Intent(_Answer):
    """A payment as the provider holds it.

    `replayed`: this is the kept answer of an earlier call, so the payment may have moved since.
    """

    kind: Literal["intent"] = "intent"
    provider_id: str = Field(alias="id")
    reference: str
    state: IntentState
    currency: str
    amount_minor: int
    captured_minor: int
    refunded_minor: int
    decline_code: str | None = None
    redirect_url: str | None = None
    replayed: bool = False

    @property
    def is_over_without_money(self) -> bool:
        """Whether nothing was taken and nothing can be taken any more."""
        return self.state in ("cancelled", "declined", "expired")


class Refund(_Answer):
    """Money given back, once per `reference`."""

    kind: Literal["refund"] = "refund"
    provider_id: str = Field(alias="id")
    intent_id: str
    reference: str
    state: Literal["pending", "succeeded", "failed"]
    currency: str
    amount_minor: int
    replayed: bool = False


class Declined(_Answer):
    """The issuer or the provider said no; a definite answer, nothing moved."""

    kind: Literal["declined"] = "declined"
    code: str
    intent: Intent | None = None


class Refused(_Answer):
    """The payment's state forbids it; a definite answer, nothing moved. `intent` is that state."""

    kind: Literal["refused"] = "refused"
    code: str
    intent: Intent | None = None


class NotFound(_Answer):
    """The provider has nothing under this reference yet; a call on its way may still arrive."""

    kind: Literal["not_found"] = "not_found"
    reference: str


class Several(_Answer):
    """More payments than one have one reference: the key outlived the provider's memory of it."""

    kind: Literal["several"] = "several"
    intents: tuple[Intent, ...]


class WebhookEvent(_Answer):
    """What the provider tells by itself, perhaps repeated, late, out of order: a hint to look."""

    event_id: str = Field(alias="id")
    event: str = Field(alias="kind")
    created_at: AwareDatetime
    intent: Intent
    refund: Refund | None = None


class PaymentProvider(Protocol):
    """What we ask of a provider. Every call has a deadline in seconds and runs in no transaction.

    `key` is our payment or refund key and also the reference to look up by; each operation sends
    an idempotency key of its own, made of it. Raises Unreachable or Transient (nothing happened),
    Unknown (it may have happened or may still happen), Bug (our request is wrong).
    """

    @property
    def idempotency_lifetime(self) -> timedelta:
        """How long the provider answers a repeated key with the first answer."""
        ...

    @property
    def can_look_up(self) -> bool:
        """Whether a payment can be found by our reference."""
        ...

    async def create_intent(
        self,
        key: str,
        *,
        amount_minor: int,
        currency: str,
        method: Method,
        card_token: str | None,
        capture: CaptureMode,
        deadline_seconds: float,
    ) -> Intent | Declined | Refused:
        """Open a payment; asks for no money yet."""
        ...

    async def confirm(
        self, provider_id: str, *, key: str, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Ask for the money: authorised, captured, or a redirect for the customer."""
        ...

    async def capture(
        self, provider_id: str, *, key: str, amount_minor: int, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Take authorised money, once; the rest of the authorisation is released."""
        ...

    async def void(
        self, provider_id: str, *, key: str, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Give up a payment that was not captured, so that late calls for it are refused."""
        ...

    async def refund(
        self, provider_id: str, *, key: str, amount_minor: int, deadline_seconds: float
    ) -> Refund | Declined | Refused:
        """Give captured money back, once per key."""
        ...

    async def look_up(
        self, reference: str, *, deadline_seconds: float
    ) -> Intent | NotFound | Several:
        """Find the payment opened under our key, as it stands now."""
        ...

    async def look_up_refund(self, reference: str, *, deadline_seconds: float) -> Refund | NotFound:
        """Find the refund made under our key; one that succeeded goes before one that failed."""
        ...

    async def read_intent(self, provider_id: str, *, deadline_seconds: float) -> Intent | NotFound:
        """Return a payment, found by the provider's id, as it stands now."""
        ...


Model = TypeVar("Model", bound=_Answer)


class HttpPaymentProvider:
    """The provider's REST API behind an httpx client whose `base_url` is the provider's."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        api_key: str,
        guard: Callable[[], None],
        idempotency_lifetime: timedelta = timedelta(hours=24),
    ) -> None:
        """Take a client; `guard` raises when a database transaction is open in this task."""
        self._client = client
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._guard = guard
        self.idempotency_lifetime = idempotency_lifetime
        self.can_look_up = True

    async def create_intent(
        self,
        key: str,
        *,
        amount_minor: int,
        currency: str,
        method: Method,
        card_token: str | None,
        capture: CaptureMode,
        deadline_seconds: float,
    ) -> Intent | Declined | Refused:
        """Open a payment under `key`, which is also its reference."""
        body = {
            "amount_minor": amount_minor,
            "currency": currency,
            "reference": key,
            "method": method,
            "card_token": card_token,
            "capture": capture,
        }
        path, once = "/v1/intents", f"{key}:create"
        answer = await self._act(path, Intent, once=once, body=body, seconds=deadline_seconds)
        if isinstance(answer, Intent):
            told = (answer.reference, answer.amount_minor, answer.currency)
            _check_told(told, (key, amount_minor, currency))
        return answer

    async def confirm(
        self, provider_id: str, *, key: str, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Ask for the money."""
        path, once = f"/v1/intents/{provider_id}/confirm", f"{key}:confirm"
        return await self._act(path, Intent, once=once, body={}, seconds=deadline_seconds)

    async def capture(
        self, provider_id: str, *, key: str, amount_minor: int, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Take authorised money."""
        path, once = f"/v1/intents/{provider_id}/capture", f"{key}:capture"
        body = {"amount_minor": amount_minor}
        answer = await self._act(path, Intent, once=once, body=body, seconds=deadline_seconds)
        if isinstance(answer, Intent):
            _check_told(answer.captured_minor, amount_minor)
        return answer

    async def void(
        self, provider_id: str, *, key: str, deadline_seconds: float
    ) -> Intent | Declined | Refused:
        """Give up a payment that was not captured."""
        path, once = f"/v1/intents/{provider_id}/cancel", f"{key}:void"
        return await self._act(path, Intent, once=once, body={}, seconds=deadline_seconds)

    async def refund(
        self, provider_id: str, *, key: str, amount_minor: int, deadline_seconds: float
    ) -> Refund | Declined | Refused:
        """Give captured money back under `key`, which is also the refund's reference."""
        path, once = f"/v1/intents/{provider_id}/refunds", f"{key}:refund"
        body = {"amount_minor": amount_minor, "reference": key}
        answer = await self._act(path, Refund, once=once, body=body, seconds=deadline_seconds)
        if isinstance(answer, Refund):
            _check_told((answer.reference, answer.amount_minor), (key, amount_minor))
        return answer

    async def look_up(
        self, reference: str, *, deadline_seconds: float
    ) -> Intent | NotFound | Several:
        """Find the payment by our key."""
        response = await self._read("/v1/intents", deadline_seconds, reference=reference)
        found = [_parse_read(Intent, item) for item in _list_of(response)]
        if len(found) > 1:
            return Several(intents=tuple(found))
        return found[0] if found else NotFound(reference=reference)

    async def look_up_refund(self, reference: str, *, deadline_seconds: float) -> Refund | NotFound:
        """Find the refund by our key."""
        response = await self._read("/v1/refunds", deadline_seconds, reference=reference)
        found = [_parse_read(Refund, item) for item in _list_of(response)]
        found.sort(key=lambda refund: refund.state == "failed")  # A failed one moved nothing.
        return found[0] if found else NotFound(reference=reference)

    async def read_intent(self, provider_id: str, *, deadline_seconds: float) -> Intent | NotFound:
        """Return a payment by the provider's id."""
        response = await self._read(f"/v1/intents/{provider_id}", deadline_seconds)
        if response.status_code == 404:
            return NotFound(reference=provider_id)
        return _parse_read(Intent, _json_of(response))

    async def _act(
        self, path: str, model: type[Model], *, once: str, body: dict[str, Any], seconds: float
    ) -> Model | Declined | Refused:
        """Send a call that moves something; whatever is not a definite answer is Unknown."""
        headers = {**self._headers, "Idempotency-Key": once}
        request = self._client.build_request(
            "POST", path, json=body, headers=headers, timeout=_waits(seconds)
        )
        response = await self._send(request, seconds)
        _raise_for_call(response)
        try:
            if response.status_code == 402:
                return Declined.model_validate(_json_of(response)["error"])
            if response.status_code == 409:
                return Refused.model_validate(_json_of(response)["error"])
            replayed = response.headers.get("Idempotent-Replayed") == "true"
            return model.model_validate({**_json_of(response), "replayed": replayed})
        except (KeyError, TypeError, ValidationError) as error:
            # It was answered, but we cannot read how: that is no "no".
            raise Unknown(f"{path}: unreadable answer {response.status_code}") from error

    async def _read(self, path: str, seconds: float, **query: str) -> httpx.Response:
        """Send a look-up; it moves nothing, so each failure of it is Transient."""
        request = self._client.build_request(
            "GET", path, params=query, headers=self._headers, timeout=_waits(seconds)
        )
        try:
            response = await self._send(request, seconds)
            _raise_for_call(response, may_be_absent=True)
        except Unknown as error:
            raise Transient(f"look-up failed: {error}") from error
        return response

    async def _send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        """Send once within the deadline; tell "surely not sent" from "sent, fate unknown"."""
        self._guard()
        what = f"{request.method} {request.url.path}"
        try:
            # httpx limits each wait; this limits their sum.
            async with asyncio.timeout(seconds):
                return await self._client.send(request, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(f"{what}: {type(error).__name__} {error}") from error
        except httpx.UnsupportedProtocol as error:
            raise Bug(f"{what}: {error}") from error
        except (httpx.RequestError, TimeoutError) as error:
            raise Unknown(f"{what}: {type(error).__name__} {error}") from error


def read_webhook(
    *, body: bytes, signature: str, secret: str, at: datetime, tolerance: timedelta
) -> WebhookEvent:
    """Return the event of a webhook that the provider signed; raises InvalidRequest if it did not.

    The signature covers the timestamp, so a recorded webhook is worthless after `tolerance`.
    """
    parts = dict(part.strip().partition("=")[::2] for part in signature.split(","))
    stamp = parts.get("t", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise InvalidRequest("the webhook's signature has no timestamp")
    expected = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), parts.get("v1", "").encode()):
        raise InvalidRequest("the webhook's signature is wrong")
    if abs(at - datetime.fromtimestamp(int(stamp), UTC)) > tolerance:
        raise InvalidRequest("the webhook's signature is too old")
    try:
        return WebhookEvent.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest("the webhook's body is not an event we know") from error


def _waits(seconds: float) -> httpx.Timeout:
    # Opening the connection ends first, so that "not sent" is told apart from "no answer".
    return httpx.Timeout(seconds, connect=seconds * 0.9, pool=seconds * 0.9)


def _raise_for_call(response: httpx.Response, *, may_be_absent: bool = False) -> None:
    """Raise for every status that is neither an answer (200) nor a definite no (402, 409)."""
    status = response.status_code
    if status in (200, 402, 409) or (status == 404 and may_be_absent):
        return
    code = _code_of(response)
    told = f"{response.request.method} {response.request.url.path}: {status} {code}"
    # A bare 503 may come from a proxy that has already passed the request on.
    if status == 429 or (status == 503 and code == "down"):
        raise Transient(told)
    if status >= 500 or status == 408 or status < 400:
        raise Unknown(told)
    if code == "idempotency_key_reused":
        raise KeyReused(told)
    raise Bug(told)


def _code_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def _json_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}  # No model accepts it: the caller decides what an unreadable answer means.
    return body if isinstance(body, dict) else {}


def _list_of(response: httpx.Response) -> list[Any]:
    data = _json_of(response).get("data")
    if not isinstance(data, list):
        raise Transient(f"{response.request.url.path}: unreadable answer {response.status_code}")
    return data


def _parse_read(model: type[Model], item: object) -> Model:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        raise Transient("look-up failed: unreadable answer") from error


def _check_told(told: object, asked: object) -> None:
    """Stop when the provider speaks of another payment or amount than we asked for."""
    if told != asked:
        raise Bug(f"the provider answered for {told}, we asked for {asked}")
