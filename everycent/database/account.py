"""Stored balances in SQL. A hold is the fence of its own frozen amount."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.domain.account import (
    CREDIT_ANSWERS,
    DEBIT_ANSWERS,
    DEPOSIT_ANSWERS,
    FREEZE_ANSWERS,
    UNFREEZE_ANSWERS,
    AccountId,
    BalanceCredited,
    BalanceDebited,
    BalanceUnfrozen,
    CreditAnswer,
    CreditBalance,
    DebitBalance,
    Deposit,
    FreezeAnswer,
    FreezeBalance,
    Funds,
    Hold,
    UnfreezeBalance,
    credit,
    debit,
    freeze,
    unfreeze,
)
from everycent.domain.fence import FenceState
from everycent.domain.message import StepRequest
from everycent.errors import EverycentError

_COLUMNS = {"account": "text", "currency": "text", "amount_minor": "bigint"}
HOLD = fence.FenceTable("balance_hold", _COLUMNS)
CREDIT = fence.FenceTable("balance_credit", {**_COLUMNS, "kind": "text"})


async def freeze_balance(
    tx: AsyncConnection, requests: Sequence[FreezeBalance]
) -> list[FreezeAnswer | EverycentError]:
    """Freeze each amount or refuse it; a repeated key gets its first answer."""
    claims = await fence.claim_tries(tx, HOLD, requests)
    funds = await _lock_accounts(tx, {r.account_id for r in claims.new})
    decided = freeze(funds, claims.new)
    await _move(tx, decided.moved, available=-1, frozen=+1)
    await fence.store_tries(tx, HOLD, decided.answers)
    return claims.in_order(requests, decided.answers, FREEZE_ANSWERS)


async def debit_balance(
    tx: AsyncConnection, requests: Sequence[DebitBalance]
) -> list[BalanceDebited | EverycentError]:
    """Spend what each hold froze; what moves comes from its row, never from the call."""
    claims = await fence.lock_for_confirm(tx, HOLD, requests)
    holds = await _holds_of(tx, claims.new)
    decided = debit(await _lock_accounts(tx, {hold.account_id for hold in holds}), holds)
    await _move(tx, decided.moved, available=0, frozen=-1)
    await fence.store_ends(tx, HOLD, claims.new, decided.answers, state=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, DEBIT_ANSWERS)


async def unfreeze_balance(
    tx: AsyncConnection, requests: Sequence[UnfreezeBalance]
) -> list[BalanceUnfrozen | EverycentError]:
    """Give back what each hold froze; one that froze nothing gets its tombstone."""
    claims = await fence.claim_cancels(tx, HOLD, requests)
    holds = await _holds_of(tx, [r for r in claims.new if _holds(claims, r.key)])
    decided = unfreeze(await _lock_accounts(tx, {hold.account_id for hold in holds}), holds)
    await _move(tx, decided.moved, available=+1, frozen=-1)
    nothing = BalanceUnfrozen(amount_minor=0)
    answers = {r.key: decided.answers.get(r.key, nothing) for r in claims.new}
    await fence.store_ends(tx, HOLD, claims.new, answers, state=FenceState.CANCELLED)
    return claims.in_order(requests, answers, UNFREEZE_ANSWERS)


async def deposit(
    tx: AsyncConnection, requests: Sequence[Deposit]
) -> list[BalanceCredited | EverycentError]:
    """Put each amount into its account, which is opened when it is new."""
    claims = await fence.claim_tries(tx, CREDIT, requests)
    await _open_accounts(tx, {r.account_id for r in claims.new})
    answers = await _credit(tx, claims.new)
    return claims.in_order(requests, answers, DEPOSIT_ANSWERS)


async def credit_balance(
    tx: AsyncConnection, requests: Sequence[CreditBalance]
) -> list[CreditAnswer | EverycentError]:
    """Pay each amount back into its account; a refund never opens one: that would be a typo's."""
    claims = await fence.claim_tries(tx, CREDIT, requests)
    answers = await _credit(tx, claims.new)
    return claims.in_order(requests, answers, CREDIT_ANSWERS)


async def _credit(
    tx: AsyncConnection, requests: Sequence[Deposit] | Sequence[CreditBalance]
) -> Mapping[str, CreditAnswer]:
    funds = await _lock_accounts(tx, {r.account_id for r in requests})
    decided = credit(funds, requests)
    await _move(tx, decided.moved, available=+1, frozen=0)
    await fence.store_tries(tx, CREDIT, decided.answers, done=FenceState.CONFIRMED)
    return decided.answers


def _holds(claims: fence.Claims[UnfreezeBalance], key: str) -> bool:
    row = claims.rows.get(key)
    return row is not None and row.state is FenceState.TRIED


async def _holds_of(tx: AsyncConnection, requests: Sequence[StepRequest]) -> list[Hold]:
    """Read what the rows of these keys froze, in key order; the rows are locked."""
    if not requests:
        return []
    result = await tx.execute(
        sql(
            "SELECT key, account, currency, amount_minor FROM balance_hold"
            " WHERE key = ANY(CAST(:keys AS text[]))"
        ),
        {"keys": [r.key for r in requests]},
    )
    rows = {row.key: row for row in result}
    return [
        Hold(r.key, (r.tenant, rows[r.key].account, rows[r.key].currency), rows[r.key].amount_minor)
        for r in requests
    ]


async def _lock_accounts(
    tx: AsyncConnection, accounts: Iterable[AccountId]
) -> dict[AccountId, Funds]:
    """Lock the accounts' rows in the order of their key and return what they have."""
    wanted = sorted(accounts)
    if not wanted:
        return {}
    result = await tx.execute(
        sql(
            "SELECT tenant, account, currency, available, frozen FROM account"
            " WHERE (tenant, account, currency) IN (SELECT * FROM unnest(CAST(:tenants AS text[]),"
            " CAST(:accounts AS text[]), CAST(:currencies AS text[])))"
            ' ORDER BY tenant COLLATE "C", account COLLATE "C", currency COLLATE "C"'
            " FOR NO KEY UPDATE"
        ),
        _arrays(wanted),
    )
    return {
        (row.tenant, row.account, row.currency): Funds(row.available, row.frozen) for row in result
    }


async def _move(
    tx: AsyncConnection, amounts: Mapping[AccountId, int], *, available: int, frozen: int
) -> None:
    """Add each account's amount, times these signs, to its columns; the rows are locked.

    The guard stands beside the CHECK constraints: what is not there cannot be moved.
    """
    if not amounts:
        return
    result = await tx.execute(
        sql(
            "UPDATE account AS a SET available = a.available + sign.available * moved.amount,"
            " frozen = a.frozen + sign.frozen * moved.amount,"
            " balance = a.balance + (sign.available + sign.frozen) * moved.amount,"
            " version = version + 1"
            " FROM (SELECT CAST(:available AS bigint), CAST(:frozen AS bigint))"
            " AS sign (available, frozen),"
            " unnest(CAST(:tenants AS text[]), CAST(:accounts AS text[]),"
            " CAST(:currencies AS text[]), CAST(:amounts AS bigint[]))"
            " AS moved (tenant, account, currency, amount)"
            " WHERE a.tenant = moved.tenant AND a.account = moved.account"
            " AND a.currency = moved.currency"
            " AND a.available >= -sign.available * moved.amount"
            " AND a.frozen >= -sign.frozen * moved.amount"
        ),
        {
            **_arrays(list(amounts)),
            "amounts": list(amounts.values()),
            "available": available,
            "frozen": frozen,
        },
    )
    fence.assert_all_written(result, len(amounts))


async def _open_accounts(tx: AsyncConnection, accounts: Iterable[AccountId]) -> None:
    await tx.execute(
        sql(
            "INSERT INTO account (tenant, account, currency) SELECT tenant, account, currency"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:accounts AS text[]),"
            " CAST(:currencies AS text[])) AS new (tenant, account, currency)"
            ' ORDER BY tenant COLLATE "C", account COLLATE "C", currency COLLATE "C"'
            " ON CONFLICT (tenant, account, currency) DO NOTHING"
        ),
        _arrays(sorted(accounts)),
    )


def _arrays(accounts: Sequence[AccountId]) -> dict[str, Any]:
    return {
        "tenants": [tenant for tenant, _, _ in accounts],
        "accounts": [account for _, account, _ in accounts],
        "currencies": [currency for _, _, currency in accounts],
    }
