"""Whatever is sent to the ledger, in whatever order and however often, its books are right."""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from everycent.database import ledger
from everycent.database.engine import Database
from everycent.domain.ledger import (
    AccountKind,
    HoldTransfer,
    Leg,
    LimitRule,
    OpenAccount,
    PostTransfer,
    ReverseTransfer,
    SettleTransfer,
    VoidTransfer,
)
from everycent.errors import EverycentError
from everycent.settings import ServiceName

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)
LIMITS = {"funds": LimitRule.CREDITS_NOT_OVER_DEBITS, "wallet": LimitRule.DEBITS_NOT_OVER_CREDITS}
Batch = tuple[str, list[tuple[str, str, tuple[Leg, ...]]]]  # Operation; key, other key, legs.


def _two_legs(debit: str, credit: str, amount_minor: int, currency: str) -> tuple[Leg, Leg]:
    return (
        Leg(account=debit, amount_minor=amount_minor, currency=currency),
        Leg(account=credit, amount_minor=-amount_minor, currency=currency),
    )


ACCOUNTS = st.sampled_from(["bank", "sales", *LIMITS])
PAIRS = st.builds(
    _two_legs, ACCOUNTS, ACCOUNTS, st.integers(1, 50), st.sampled_from(["EUR", "USD"])
)
LEGS = st.lists(PAIRS, min_size=1, max_size=3).map(lambda pairs: tuple(sum(pairs, ())))
KEYS = st.sampled_from([f"o-{n}" for n in range(8)])
OPERATIONS = st.sampled_from(["post", "post", "hold", "hold", "settle", "void", "reverse"])
BATCHES = st.lists(
    st.tuples(OPERATIONS, st.lists(st.tuples(KEYS, KEYS, LEGS), min_size=1, max_size=5)),
    min_size=1,
    max_size=12,
)

CALLS: dict[str, Callable[..., Any]] = {
    "post": ledger.post_transfer,
    "hold": ledger.hold_transfer,
    "settle": ledger.settle_transfer,
    "void": ledger.void_transfer,
    "reverse": ledger.reverse_transfer,
}

# Each must find nothing; the names are those of docs/ledger.md.
INVARIANTS = {
    "L1 a transfer's legs and entries sum to zero": """
        SELECT key, currency FROM (
            SELECT 'leg' AS what, key, currency, amount_minor FROM transfer_leg WHERE tenant = :t
            UNION ALL
            SELECT 'entry', key, currency, amount_minor FROM entry WHERE tenant = :t) AS written
        GROUP BY what, key, currency HAVING sum(amount_minor) <> 0""",
    "L2 all accounts sum to zero": """
        SELECT currency FROM ledger_account WHERE tenant = :t GROUP BY currency
        HAVING sum(debits_posted) <> sum(credits_posted)
            OR sum(debits_pending) <> sum(credits_pending)""",
    "L3 an account is the sum of its entries": """
        SELECT account FROM ledger_account AS a WHERE tenant = :t
        AND (debits_posted, credits_posted) <> (
            SELECT coalesce(sum(greatest(amount_minor, 0)), 0),
                   coalesce(sum(greatest(-amount_minor, 0)), 0) FROM entry AS e
            WHERE (e.tenant, e.account, e.currency) = (a.tenant, a.account, a.currency))""",
    "L4 pending is the sum of the legs of pending transfers": """
        SELECT account FROM ledger_account AS a WHERE tenant = :t
        AND (debits_pending, credits_pending) <> (
            SELECT coalesce(sum(greatest(amount_minor, 0)), 0),
                   coalesce(sum(greatest(-amount_minor, 0)), 0)
            FROM transfer_leg AS l JOIN transfer AS t USING (key)
            WHERE t.state = 'TRIED'
            AND (l.tenant, l.account, l.currency) = (a.tenant, a.account, a.currency))""",
    "L5 what is posted is what was asked": """
        (SELECT key, leg, account, currency, amount_minor FROM entry WHERE tenant = :t
         EXCEPT ALL
         SELECT key, leg, account, currency, amount_minor FROM transfer_leg
         JOIN transfer USING (key) WHERE tenant = :t AND state = 'CONFIRMED')
        UNION ALL
        (SELECT key, leg, account, currency, amount_minor FROM transfer_leg
         JOIN transfer USING (key) WHERE tenant = :t AND state = 'CONFIRMED'
         EXCEPT ALL
         SELECT key, leg, account, currency, amount_minor FROM entry WHERE tenant = :t)""",
    "L6 each entry's balance is the one before and its amount": """
        SELECT key FROM (
            SELECT key, balance_after_minor, sum(amount_minor) OVER
                (PARTITION BY account, currency ORDER BY seq) AS running
            FROM entry WHERE tenant = :t) AS chain
        WHERE running <> balance_after_minor""",
    "L9 a reversal is the opposite of a posted transfer": """
        SELECT key FROM reversal AS r WHERE split_part(key, '/', 1) = :t AND (
            NOT EXISTS (SELECT 1 FROM entry AS e WHERE e.key = r.original_key)
            OR EXISTS (
                SELECT leg, account, currency, -amount_minor FROM entry AS e WHERE e.key = r.key
                EXCEPT ALL
                SELECT leg, account, currency, amount_minor FROM entry AS e
                WHERE e.key = r.original_key))""",
}


@pytest.mark.requirement("AC10.4", "AC16.3", "T31", "T32")
@settings(max_examples=100, deadline=None)
@given(batches=BATCHES)
async def test_the_books_are_right_after_any_sequence(
    databases: dict[ServiceName, Database], batches: list[Batch]
) -> None:
    """Postings, holds, settlements, voids and reversals in any order, each batch sent twice.

    Red when: any of the invariants of docs/ledger.md breaks, or a repeat answers otherwise.
    """
    database, tenant = databases["ledger"], f"t{uuid.uuid4().hex[:12]}"
    await _open_limited_accounts(database, tenant)
    for operation, items in batches:
        requests = [_request(operation, tenant, *item) for item in items]
        first = await _send(database, operation, requests)
        assert await _send(database, operation, requests) == first
    assert await _broken(database, tenant) == {}


def _request(operation: str, tenant: str, order: str, other: str, legs: tuple[Leg, ...]) -> Any:
    fields: dict[str, Any] = {"key": f"{tenant}/{order}/transfer", "at": NOON, "opened_on": TODAY}
    match operation:
        case "post":
            return PostTransfer(**fields, entries=legs)
        case "hold":
            return HoldTransfer(**fields, entries=legs)
        case "settle":
            return SettleTransfer(**fields)
        case "void":
            return VoidTransfer(**fields, reason="test")
        case _:
            fields["key"] = f"{tenant}/{order}/reverse"
            return ReverseTransfer(**fields, original_key=f"{tenant}/{other}/transfer")


async def _send(database: Database, operation: str, requests: Sequence[Any]) -> list[Any]:
    """Run a batch and return its answers; an error stands for itself by its class and text."""
    async with database.transaction() as tx:
        answers = await CALLS[operation](tx, requests)
    return [
        (type(answer), str(answer)) if isinstance(answer, EverycentError) else answer
        for answer in answers
    ]


async def _open_limited_accounts(database: Database, tenant: str) -> None:
    requests = [
        OpenAccount(
            key=f"{tenant}/ledger/open/{account}-{currency}",
            at=NOON,
            opened_on=TODAY,
            account=account,
            currency=currency,
            account_kind=AccountKind.ASSET,
            limit_rule=limit_rule,
        )
        for account, limit_rule in LIMITS.items()
        for currency in ("EUR", "USD")
    ]
    async with database.transaction() as tx:
        await ledger.open_account(tx, requests)


async def _broken(database: Database, tenant: str) -> dict[str, list[Any]]:
    """Return what each broken invariant found."""
    async with database.snapshot() as tx:
        found = {
            name: list((await tx.execute(text(statement), {"t": tenant})).all())
            for name, statement in INVARIANTS.items()
        }
    return {name: rows for name, rows in found.items() if rows}
