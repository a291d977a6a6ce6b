"""What the simulator does with money: a payment's states, and who may move them where.

Each function runs in one transaction and answers with a status and a body. An answer of 200, 402
or 409 is final for its idempotency key; a `Problem` (nothing was done) is not kept.
"""

import secrets
import sqlite3
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from everycent.simulator import events
from everycent.simulator.store import Transaction, as_text, read_setting

Body = dict[str, Any]

_FEE_BASIS_POINTS = 150
_FEE_FIXED_MINOR = 25
_OVER = {
    "captured": "already_captured",
    "cancelled": "intent_cancelled",
    "declined": "intent_declined",
    "expired": "authorisation_expired",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP status and a JSON body."""

    status: int
    body: Body
    headers: dict[str, str] = field(default_factory=dict)


class Problem(Exception):
    """The request is wrong as it stands and nothing was done."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = failure(status, code, message)


@dataclass(frozen=True)
class Moment:
    """What an operation runs under: the simulator's time, and a decline that was ordered."""

    at: datetime
    authorisation_lifetime: timedelta
    decline_code: str | None = None


def failure(status: int, code: str, message: str, intent: Body | None = None) -> Answer:
    """Return an error object; `intent` tells the caller how the payment stands."""
    error: Body = {"code": code, "message": message}
    return Answer(status, {"error": error if intent is None else {**error, "intent": intent}})


def create(tx: Transaction, moment: Moment, wanted: Body) -> Answer:
    """Open a payment; no money is asked for before it is confirmed."""
    row = {
        **{name: wanted[name] for name in ("reference", "method", "capture", "currency")},
        "id": f"int_{secrets.token_hex(12)}",
        "amount_minor": wanted["amount_minor"],
        "state": "declined" if moment.decline_code else "requires_confirmation",
        "decline_code": moment.decline_code,
        "created_at": as_text(moment.at),
    }
    names = ", ".join(row)
    tx.execute(
        f"INSERT INTO intent ({names}) VALUES ({', '.join(f':{name}' for name in row)})",  # noqa: S608
        row,
    )
    intent = read(tx, row["id"])
    if moment.decline_code:
        return _declined(tx, moment, intent)
    events.emit(tx, "intent.created", moment.at, intent=intent)
    return Answer(200, intent)


def confirm(tx: Transaction, moment: Moment, intent_id: str) -> Answer:
    """Ask the card for the money, or send the customer to the redirect page."""
    intent = _touch(tx, moment, intent_id)
    if intent["state"] != "requires_confirmation":
        return _conflict(intent, "already_confirmed")
    if moment.decline_code:
        return _declined(tx, moment, intent)
    if intent["method"] == "redirect":
        return _moved(tx, moment, intent, "requires_action")
    return _authorise(tx, moment, intent)


def customer_pays(tx: Transaction, moment: Moment, intent_id: str) -> Answer:
    """Do what the customer does on the redirect page."""
    intent = _touch(tx, moment, intent_id)
    if intent["state"] != "requires_action":
        return _conflict(intent, "no_payment_awaited")
    if moment.decline_code:
        return _declined(tx, moment, intent)
    return _authorise(tx, moment, intent)


def capture(tx: Transaction, moment: Moment, intent_id: str, amount_minor: int | None) -> Answer:
    """Take the authorised money, once, whole or in part; what is not taken is released."""
    intent = _touch(tx, moment, intent_id)
    amount = intent["amount_minor"] if amount_minor is None else amount_minor
    if intent["state"] != "authorised":
        return _conflict(intent, "not_authorised")
    if amount > intent["amount_minor"]:
        return failure(409, "capture_exceeds_authorised", f"{amount} is too much", intent)
    if moment.decline_code:
        return _declined(tx, moment, intent)
    return _take(tx, moment, intent, amount)


def cancel(tx: Transaction, moment: Moment, intent_id: str) -> Answer:
    """Give up a payment that was not captured; nothing can confirm or capture it any more."""
    intent = _touch(tx, moment, intent_id)
    if intent["state"] == "cancelled":
        return Answer(200, intent)
    if intent["state"] in _OVER:
        return _conflict(intent, "not_cancellable")
    if moment.decline_code:
        return failure(402, moment.decline_code, "the provider declined the cancel", intent)
    return _moved(tx, moment, intent, "cancelled")


def refund(
    tx: Transaction, moment: Moment, intent_id: str, amount_minor: int, reference: str
) -> Answer:
    """Give captured money back, in parts if wanted, never more than was captured."""
    intent = _touch(tx, moment, intent_id)
    if intent["state"] != "captured":
        return _conflict(intent, "not_captured")
    if intent["refunded_minor"] + amount_minor > intent["captured_minor"]:
        return failure(409, "refund_exceeds_captured", f"{amount_minor} is too much", intent)
    state = "failed" if moment.decline_code else "succeeded"
    refund_id = _book(tx, moment, intent_id, "refund", state, reference, amount_minor)
    if state == "succeeded":
        tx.execute(
            "UPDATE intent SET refunded_minor = refunded_minor + ? WHERE id = ?",
            (amount_minor, intent_id),
        )
    after, body = read(tx, intent_id), read_refund(tx, refund_id)
    events.emit(tx, f"refund.{state}", moment.at, intent=after, refund=body)
    if moment.decline_code:
        return failure(402, moment.decline_code, "the refund was declined", after)
    return Answer(200, body)


def look_up(tx: Transaction, moment: Moment, intent_id: str) -> Answer:
    """Return how a payment stands now."""
    return Answer(200, _touch(tx, moment, intent_id))


def look_up_by_reference(tx: Transaction, moment: Moment, reference: str) -> Answer:
    """Return every payment opened under the merchant's reference, oldest first."""
    expire_due(tx, moment.at)
    rows = tx.execute("SELECT * FROM intent WHERE reference = ? ORDER BY seq", (reference,))
    return Answer(200, {"data": [_as_intent(tx, row) for row in rows.fetchall()]})


def look_up_refunds(tx: Transaction, reference: str) -> Answer:
    """Return every refund made under the merchant's reference, oldest first."""
    rows = tx.execute(f"{_REFUNDS} AND m.reference = ? ORDER BY m.seq", (reference,))
    return Answer(200, {"data": [_as_refund(row) for row in rows.fetchall()]})


def expire_due(tx: Transaction, at: datetime) -> None:
    """Let authorisations lapse whose time is over by the simulator's clock."""
    rows = tx.execute(
        "SELECT id FROM intent WHERE state = 'authorised' AND authorised_until <= ? ORDER BY seq",
        (as_text(at),),
    ).fetchall()
    for row in rows:
        tx.execute("UPDATE intent SET state = 'expired' WHERE id = ?", (row["id"],))
        events.emit(tx, "intent.expired", at, intent=read(tx, row["id"]))


def read(tx: Transaction, intent_id: str) -> Body:
    """Return a payment as the API shows it; raises Problem 404 when there is none."""
    row = tx.execute("SELECT * FROM intent WHERE id = ?", (intent_id,)).fetchone()
    if row is None:
        raise Problem(404, "not_found", f"there is no intent {intent_id!r}")
    return _as_intent(tx, row)


def read_refund(tx: Transaction, refund_id: str) -> Body:
    """Return a refund as the API shows it."""
    return _as_refund(tx.execute(f"{_REFUNDS} AND m.id = ?", (refund_id,)).fetchone())


_REFUNDS = (
    "SELECT m.*, i.currency FROM movement m JOIN intent i ON i.id = m.intent_id"
    " WHERE m.kind = 'refund'"
)


def _touch(tx: Transaction, moment: Moment, intent_id: str) -> Body:
    expire_due(tx, moment.at)
    return read(tx, intent_id)


def _conflict(intent: Body, otherwise: str) -> Answer:
    code = _OVER.get(intent["state"], otherwise)
    return failure(409, code, f"the intent is {intent['state']}", intent)


def _declined(tx: Transaction, moment: Moment, intent: Body) -> Answer:
    tx.execute(
        "UPDATE intent SET state = 'declined', decline_code = ? WHERE id = ?",
        (moment.decline_code, intent["id"]),
    )
    after = read(tx, intent["id"])
    events.emit(tx, "intent.declined", moment.at, intent=after)
    return failure(402, str(moment.decline_code), "the payment was declined", after)


def _moved(tx: Transaction, moment: Moment, intent: Body, state: str) -> Answer:
    tx.execute("UPDATE intent SET state = ? WHERE id = ?", (state, intent["id"]))
    after = read(tx, intent["id"])
    events.emit(tx, f"intent.{state}", moment.at, intent=after)
    return Answer(200, after)


def _authorise(tx: Transaction, moment: Moment, intent: Body) -> Answer:
    tx.execute(
        "UPDATE intent SET authorised_until = ? WHERE id = ?",
        (as_text(moment.at + moment.authorisation_lifetime), intent["id"]),
    )
    answer = _moved(tx, moment, intent, "authorised")
    if intent["capture"] == "manual":
        return answer
    return _take(tx, moment, intent, intent["amount_minor"])


def _take(tx: Transaction, moment: Moment, intent: Body, amount_minor: int) -> Answer:
    _book(tx, moment, intent["id"], "capture", "succeeded", intent["reference"], amount_minor)
    tx.execute(
        "UPDATE intent SET state = 'captured', captured_minor = ? WHERE id = ?",
        (amount_minor, intent["id"]),
    )
    after = read(tx, intent["id"])
    events.emit(tx, "intent.captured", moment.at, intent=after)
    return Answer(200, after)


def _book(
    tx: Transaction, moment: Moment, intent_id: str, kind: str, state: str, reference: str,
    amount_minor: int,
) -> str:  # fmt: skip
    movement_id = f"{'ref' if kind == 'refund' else 'cap'}_{secrets.token_hex(12)}"
    fee_minor = fee_of(amount_minor) if kind == "capture" else 0
    tx.execute(
        "INSERT INTO movement (id, intent_id, kind, state, reference, amount_minor, fee_minor, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (movement_id, intent_id, kind, state, reference, amount_minor, fee_minor,
         as_text(moment.at)),
    )  # fmt: skip
    return movement_id


def fee_of(amount_minor: int) -> int:
    """Return what the provider keeps of a capture: 1.5 % rounded half up, plus 25 minor units."""
    return (amount_minor * _FEE_BASIS_POINTS + 5_000) // 10_000 + _FEE_FIXED_MINOR


def _as_intent(tx: Transaction, row: sqlite3.Row) -> Body:
    names = (
        "id", "reference", "state", "method", "capture", "currency", "amount_minor",
        "captured_minor", "refunded_minor", "decline_code", "created_at", "authorised_until",
    )  # fmt: skip
    url = None
    if row["state"] == "requires_action":
        url = f"{read_setting(tx, 'public_url') or ''}/pay/{row['id']}"
    return {**{name: row[name] for name in names}, "redirect_url": url}


def _as_refund(row: sqlite3.Row) -> Body:
    names = ("id", "reference", "state", "amount_minor", "currency", "at")
    return {**{name: row[name] for name in names}, "intent_id": row["intent_id"]}
