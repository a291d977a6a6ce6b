"""Payments in SQL: what is written before a call to the provider, and what after it.

Every operation is a pair (design rule 10). `load_…` claims the rows, writes the intent of each call
and says which items have to talk to the provider; it is committed before the first call. `store_…`
claims the same rows again, so that a duplicate that was quicker is seen, and writes what the
provider said. No transaction is open between the two. Both are safe to be run again at any point:
after a lost reply, a crash, an Unknown COMMIT.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.database.provider_call import (
    Heard,
    Sending,
    answer_calls,
    call_key,
    note_calls,
    open_calls,
    read_ever_sent,
)
from everycent.domain.fence import FenceState
from everycent.domain.message import StepRequest, request_hash
from everycent.domain.payment import (
    AuthorisePayment,
    AwaitCustomer,
    CallName,
    CallPlan,
    Captured,
    CapturePayment,
    CaptureRefused,
    PaidAnyway,
    PaymentDeclined,
    PaymentRow,
    PaymentStatus,
    ProviderSays,
    RefundPayment,
    RefundRefused,
    RefundSays,
    Voided,
    VoidPayment,
    answer_authorise,
    answer_capture,
    answer_refund,
    answer_void,
    reserve_refunds,
)
from everycent.errors import AlreadyCancelled, NotConfirmable, Unknown

R = TypeVar("R", bound=StepRequest)

PAYMENT = fence.FenceTable(
    "payment",
    {"amount_minor": "bigint", "currency": "text", "method": "text", "card_token": "text"},
)
REFUND = fence.FenceTable(
    "refund", {"payment_key": "text", "amount_minor": "bigint", "currency": "text"}
)


@dataclass(frozen=True)
class Due(Generic[R]):
    """An item that has to talk to the provider, and what it may do with each of its calls."""

    request: R
    row: PaymentRow
    plans: Mapping[CallName, CallPlan]

    @property
    def is_repeat(self) -> bool:
        """Whether an earlier attempt's call may have happened, or may still."""
        return any(plan is not CallPlan.FIRST for plan in self.plans.values())


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """A batch after its first transaction: what is `done` needs no call, what is `due` does."""

    claims: fence.Claims[R]
    done: dict[str, Any]
    due: list[Due[R]]


async def load_authorise(
    tx: AsyncConnection, requests: Sequence[AuthorisePayment], sending: Sending
) -> Loaded[AuthorisePayment]:
    """Claim each attempt and write down its calls; a decided one needs none."""
    claims = await fence.claim_tries(tx, PAYMENT, requests)
    rows = await _read(tx, [r.key for r in claims.new])
    done = {key: _withdrawn(key) for key, row in rows.items() if row.cancelling}
    going = [r for r in claims.new if r.key not in done]
    owners = {r.key: _hash_of(rows[r.key]) for r in going}
    plans = await open_calls(tx, owners, ("create", "confirm"), sending)
    await _set_status(tx, [r.key for r in going], PaymentStatus.SENT, "status = 'NEW'")
    return Loaded(claims, done, [Due(r, rows[r.key], plans[r.key]) for r in going])


async def store_authorise(
    tx: AsyncConnection,
    due: Sequence[Due[AuthorisePayment]],
    heard: Mapping[str, Heard],
    at: datetime,
) -> dict[str, Any]:
    """Store each attempt's first answer; a Cancel that came meanwhile makes it AlreadyCancelled."""
    claims = await fence.claim_tries(tx, PAYMENT, [item.request for item in due])
    rows = await _read(tx, [r.key for r in claims.new])
    await _note(tx, claims.new, heard, at)
    decided: dict[str, Any] = {}
    for key, row in rows.items():
        says = heard[key].outcome
        if row.cancelling:
            decided[key] = _withdrawn(key)
        elif isinstance(says, ProviderSays):
            decided[key] = answer_authorise(row, says)
        else:
            decided[key] = says
    answers = _values(decided)
    statuses = {key: _status_of(answer) for key, answer in answers.items()}
    await _move(tx, statuses)
    await _set_in_doubt(tx, decided)
    await fence.store_tries(tx, PAYMENT, answers)
    await _settle_calls(tx, answers, heard, at)
    return {**claims.settled, **decided}


async def load_capture(
    tx: AsyncConnection, requests: Sequence[CapturePayment], sending: Sending
) -> Loaded[CapturePayment]:
    """Lock each payment to capture and write the call down; a stored refusal is given again."""
    claims = await fence.lock_for_confirm(tx, PAYMENT, requests)
    rows = await _read(tx, [r.key for r in claims.new])
    done = {key: end for key, row in rows.items() if (end := _capture_is_over(row)) is not None}
    going = [r for r in claims.new if r.key not in done]
    # What was paid by redirect is taken already: accepting it is a look-up, nothing is sent.
    cards = {r.key: _hash_of(rows[r.key]) for r in going if rows[r.key].method == "card"}
    plans = await open_calls(tx, cards, ("capture",), sending)
    return Loaded(claims, done, [Due(r, rows[r.key], plans.get(r.key, {})) for r in going])


async def store_capture(
    tx: AsyncConnection,
    due: Sequence[Due[CapturePayment]],
    heard: Mapping[str, Heard],
    at: datetime,
) -> dict[str, Any]:
    """Confirm what was captured; a definite refusal stays on the row until a Cancel ends it."""
    claims = await fence.lock_for_confirm(tx, PAYMENT, [item.request for item in due])
    rows = await _read(tx, [r.key for r in claims.new])
    await _note(tx, claims.new, heard, at)
    decided: dict[str, Any] = {}
    for key, row in rows.items():
        says, end = heard[key].outcome, _capture_is_over(row)
        if end is not None:
            decided[key] = end
        else:
            decided[key] = answer_capture(row, says) if isinstance(says, ProviderSays) else says
    captured = {k: a for k, a in decided.items() if isinstance(a, Captured)}
    await _move(tx, dict.fromkeys(captured, PaymentStatus.CAPTURED))
    done = [r for r in claims.new if r.key in captured]
    await fence.store_ends(tx, PAYMENT, done, captured, state=FenceState.CONFIRMED)
    fresh = {k: a for k, a in decided.items() if rows[k].capture_refusal is None}
    await _refuse_captures(tx, {k: a for k, a in fresh.items() if isinstance(a, CaptureRefused)})
    await _set_in_doubt(tx, fresh)
    await _settle_calls(tx, _values(fresh), heard, at)
    return {**claims.settled, **decided}


async def load_void(
    tx: AsyncConnection, requests: Sequence[VoidPayment], sending: Sending
) -> Loaded[VoidPayment]:
    """Cancel what was never sent at once; mark the rest, so that an attempt on its way sees it.

    An absent row gets its tombstone: nothing was sent, because the row comes before every call.
    """
    claims = await fence.claim_cancels(tx, PAYMENT, requests)
    rows = await _read(tx, [r.key for r in claims.new])
    tried = [r.key for r in claims.new if rows[r.key].state is FenceState.TRIED]
    sent = await read_ever_sent(tx, tried)
    done = {r.key: Voided(amount_minor=0) for r in claims.new if r.key not in sent}
    await _end_voids(tx, claims.new, rows, done)
    going = [r for r in claims.new if r.key in sent]
    await _mark_cancelling(tx, going)
    owners = {r.key: _hash_of(rows[r.key]) for r in going}
    plans = await open_calls(tx, owners, ("create", "void"), sending)
    return Loaded(claims, dict(done), [Due(r, rows[r.key], plans[r.key]) for r in going])


async def store_void(
    tx: AsyncConnection, due: Sequence[Due[VoidPayment]], heard: Mapping[str, Heard], at: datetime
) -> dict[str, Any]:
    """Cancel what the provider has given up; money that it had taken is booked as captured.

    Without an answer the row stays `cancelling`, and the void is sent again.
    """
    claims = await fence.claim_cancels(tx, PAYMENT, [item.request for item in due])
    rows = await _read(tx, [r.key for r in claims.new])
    await _note(tx, claims.new, heard, at)
    decided: dict[str, Any] = {}
    for key, row in rows.items():
        says = heard[key].outcome
        decided[key] = answer_void(row, says) if isinstance(says, ProviderSays) else says
    done = _values(decided)
    await _end_voids(tx, claims.new, rows, done)
    await _settle_calls(tx, done, heard, at)
    return {**claims.settled, **decided}


async def load_refund(
    tx: AsyncConnection, requests: Sequence[RefundPayment], sending: Sending
) -> Loaded[RefundPayment]:
    """Reserve each refund's money on its payment, or refuse it; then write the call down.

    What is reserved counts as refunded at once: refunds side by side share what is left.
    """
    claims = await fence.claim_tries(tx, REFUND, requests)
    payments = await _lock_payments(tx, {r.payment_key for r in claims.new})
    first = [r for r in claims.new if r.key not in claims.rows]
    allocated = reserve_refunds(payments, first)
    await _book_refunded(tx, allocated.reserved)
    await fence.store_tries(tx, REFUND, allocated.refused)
    going = [r for r in claims.new if r.key not in allocated.refused]
    plans = await open_calls(
        tx, {r.key: _refund_hash(claims, r) for r in going}, ("refund",), sending
    )
    due = [Due(r, payments[r.payment_key], plans[r.key]) for r in going]
    return Loaded(claims, dict(allocated.refused), due)


async def store_refund(
    tx: AsyncConnection,
    due: Sequence[Due[RefundPayment]],
    heard: Mapping[str, Heard],
    at: datetime,
) -> dict[str, Any]:
    """Store each refund's answer; a refused one gives back what it had reserved."""
    claims = await fence.claim_tries(tx, REFUND, [item.request for item in due])
    payments = await _lock_payments(tx, {r.payment_key for r in claims.new})
    await note_calls(tx, {r.key: heard[r.key] for r in claims.new}, at)
    decided: dict[str, Any] = {}
    for r in claims.new:
        says = heard[r.key].outcome
        decided[r.key] = (
            answer_refund(r, payments[r.payment_key], says)
            if isinstance(says, RefundSays)
            else says
        )
    answers = _values(decided)
    back: dict[str, int] = {}
    for r in claims.new:
        if isinstance(answers.get(r.key), RefundRefused):
            back[r.payment_key] = back.get(r.payment_key, 0) - r.amount_minor
    await _book_refunded(tx, back)
    await fence.store_tries(tx, REFUND, answers, done=FenceState.CONFIRMED)
    await _settle_calls(tx, answers, heard, at)
    return {**claims.settled, **decided}


async def read_payments(
    tx: AsyncConnection, requests: Sequence[AwaitCustomer]
) -> dict[str, PaymentRow]:
    """Return the payments of these keys as they stand; an absent one is left out."""
    return await _read(tx, [r.key for r in requests])


def _withdrawn(key: str) -> AlreadyCancelled:
    return AlreadyCancelled(f"{key} is being cancelled")


def _capture_is_over(row: PaymentRow) -> CaptureRefused | NotConfirmable | None:
    if row.capture_refusal is not None:
        return CaptureRefused.model_validate(row.capture_refusal)
    if row.cancelling:
        return NotConfirmable(f"{row.key} is being cancelled and cannot be captured")
    return None


def _values(decided: Mapping[str, Any]) -> dict[str, BaseModel]:
    return {k: answer for k, answer in decided.items() if isinstance(answer, BaseModel)}


def _status_of(answer: BaseModel) -> PaymentStatus:
    if isinstance(answer, PaymentDeclined):
        return PaymentStatus.REFUSED
    held = getattr(answer, "kind", "") == "authorised"
    return PaymentStatus.AUTHORISED if held else PaymentStatus.SENT


async def _end_voids(
    tx: AsyncConnection,
    requests: Sequence[VoidPayment],
    rows: Mapping[str, PaymentRow],
    done: Mapping[str, BaseModel],
) -> None:
    """Close the cancelled rows; a refused one keeps its status."""
    statuses = {
        key: PaymentStatus.CAPTURED if isinstance(answer, PaidAnyway) else PaymentStatus.VOIDED
        for key, answer in done.items()
        if rows[key].state is not FenceState.REFUSED
    }
    await _move(tx, statuses)
    ending = [r for r in requests if r.key in done]
    await fence.store_ends(tx, PAYMENT, ending, done, state=FenceState.CANCELLED)


async def _read(
    tx: AsyncConnection, keys: Iterable[str], *, lock: str = ""
) -> dict[str, PaymentRow]:
    """Read payments in key order; their fence is locked already, or `lock` says how."""
    wanted = list(keys)
    if not wanted:
        return {}
    result = await tx.execute(
        sql(
            "SELECT key, state, status, request_hash, amount_minor, currency, method, card_token,"
            " try_answer, provider_id, captured_minor, refunded_minor, cancelling, capture_refusal"
            " FROM payment WHERE key = ANY(CAST(:keys AS text[]))"
            f' ORDER BY key COLLATE "C" {lock}'
        ),
        {"keys": wanted},
    )
    return {row.key: _as_row(row) for row in result}


def _as_row(row: Any) -> PaymentRow:
    return PaymentRow(
        key=row.key,
        state=FenceState(row.state),
        status=PaymentStatus(row.status),
        request_hash=row.request_hash,
        amount_minor=row.amount_minor or 0,
        currency=row.currency or "",
        method=row.method,
        card_token=row.card_token,
        try_answer=row.try_answer,
        provider_id=row.provider_id,
        captured_minor=row.captured_minor,
        refunded_minor=row.refunded_minor,
        cancelling=row.cancelling,
        capture_refusal=row.capture_refusal,
    )


async def _lock_payments(tx: AsyncConnection, keys: Iterable[str]) -> dict[str, PaymentRow]:
    """Lock the payments that refunds draw on: resource rows, after the refunds' own keys."""
    return await _read(tx, sorted(keys, key=str.encode), lock="FOR NO KEY UPDATE")


async def _move(tx: AsyncConnection, statuses: Mapping[str, PaymentStatus]) -> None:
    """Give each row its status, and with CAPTURED its money; the rows are locked and not final."""
    if not statuses:
        return
    result = await tx.execute(
        sql(
            "UPDATE payment AS p SET status = new.status, cancelling = false,"
            " captured_minor = CASE WHEN new.status = 'CAPTURED' THEN p.amount_minor ELSE 0 END"
            " FROM unnest(CAST(:keys AS text[]), CAST(:statuses AS text[])) AS new (key, status)"
            " WHERE p.key = new.key AND p.captured_minor = 0 AND p.end_answer IS NULL"
        ),
        {"keys": list(statuses), "statuses": list(statuses.values())},
    )
    fence.assert_all_written(result, len(statuses))


async def _note(
    tx: AsyncConnection, requests: Sequence[StepRequest], heard: Mapping[str, Heard], at: datetime
) -> None:
    """Store the answers of the calls, and the provider's id of a payment as soon as it is known."""
    items = {r.key: heard[r.key] for r in requests}
    await note_calls(tx, items, at)
    ids: dict[str, str] = {}
    for key, item in items.items():
        for says in (item.outcome, *item.answers.values()):
            if isinstance(says, ProviderSays) and says.provider_id:
                ids[key] = says.provider_id
    if ids:
        await tx.execute(
            sql(
                "UPDATE payment AS p SET provider_id = new.provider_id"
                " FROM unnest(CAST(:keys AS text[]), CAST(:ids AS text[]))"
                " AS new (key, provider_id)"
                " WHERE p.key = new.key AND p.provider_id IS NULL"
            ),
            {"keys": list(ids), "ids": list(ids.values())},
        )


async def _settle_calls(
    tx: AsyncConnection, decided: Mapping[str, BaseModel], heard: Mapping[str, Heard], at: datetime
) -> None:
    """Answer a decided item's open calls by what decided it, perhaps a look-up or a void."""
    names: tuple[CallName, ...] = ("create", "confirm", "capture", "void", "refund")
    answers: dict[str, BaseModel] = {}
    for key in decided:
        says = heard[key].outcome
        assert isinstance(says, BaseModel), f"{key} was decided without an answer"
        answers |= {call_key(key, name): says for name in names}
    await answer_calls(tx, answers, at)


def _hash_of(row: PaymentRow) -> str:
    assert row.request_hash is not None, f"{row.key} is a tombstone: it sends nothing"
    return row.request_hash


def _refund_hash(claims: fence.Claims[RefundPayment], request: RefundPayment) -> str:
    row = claims.rows.get(request.key)
    if row is not None and row.request_hash is not None:
        return row.request_hash
    return request_hash(request, request.HASHED)


async def _set_status(
    tx: AsyncConnection, keys: Sequence[str], status: PaymentStatus, guard: str
) -> None:
    """Set the status of the rows that are still open and pass the guard."""
    if not keys:
        return
    await tx.execute(
        sql(
            "UPDATE payment SET status = :status WHERE key = ANY(CAST(:keys AS text[]))"
            f" AND state = 'TRIED' AND NOT cancelling AND {guard}"
        ),
        {"keys": list(keys), "status": status},
    )


async def _set_in_doubt(tx: AsyncConnection, decided: Mapping[str, Any]) -> None:
    """Show the payments whose call got no answer as UNKNOWN; one that is refused is not."""
    in_doubt = [key for key, answer in decided.items() if isinstance(answer, Unknown)]
    await _set_status(tx, in_doubt, PaymentStatus.UNKNOWN, "capture_refusal IS NULL")


async def _mark_cancelling(tx: AsyncConnection, requests: Sequence[VoidPayment]) -> None:
    if not requests:
        return
    result = await tx.execute(
        sql(
            "UPDATE payment AS p SET cancelling = true,"
            " cancelling_since = coalesce(p.cancelling_since, new.at)"
            " FROM unnest(CAST(:keys AS text[]), CAST(:ats AS timestamptz[])) AS new (key, at)"
            " WHERE p.key = new.key AND p.state = 'TRIED'"
        ),
        {"keys": [r.key for r in requests], "ats": [r.at for r in requests]},
    )
    fence.assert_all_written(result, len(requests))


async def _refuse_captures(tx: AsyncConnection, refused: Mapping[str, CaptureRefused]) -> None:
    if not refused:
        return
    result = await tx.execute(
        sql(
            "UPDATE payment AS p SET status = 'REFUSED', capture_refusal = new.refusal::jsonb"
            " FROM unnest(CAST(:keys AS text[]), CAST(:refusals AS text[])) AS new (key, refusal)"
            " WHERE p.key = new.key AND p.state = 'TRIED' AND p.capture_refusal IS NULL"
        ),
        {"keys": list(refused), "refusals": [a.model_dump_json() for a in refused.values()]},
    )
    fence.assert_all_written(result, len(refused))


async def _book_refunded(tx: AsyncConnection, minor: Mapping[str, int]) -> None:
    """Add to what is refunded, or take it back, within what was captured; the rows are locked."""
    if not minor:
        return
    result = await tx.execute(
        sql(
            "UPDATE payment AS p SET refunded_minor = p.refunded_minor + new.minor"
            " FROM unnest(CAST(:keys AS text[]), CAST(:minor AS bigint[])) AS new (key, minor)"
            " WHERE p.key = new.key"
            " AND p.refunded_minor + new.minor BETWEEN 0 AND p.captured_minor"
        ),
        {"keys": list(minor), "minor": list(minor.values())},
    )
    fence.assert_all_written(result, len(minor))
