"""The ledger in SQL. A transfer is the fence of its own legs; keys come first, then accounts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.domain import ledger as books
from everycent.domain.fence import FenceState
from everycent.domain.ledger import (
    HOLD_ANSWERS,
    OPEN_ANSWERS,
    POST_ANSWERS,
    REVERSE_ANSWERS,
    SETTLE_ANSWERS,
    VOID_ANSWERS,
    Account,
    AccountKind,
    Accounts,
    Decision,
    Entry,
    HoldAnswer,
    HoldTransfer,
    Leg,
    LimitRule,
    OpenAccount,
    OpenAnswer,
    Original,
    Place,
    PostAnswer,
    PostTransfer,
    ReverseAnswer,
    ReverseTransfer,
    SettleTransfer,
    Transfer,
    TransferPosted,
    TransferVoided,
    VoidTransfer,
)
from everycent.domain.outcome import Refusal
from everycent.errors import EverycentError

TRANSFER = fence.FenceTable("transfer")
OPENING = fence.FenceTable("account_opening")


async def post_transfer(
    tx: AsyncConnection, requests: Sequence[PostTransfer]
) -> list[PostAnswer | EverycentError]:
    """Post the entries of each transfer, all or none; a repeated key gets its first answer."""
    claims = await fence.claim_tries(tx, TRANSFER, requests)
    transfers = [Transfer(r.key, r.at, r.entries) for r in claims.new]
    decided = books.post(await _open_and_lock(tx, transfers), transfers)
    await _insert_legs(tx, _accepted(transfers, decided))
    await _store(tx, decided)
    await fence.store_tries(tx, TRANSFER, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, POST_ANSWERS)


async def hold_transfer(
    tx: AsyncConnection, requests: Sequence[HoldTransfer]
) -> list[HoldAnswer | EverycentError]:
    """Make the entries of each transfer pending, all or none; they count against the limits."""
    claims = await fence.claim_tries(tx, TRANSFER, requests)
    transfers = [Transfer(r.key, r.at, r.entries) for r in claims.new]
    decided = books.hold(await _open_and_lock(tx, transfers), transfers)
    await _insert_legs(tx, _accepted(transfers, decided))
    await _store(tx, decided)
    await fence.store_tries(tx, TRANSFER, decided.answers)
    return claims.in_order(requests, decided.answers, HOLD_ANSWERS)


async def settle_transfer(
    tx: AsyncConnection, requests: Sequence[SettleTransfer]
) -> list[TransferPosted | EverycentError]:
    """Post what each transfer has pending; the legs come from its rows, never from the call."""
    claims = await fence.lock_for_confirm(tx, TRANSFER, requests)
    transfers = await _pending(tx, claims.new)
    decided = books.settle(await _lock(tx, _places(transfers)), transfers)
    await _store(tx, decided)
    await fence.store_ends(tx, TRANSFER, claims.new, decided.answers, state=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, SETTLE_ANSWERS)


async def void_transfer(
    tx: AsyncConnection, requests: Sequence[VoidTransfer]
) -> list[TransferVoided | EverycentError]:
    """Drop what each transfer has pending; one that has nothing gets its tombstone."""
    claims = await fence.claim_cancels(tx, TRANSFER, requests)
    transfers = await _pending(tx, [r for r in claims.new if _is_pending(claims, r.key)])
    decided = books.void(await _lock(tx, _places(transfers)), transfers)
    await _store(tx, decided)
    answers = {r.key: TransferVoided(balances=()) for r in claims.new} | decided.answers
    await fence.store_ends(tx, TRANSFER, claims.new, answers, state=FenceState.CANCELLED)
    return claims.in_order(requests, answers, VOID_ANSWERS)


async def reverse_transfer(
    tx: AsyncConnection, requests: Sequence[ReverseTransfer]
) -> list[ReverseAnswer | EverycentError]:
    """Post the opposite of each original, once per original, as a transfer of its own.

    An original's row is read without a lock: posted is a state that nothing leaves. Two reversals
    of one original meet at its accounts, so `_reversed_by` is read only after those are locked.
    """
    claims = await fence.claim_tries(tx, TRANSFER, requests)
    originals = await _originals(tx, {r.original_key for r in claims.new})
    transfers = [
        Transfer(r.key, r.at, originals[r.original_key].opposite())
        for r in claims.new
        if r.original_key in originals
    ]
    accounts = await _lock(tx, _places(transfers))
    reversed_by = await _reversed_by(tx, originals)
    decided = books.reverse(accounts, claims.new, originals, reversed_by)
    done = [r for r in claims.new if isinstance(decided.answers[r.key], TransferPosted)]
    await _insert_legs(tx, _accepted(transfers, decided))
    await _insert_reversals(tx, done)
    await _store(tx, decided)
    await fence.store_tries(tx, TRANSFER, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, REVERSE_ANSWERS)


async def open_account(
    tx: AsyncConnection, requests: Sequence[OpenAccount]
) -> list[OpenAnswer | EverycentError]:
    """Give each account its kind and limit; one that a transfer has made takes them if it can."""
    claims = await fence.claim_tries(tx, OPENING, requests)
    places = {(r.tenant, r.account, r.currency) for r in claims.new}
    await _add_accounts(tx, places)
    decided = books.open_accounts(await _lock(tx, places), claims.new)
    await _store(tx, decided)
    await fence.store_tries(tx, OPENING, decided.answers, done=FenceState.CONFIRMED)
    return claims.in_order(requests, decided.answers, OPEN_ANSWERS)


def _accepted(transfers: Iterable[Transfer], decided: Decision[Any]) -> list[Transfer]:
    return [t for t in transfers if not isinstance(decided.answers[t.key], Refusal)]


def _is_pending(claims: fence.Claims[VoidTransfer], key: str) -> bool:
    row = claims.rows.get(key)
    return row is not None and row.state is FenceState.TRIED


def _places(transfers: Iterable[Transfer]) -> set[Place]:
    return {place for transfer in transfers for place in transfer.places()}


async def _open_and_lock(tx: AsyncConnection, transfers: Sequence[Transfer]) -> Accounts:
    places = _places(transfers)
    await _add_accounts(tx, places)
    return await _lock(tx, places)


async def _add_accounts(tx: AsyncConnection, places: Iterable[Place]) -> None:
    """Make the accounts that are not there yet, in their order.

    Those that are there are left out by a plain read: ON CONFLICT alone would wait for whoever is
    changing a busy account, before its turn at the lock.
    """
    wanted = sorted(places)
    if not wanted:
        return
    await tx.execute(
        sql(
            "INSERT INTO ledger_account (tenant, account, currency)"
            f" SELECT tenant, account, currency FROM {_PLACES} WHERE NOT EXISTS (SELECT 1"
            " FROM ledger_account AS a WHERE (a.tenant, a.account, a.currency)"
            " = (place.tenant, place.account, place.currency))"
            ' ORDER BY tenant COLLATE "C", account COLLATE "C", currency COLLATE "C"'
            " ON CONFLICT (tenant, account, currency) DO NOTHING"
        ),
        _place_arrays(wanted),
    )


async def _lock(tx: AsyncConnection, places: Iterable[Place]) -> Accounts:
    """Lock the accounts in (tenant, account, currency) order and return their totals."""
    wanted = sorted(places)
    if not wanted:
        return {}
    result = await tx.execute(
        sql(
            "SELECT a.* FROM ledger_account AS a"
            f" WHERE (tenant, account, currency) IN (SELECT * FROM {_PLACES})"
            ' ORDER BY tenant COLLATE "C", account COLLATE "C", currency COLLATE "C"'
            " FOR NO KEY UPDATE"
        ),
        _place_arrays(wanted),
    )
    locked = {
        (row.tenant, row.account, row.currency): Account(
            kind=AccountKind(row.kind),
            limit_rule=LimitRule(row.limit_rule),
            debits_posted=row.debits_posted,
            credits_posted=row.credits_posted,
            debits_pending=row.debits_pending,
            credits_pending=row.credits_pending,
            version=row.version,
        )
        for row in result
    }
    assert len(locked) == len(wanted), "an account of a transfer is missing"
    return locked


_PLACES = (
    "unnest(CAST(:tenants AS text[]), CAST(:accounts AS text[]), CAST(:currencies AS text[]))"
    " AS place (tenant, account, currency)"
)


def _place_arrays(places: Iterable[Place]) -> dict[str, list[Any]]:
    tenants, accounts, currencies = zip(*places, strict=True)
    return {
        "tenants": list(tenants),
        "accounts": list(accounts),
        "currencies": list(currencies),
    }


async def _pending(
    tx: AsyncConnection, requests: Sequence[SettleTransfer] | Sequence[VoidTransfer]
) -> list[Transfer]:
    legs = await _legs_of(tx, [r.key for r in requests])
    return [Transfer(r.key, r.at, legs[r.key]) for r in requests]


async def _legs_of(tx: AsyncConnection, keys: Sequence[str]) -> dict[str, tuple[Leg, ...]]:
    if not keys:
        return {}
    result = await tx.execute(
        sql(
            "SELECT key, account, amount_minor, currency FROM transfer_leg"
            " WHERE key = ANY(CAST(:keys AS text[])) ORDER BY key, leg"
        ),
        {"keys": list(keys)},
    )
    legs: dict[str, list[Leg]] = {key: [] for key in keys}
    for row in result:
        legs[row.key].append(
            Leg(account=row.account, amount_minor=row.amount_minor, currency=row.currency)
        )
    return {key: tuple(found) for key, found in legs.items()}


async def _originals(tx: AsyncConnection, keys: Iterable[str]) -> dict[str, Original]:
    """Return what stands under the originals' keys, with the legs of those that are posted."""
    wanted = sorted(keys)
    if not wanted:
        return {}
    result = await tx.execute(
        sql("SELECT key, state FROM transfer WHERE key = ANY(CAST(:keys AS text[]))"),
        {"keys": wanted},
    )
    states: dict[str, str] = {row.key: row.state for row in result}
    posted = [key for key, state in states.items() if state == FenceState.CONFIRMED]
    legs = await _legs_of(tx, posted)
    return {key: Original(state, legs.get(key)) for key, state in states.items()}


async def _reversed_by(tx: AsyncConnection, originals: Iterable[str]) -> dict[str, str]:
    result = await tx.execute(
        sql(
            "SELECT original_key, key FROM reversal WHERE original_key = ANY(CAST(:keys AS text[]))"
        ),
        {"keys": list(originals)},
    )
    return {row.original_key: row.key for row in result}


async def _insert_reversals(tx: AsyncConnection, requests: Sequence[ReverseTransfer]) -> None:
    if not requests:
        return
    await tx.execute(
        sql(
            "INSERT INTO reversal (key, original_key)"
            " SELECT * FROM unnest(CAST(:keys AS text[]), CAST(:originals AS text[]))"
        ),
        {
            "keys": [r.key for r in requests],
            "originals": [r.original_key for r in requests],
        },
    )


async def _insert_legs(tx: AsyncConnection, transfers: Sequence[Transfer]) -> None:
    rows = [(t.key, n, leg) for t in transfers for n, leg in enumerate(t.legs)]
    if not rows:
        return
    await tx.execute(
        sql(
            "INSERT INTO transfer_leg (key, leg, account, currency, amount_minor)"
            " SELECT * FROM unnest(CAST(:keys AS text[]), CAST(:legs AS int[]),"
            " CAST(:accounts AS text[]), CAST(:currencies AS text[]), CAST(:amounts AS bigint[]))"
        ),
        _leg_arrays(rows),
    )


def _leg_arrays(rows: Sequence[tuple[str, int, Leg]]) -> dict[str, list[Any]]:
    return {
        "keys": [key for key, _, _ in rows],
        "legs": [number for _, number, _ in rows],
        "accounts": [leg.account for _, _, leg in rows],
        "currencies": [leg.currency for _, _, leg in rows],
        "amounts": [leg.amount_minor for _, _, leg in rows],
    }


async def _store(tx: AsyncConnection, decided: Decision[Any]) -> None:
    """Write the entries and the accounts' totals just as they were decided."""
    await _insert_entries(tx, decided.entries)
    await _update_accounts(tx, decided.changed)


async def _insert_entries(tx: AsyncConnection, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    await tx.execute(
        sql(
            "INSERT INTO entry"
            " (key, leg, account, currency, amount_minor, balance_after_minor, posted_at)"
            " SELECT key, leg, account, currency, amount, balance, at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:legs AS int[]),"
            " CAST(:accounts AS text[]), CAST(:currencies AS text[]), CAST(:amounts AS bigint[]),"
            " CAST(:balances AS bigint[]), CAST(:ats AS timestamptz[])) WITH ORDINALITY"
            " AS new (key, leg, account, currency, amount, balance, at, place)"
            " ORDER BY place"  # `seq` counts in the order of the balances.
        ),
        {
            **_leg_arrays([(e.key, e.number, e.leg) for e in entries]),
            "balances": [e.balance_after_minor for e in entries],
            "ats": [e.posted_at for e in entries],
        },
    )


_TOTALS = ("debits_posted", "credits_posted", "debits_pending", "credits_pending", "version")


async def _update_accounts(tx: AsyncConnection, changed: Mapping[Place, Account]) -> None:
    """Write the totals; a row whose version is no longer the one that was locked stops it all."""
    if not changed:
        return
    names = ("kind", "limit_rule", *_TOTALS)
    arrays = ", ".join(f"CAST(:{name} AS text[])" for name in names[:2])
    arrays += "".join(f", CAST(:{name} AS bigint[])" for name in _TOTALS)
    assignments = ", ".join(f"{name} = new.{name}" for name in names[:-1])
    result = await tx.execute(
        sql(
            f"UPDATE ledger_account AS a SET {assignments}, version = a.version + 1"
            " FROM unnest(CAST(:tenants AS text[]), CAST(:accounts AS text[]),"
            f" CAST(:currencies AS text[]), {arrays})"
            f" AS new (tenant, account, currency, {', '.join(names)})"
            " WHERE (a.tenant, a.account, a.currency, a.version)"
            " = (new.tenant, new.account, new.currency, new.version)"
        ),
        {
            **_place_arrays(changed),
            **{name: [getattr(account, name) for account in changed.values()] for name in names},
        },
    )
    fence.assert_all_written(result, len(changed))
