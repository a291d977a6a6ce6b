"""The writes themselves: each keeps out what the decision above it should never have let through.

Every function is called as if the decision had been wrong, or had been made on rows that have moved
since. The guard in the statement makes it hit no row, and the count of the rows tells.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import account, fence, inventory, ledger, order, payment, points
from everycent.database import provider_call as calls
from everycent.database.engine import Database
from everycent.database.provider_call import Heard, Sending
from everycent.domain.account import DebitBalance
from everycent.domain.fence import FenceState
from everycent.domain.inventory import Allocation, Reserved, ReserveStock, StockLine
from everycent.domain.ledger import Account
from everycent.domain.message import Message
from everycent.domain.order import CloseOrder, Decide, Decision, OrderResult, OrderStatus, Verdict
from everycent.domain.payment import (
    AuthorisePayment,
    CaptureRefused,
    PaymentStatus,
    ProviderSays,
    VoidPayment,
)
from everycent.domain.points import Purse
from everycent.errors import Unknown
from everycent.settings import ServiceName
from tests.conftest import NOON, TODAY
from tests.database.test_constraints import call, captured, hold
from tests.database.test_constraints import payment as paid_row

HIT_NONE = r"hit 0 of 1|was not written|is missing"
Pools = dict[ServiceName, Database]


class Done(Message):
    text: str = "done"


@contextlib.asynccontextmanager
async def row(database: Database, statement: str, tenant: str) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction, make one row in it, and keep nothing of it afterwards."""
    async with database.engine.connect() as tx:
        if statement:
            await tx.execute(text(statement), {"t": tenant})
        yield tx
        await tx.rollback()


def key_of(tenant: str) -> str:
    return f"{tenant}/o/step"


# -- the fence


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize(
    "there",
    [
        pytest.param(hold(state="'CANCELLED'"), id="cancelled"),
        pytest.param(hold(try_answer="'1'"), id="answered"),
        pytest.param("", id="absent"),
    ],
)
async def test_a_try_is_stored_on_an_open_row_only(
    databases: Pools, tenant: str, there: str
) -> None:
    """A tombstone stays one and a first answer stays the first.

    Red when: `tries_stored` loses a condition, or `store_tries` does not count.
    """
    async with row(databases["account"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await fence.store_tries(tx, account.HOLD, {key_of(tenant): Done()})


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize(
    ("there", "state"),
    [
        pytest.param(hold(state="'CANCELLED'"), FenceState.CONFIRMED, id="cancelled"),
        pytest.param(hold(end_answer="'1'"), FenceState.CANCELLED, id="answered"),
        pytest.param("", FenceState.CANCELLED, id="absent"),
    ],
)
async def test_an_end_is_stored_once_and_on_an_open_row_only(
    databases: Pools, tenant: str, there: str, state: FenceState
) -> None:
    """What is cancelled is not confirmed, and the first end stays.

    Red when: `store_ends` loses a condition, or does not count.
    """
    request = DebitBalance(key=key_of(tenant), at=NOON, opened_on=TODAY)
    async with row(databases["account"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await fence.store_ends(tx, account.HOLD, [request], {request.key: Done()}, state=state)


# -- what there is of something


@pytest.mark.parametrize(
    "after",
    [Purse(-1, 0, 0), Purse(0, -1, 0), Purse(0, 0, -1)],
    ids=["available", "frozen", "debt"],
)
async def test_points_that_are_not_there_do_not_move(
    databases: Pools, tenant: str, after: Purse
) -> None:
    """Red when: the UPDATE of `points._move` loses the condition of that column."""
    there = "INSERT INTO points_account (tenant, customer) VALUES (:t, 'c')"
    async with row(databases["points"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await points._move(tx, {(tenant, "c"): Purse()}, {(tenant, "c"): after})


async def test_stock_without_a_row_does_not_move(databases: Pools, tenant: str) -> None:
    async with row(databases["inventory"], "", tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await inventory._move(tx, {(tenant, "LAMP"): 1}, "free = free + units")


async def test_a_reservation_is_written_whole(databases: Pools, tenant: str) -> None:
    """Its SKU has no row: neither the units nor the answer may stand alone."""
    lines = (StockLine(sku="LAMP", units=1),)
    wish = ReserveStock(key=key_of(tenant), at=NOON, opened_on=TODAY, lines=lines)
    decided = Allocation({wish.key: Reserved(lines=lines)}, {(tenant, "LAMP"): 1})
    async with row(databases["inventory"], "", tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await inventory._store_reservations(tx, [wish], decided)


async def test_totals_are_written_over_those_that_were_read(databases: Pools, tenant: str) -> None:
    there = (
        "INSERT INTO ledger_account (tenant, account, currency, version) VALUES (:t, 'a', 'EUR', 7)"
    )
    place = (tenant, "a", "EUR")
    async with row(databases["ledger"], there, tenant) as tx:
        await ledger._update_accounts(tx, {place: Account(version=7)})
        with pytest.raises(AssertionError, match=HIT_NONE):
            await ledger._update_accounts(tx, {place: Account(version=7)})


async def test_every_account_of_a_transfer_is_locked(databases: Pools, tenant: str) -> None:
    async with row(databases["ledger"], "", tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await ledger._lock(tx, [(tenant, "a", "EUR")])


# -- the order's row, as if it had moved after it was read


async def test_a_stored_result_is_not_written_over(
    databases: Pools, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = (
        "INSERT INTO shop_order (tenant, order_id, customer, currency, total_minor, request,"
        " request_hash, hash_version, driver, run, opened_at, opened_on, window_ends_at, moved_at,"
        " decision, status, result) VALUES (:t, 'o', 'c', 'EUR', 1, '{}', 'h', 1, 'd', 'r',"
        " '2026-01-02', '2026-01-02', '2026-01-02', '2026-01-02', 'ABORTED', 'REJECTED', '{}')"
    )
    result = OrderResult(
        tenant=tenant, order_id="o", status=OrderStatus.REJECTED, decision=Decision.ABORTED,
        reason="", refusals=(), total_minor=1, captured_minor=0, refunded_minor=0, points_used=0,
        points_earned=0, undone=(),
    )  # fmt: skip
    read = order._rows

    async def as_before(*arguments: Any, **named: Any) -> Mapping[Any, Any]:
        rows = await read(*arguments, **named)
        return {key: _Stale(found) for key, found in rows.items()}

    monkeypatch.setattr(order, "_rows", as_before)
    async with row(databases["order"], there, tenant) as tx:
        close = CloseOrder(tenant=tenant, order_id="o", at=NOON, result=result)
        with pytest.raises(AssertionError, match=HIT_NONE):
            await order.close_order(tx, [close])


class _Stale:
    """A row as it was before it had a result."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return None if name == "result" else getattr(self._row, name)


async def test_a_decision_moves_only_where_it_may(databases: Pools, tenant: str) -> None:
    there = (
        "INSERT INTO shop_order (tenant, order_id, customer, currency, total_minor, request,"
        " request_hash, hash_version, driver, run, opened_at, opened_on, window_ends_at, moved_at,"
        " decision) VALUES (:t, 'o', 'c', 'EUR', 1, '{}', 'h', 1, 'd', 'r',"
        " '2026-01-02', '2026-01-02', '2026-01-02', '2026-01-02', 'COMMITTING')"
    )
    to = Decision.ABORTING
    wish = Decide(tenant=tenant, order_id="o", at=NOON, to=to, run="r")
    key = (tenant, "o")
    async with row(databases["order"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await order._store_decisions(tx, {key: wish}, {key: Verdict(decision=to)})


# -- payments


def void(tenant: str) -> VoidPayment:
    return VoidPayment(key=key_of(tenant), at=NOON, opened_on=TODAY, reason="r")


VOIDED = PaymentStatus.VOIDED


async def refuse(tx: AsyncConnection, key: str, _tenant: str) -> None:
    await payment._refuse_captures(tx, {key: CaptureRefused(state="declined", code="c")})


@pytest.mark.parametrize(
    ("there", "write"),
    [
        pytest.param(
            captured(100), lambda tx, k, _: payment._move(tx, {k: VOIDED}),
            id="money that was taken stays",
        ),
        pytest.param(
            paid_row(end_answer="'1'"), lambda tx, k, _: payment._move(tx, {k: VOIDED}),
            id="an ended payment keeps its status",
        ),
        pytest.param(
            paid_row(state="'CANCELLED'"), lambda tx, _, t: payment._mark_cancelling(tx, [void(t)]),
            id="only a payment that was tried is being cancelled",
        ),
        pytest.param(
            paid_row(state="'CANCELLED'"), refuse,
            id="only a payment that was tried refuses its capture",
        ),
        pytest.param(
            paid_row(capture_refusal="'1'"), refuse,
            id="the first refusal stays",
        ),
        pytest.param(
            captured(100), lambda tx, k, _: payment._book_refunded(tx, {k: 101}),
            id="no more goes back than was taken",
        ),
        pytest.param(
            captured(100), lambda tx, k, _: payment._book_refunded(tx, {k: -1}),
            id="no less than nothing goes back",
        ),
    ],
)  # fmt: skip
async def test_a_payment_moves_only_where_it_may(
    databases: Pools, tenant: str, there: str, write: Any
) -> None:
    """Red when: the UPDATE loses its condition, or its rows are not counted."""
    async with row(databases["payment"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await write(tx, key_of(tenant), tenant)


async def status_after(tx: AsyncConnection, tenant: str, guard: str) -> str:
    await payment._set_status(tx, [key_of(tenant)], PaymentStatus.UNKNOWN, guard)
    return await status_of(tx, tenant)


async def status_of(tx: AsyncConnection, tenant: str) -> str:
    read = text("SELECT status FROM payment WHERE key = :k")
    return str(await tx.scalar(read, {"k": key_of(tenant)}))


@pytest.mark.parametrize(
    "there",
    [
        pytest.param(paid_row(state="'CANCELLED'"), id="cancelled"),
        pytest.param(paid_row(cancelling="true", cancelling_since="'2026-01-02'"), id="cancelling"),
    ],
)
async def test_a_payment_that_is_given_up_keeps_its_status(
    databases: Pools, tenant: str, there: str
) -> None:
    async with row(databases["payment"], there, tenant) as tx:
        assert await status_after(tx, tenant, "true") == "NEW"


async def test_a_status_is_set_only_where_the_caller_means_it(
    databases: Pools, tenant: str
) -> None:
    async with row(databases["payment"], paid_row(), tenant) as tx:
        assert await status_after(tx, tenant, "try_answer IS NULL") == "NEW"


async def test_a_refused_payment_is_not_in_doubt(databases: Pools, tenant: str) -> None:
    there = paid_row(status="'REFUSED'", capture_refusal="'1'")
    async with row(databases["payment"], there, tenant) as tx:
        await payment._set_in_doubt(tx, {key_of(tenant): Unknown("no answer")})
        assert await status_of(tx, tenant) == "REFUSED"


async def test_a_payment_in_doubt_stays_so_while_it_is_sent_again(
    databases: Pools, tenant: str
) -> None:
    """People see that an earlier attempt may have taken money until that is settled."""
    wish = AuthorisePayment(
        key=key_of(tenant), at=NOON, opened_on=TODAY, amount_minor=1, currency="EUR",
        method="card", card_token="t",
    )  # fmt: skip
    sending = Sending(NOON, NOON + timedelta(minutes=1), timedelta(days=1))
    async with row(databases["payment"], "", tenant) as tx:
        await payment.load_authorise(tx, [wish], sending)
        assert await status_of(tx, tenant) == "SENT"
        await payment._set_in_doubt(tx, {wish.key: Unknown("no answer")})
        await payment.load_authorise(tx, [wish], sending)
        assert await status_of(tx, tenant) == "UNKNOWN"


async def test_the_providers_first_id_of_a_payment_stays(databases: Pools, tenant: str) -> None:
    """Red when: `_note` does not ask whether there is one: then the trigger speaks."""
    says = ProviderSays(state="authorised", provider_id="int_2")
    async with row(databases["payment"], paid_row(provider_id="'int_1'"), tenant) as tx:
        await payment._note(tx, [void(tenant)], {key_of(tenant): Heard(says)}, NOON)


# -- calls


async def sends(tx: AsyncConnection, tenant: str) -> tuple[int, Any]:
    found = await tx.execute(
        text("SELECT open_sends, answer FROM provider_call WHERE key = :k"), {"k": key_of(tenant)}
    )
    return tuple(found.one())


ANSWERED = call(answer="'1'", answered_at="'2026-01-02'")


async def test_the_first_answer_of_a_call_stays_and_is_no_sending_any_more(
    databases: Pools, tenant: str
) -> None:
    """Red when: `answer_calls` or `note_calls` writes over an answer: then the trigger speaks."""
    key = key_of(tenant)
    async with row(databases["payment"], ANSWERED, tenant) as tx:
        await calls.answer_calls(tx, {key: Done()}, NOON)
        unsent = Heard(ProviderSays(state="absent"), unsent=frozenset({"refund"}))
        await calls.note_calls(tx, {key: unsent}, NOON)
        assert await sends(tx, tenant) == (1, 1)


@pytest.mark.parametrize(
    ("there", "request_hash"),
    [
        pytest.param(ANSWERED, "h", id="answered"),
        pytest.param(call(), "other", id="another request"),
    ],
)
async def test_a_call_is_not_sent_again_when_it_must_not(
    databases: Pools, tenant: str, there: str, request_hash: str
) -> None:
    """Red when: `_write` loses a condition, or does not count."""
    key = key_of(tenant)
    async with row(databases["payment"], there, tenant) as tx:
        with pytest.raises(AssertionError, match=HIT_NONE):
            await calls._write(tx, [(key, key, request_hash, NOON)], NOON)


async def test_a_call_that_is_sent_again_is_counted(databases: Pools, tenant: str) -> None:
    key = key_of(tenant)
    async with row(databases["payment"], call(), tenant) as tx:
        await calls._write(tx, [(key, key, "h", NOON)], NOON)
        assert await sends(tx, tenant) == (2, None)
