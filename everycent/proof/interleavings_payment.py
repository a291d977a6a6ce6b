"""A payment's row, as far as the database goes: what is written before and after each call.

What the provider says is the same at every time: authorised, captured, given up. The calls
themselves are tried with a provider (docs/flows/checkout.md); here nothing is sent.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import payment
from everycent.database.payment import Due, Loaded
from everycent.database.provider_call import Heard, Sending
from everycent.domain.payment import AuthorisePayment, CapturePayment, ProviderSays, VoidPayment
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    EverycentError,
    NotConfirmable,
    NothingTried,
)
from everycent.proof.interleavings_kinds import ABSENT, FENCE_POINTS, NOON, Kind, Rules, step_of
from everycent.proof.interleavings_session import Operation

_AMOUNT = 400
_SENDING = Sending(at=NOON, until=NOON + timedelta(seconds=30), key_lifetime=timedelta(days=1))
_LOADS: Mapping[str, Any] = {
    "send": payment.load_authorise,
    "take": payment.load_capture,
    "withdraw": payment.load_void,
}
_STORES: Mapping[str, Any] = {
    "authorised": payment.store_authorise,
    "captured": payment.store_capture,
    "given up": payment.store_void,
}


def _load(name: str) -> Operation:
    """Return the first of an operation's transactions; who has to call next is told `due`."""

    async def load(tx: AsyncConnection, requests: Sequence[Any]) -> list[Any]:
        loaded: Loaded[Any] = await _LOADS[name](tx, requests, _SENDING)
        answers = {**loaded.claims.settled, **loaded.done}
        return [answers.get(request.key, "due") for request in requests]

    return load


def _store(name: str, state: str) -> Operation:
    """Return the second, with what the provider said in between."""

    async def store(tx: AsyncConnection, requests: Sequence[Any]) -> list[Any]:
        due = [Due(request, cast("Any", None), {}) for request in requests]
        heard = {request.key: Heard(_says(request.key, state)) for request in requests}
        answers = await _STORES[name](tx, due, heard, NOON)
        return [answers[request.key] for request in requests]

    return store


def _says(key: str, state: str) -> ProviderSays:
    return ProviderSays.model_validate(
        {
            "state": state,
            "provider_id": f"int_{key}",
            "currency": "EUR",
            "amount_minor": _AMOUNT,
            "captured_minor": _AMOUNT if state == "captured" else 0,
            "held": state == "cancelled",
        }
    )


def _request(operation: str, place: str, number: int) -> Any:
    step = step_of(place, number)
    if operation in ("send", "authorised"):
        return AuthorisePayment(
            **step, amount_minor=_AMOUNT, currency="EUR", method="card", card_token="tok_ok"
        )
    if operation in ("take", "captured"):
        return CapturePayment(**step)
    return VoidPayment(**step, reason="given up")


async def _nothing(tx: AsyncConnection, places: Sequence[str]) -> None:
    """Payments need no resource: the card is the provider's."""


def _shows(answer: Any) -> str:
    if isinstance(answer, str | EverycentError):
        return str(answer)
    return str(answer["kind"] if isinstance(answer, dict) else answer.kind)


_RULES: Rules = {
    (ABSENT, "send"): ("SENT", "due"),
    (ABSENT, "take"): (ABSENT, NothingTried),
    (ABSENT, "withdraw"): ("CANCELLED", "voided"),
    ("SENT", "send"): ("SENT", "due"),
    ("SENT", "authorised"): ("HELD", "authorised"),
    ("SENT", "take"): ("SENT", NotConfirmable),
    ("SENT", "captured"): ("SENT", NotConfirmable),
    ("SENT", "withdraw"): ("CANCELLING", "due"),
    ("SENT", "given up"): ("CANCELLED", "voided"),
    ("HELD", "send"): ("HELD", "authorised"),
    ("HELD", "authorised"): ("HELD", "authorised"),
    ("HELD", "take"): ("HELD", "due"),
    ("HELD", "captured"): ("CONFIRMED", "captured"),
    ("HELD", "withdraw"): ("CANCELLING HELD", "due"),
    ("HELD", "given up"): ("CANCELLED", "voided"),
    ("CANCELLING", "send"): ("CANCELLING", AlreadyCancelled),
    ("CANCELLING", "authorised"): ("CANCELLING", AlreadyCancelled),
    ("CANCELLING", "take"): ("CANCELLING", NotConfirmable),
    ("CANCELLING", "captured"): ("CANCELLING", NotConfirmable),
    ("CANCELLING", "withdraw"): ("CANCELLING", "due"),
    ("CANCELLING", "given up"): ("CANCELLED", "voided"),
    ("CANCELLING HELD", "send"): ("CANCELLING HELD", "authorised"),
    ("CANCELLING HELD", "authorised"): ("CANCELLING HELD", "authorised"),
    ("CANCELLING HELD", "take"): ("CANCELLING HELD", NotConfirmable),
    ("CANCELLING HELD", "captured"): ("CANCELLING HELD", NotConfirmable),
    ("CANCELLING HELD", "withdraw"): ("CANCELLING HELD", "due"),
    ("CANCELLING HELD", "given up"): ("CANCELLED", "voided"),
    ("CONFIRMED", "send"): ("CONFIRMED", "authorised"),
    ("CONFIRMED", "authorised"): ("CONFIRMED", "authorised"),
    ("CONFIRMED", "take"): ("CONFIRMED", "captured"),
    ("CONFIRMED", "captured"): ("CONFIRMED", "captured"),
    ("CONFIRMED", "withdraw"): ("CONFIRMED", AlreadyConfirmed),
    ("CONFIRMED", "given up"): ("CONFIRMED", AlreadyConfirmed),
    ("CANCELLED", "send"): ("CANCELLED", AlreadyCancelled),
    ("CANCELLED", "authorised"): ("CANCELLED", AlreadyCancelled),
    ("CANCELLED", "take"): ("CANCELLED", NotConfirmable),
    ("CANCELLED", "captured"): ("CANCELLED", NotConfirmable),
    ("CANCELLED", "withdraw"): ("CANCELLED", "voided"),
    ("CANCELLED", "given up"): ("CANCELLED", "voided"),
}
_CONFIRM, _CLAIM = FENCE_POINTS["confirm"], FENCE_POINTS["try"]
_POINTS = {
    "send": _CLAIM,
    "authorised": _CLAIM,
    "take": _CONFIRM,
    "captured": _CONFIRM,
    "withdraw": _CLAIM,
    "given up": _CLAIM,
}
_OPERATIONS = {
    **{name: _load(name) for name in _LOADS},
    "authorised": _store("authorised", "authorised"),
    "captured": _store("captured", "captured"),
    "given up": _store("given up", "cancelled"),
}
_STATES = (
    "SELECT key, CASE WHEN state <> 'TRIED' THEN state"
    " ELSE (CASE WHEN cancelling AND try_answer IS NOT NULL THEN 'CANCELLING HELD'"
    " WHEN cancelling THEN 'CANCELLING' WHEN try_answer IS NOT NULL THEN 'HELD' ELSE 'SENT' END)"
    " END AS state FROM payment WHERE key = ANY(CAST(:keys AS text[]))"
)


def _payment(name: str, names: tuple[str, ...], starts: tuple[tuple[str, ...], ...]) -> Kind:
    return Kind(
        name=name,
        service="payment",
        table="payment",
        operations=_OPERATIONS,
        request=_request,
        prepare=_nothing,
        shows=_shows,
        states_query=_STATES,
        points=_POINTS,
        rules=_RULES,
        names=names,
        starts=starts,
        after=("withdraw", "given up", "send", "take"),
    )


# Before the first call; and while calls are under way, whose answers come only after the sending.
_BEFORE = ("send", "send", "take", "withdraw", "withdraw")
INTENT = _payment("payment before its call", _BEFORE, ((),))
PAYMENT = _payment("payment with its calls", tuple(_POINTS), (("send",), ("send", "authorised")))
