"""Stored balances on a real PostgreSQL, through the activities: the lowest public interface."""

import asyncio
import random
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.account import AccountActivities
from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import (
    AccountUnknown,
    BalanceCredited,
    BalanceDebited,
    BalanceFrozen,
    BalanceUnfrozen,
    CreditBalance,
    DebitBalance,
    Deposit,
    FreezeBalance,
    InsufficientBalance,
    UnfreezeBalance,
)
from everycent.errors import Bug, NotConfirmable
from everycent.settings import ServiceName

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)
ANN = {"account": "ann", "currency": "EUR"}


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["account"]


@pytest.fixture
def accounts(database: Database) -> AccountActivities:
    return AccountActivities(database)


def step(tenant: str, order: str, name: str = "authorise") -> dict[str, Any]:
    return {"key": f"{tenant}/{order}/{name}", "at": NOON, "opened_on": TODAY}


def deposit(tenant: str, amount_minor: int, order: str = "fund") -> Deposit:
    return Deposit(**step(tenant, order, "deposit"), **ANN, amount_minor=amount_minor)


def freeze(tenant: str, amount_minor: int, order: str = "o-1") -> FreezeBalance:
    return FreezeBalance(**step(tenant, order), **ANN, amount_minor=amount_minor)


def debit(tenant: str, order: str = "o-1") -> DebitBalance:
    return DebitBalance(**step(tenant, order))


def unfreeze(tenant: str, order: str = "o-1") -> UnfreezeBalance:
    return UnfreezeBalance(**step(tenant, order), reason="customer")


def refund(tenant: str, amount_minor: int, order: str = "o-1") -> CreditBalance:
    return CreditBalance(**step(tenant, order, "refund/r-1"), **ANN, amount_minor=amount_minor)


async def money(database: Database, tenant: str) -> tuple[int, int, int]:
    """Return (balance, available, frozen) of Ann's account."""
    async with database.snapshot() as tx:
        result = await tx.execute(
            text("SELECT balance, available, frozen FROM account WHERE tenant = :tenant"),
            {"tenant": tenant},
        )
        row = result.one()
    return row.balance, row.available, row.frozen


@pytest.mark.requirement("AC10.1")
async def test_an_amount_equal_to_the_balance_leaves_zero(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """Red when: the comparison is "less or equal" instead of "less"."""
    await accounts.deposit(deposit(tenant, 1000))

    frozen = await ActivityEnvironment().run(accounts.freeze_balance, freeze(tenant, 1000))
    debited = await ActivityEnvironment().run(accounts.debit_balance, debit(tenant))

    assert frozen == BalanceFrozen(amount_minor=1000, available_minor=0)
    assert debited == BalanceDebited(amount_minor=1000, available_minor=0, balance_minor=0)
    assert await money(database, tenant) == (0, 0, 0)


@pytest.mark.requirement("AC10.1")
async def test_a_balance_one_minor_unit_short_is_refused(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """Red when: the available balance is not compared with the amount."""
    await accounts.deposit(deposit(tenant, 999))

    answer = await ActivityEnvironment().run(accounts.freeze_balance, freeze(tenant, 1000))

    assert answer == InsufficientBalance(needed_minor=1000, available_minor=999)
    assert await money(database, tenant) == (999, 999, 0)


@pytest.mark.requirement("AC10.1")
@pytest.mark.parametrize("table", ["balance_hold", "balance_credit"])
@pytest.mark.parametrize("amount_minor", [0, -1])
async def test_an_amount_of_zero_or_less_is_refused_at_the_door_and_by_a_constraint(
    database: Database, tenant: str, table: str, amount_minor: int
) -> None:
    """Red when: the request's type or the CHECK of the table lets it pass."""
    for build in (freeze, deposit, refund):
        with pytest.raises(ValidationError, match="greater than 0"):
            build(tenant, amount_minor)

    with pytest.raises(Bug, match=f"{table}_amount_positive"):
        async with database.transaction() as tx:
            await tx.execute(
                text(
                    f"INSERT INTO {table} (key, opened_on, state, request_hash, hash_version,"
                    " account, currency, amount_minor)"
                    " VALUES (:key, '2026-01-02', 'TRIED', 'x', 1, 'ann', 'EUR', :amount)"
                ),
                {"key": f"{tenant}/x/y", "amount": amount_minor},
            )


@pytest.mark.requirement("AC10.1")
async def test_the_update_itself_is_guarded(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """Were the decision wrong, the UPDATE would hit no row, before any CHECK is asked.

    Red when: `available >= amount` is taken out of the UPDATE: then the CHECK speaks.
    """
    await accounts.deposit(deposit(tenant, 100))
    ann = (tenant, "ann", "EUR")

    for available, frozen in ((-1, +1), (0, -1), (+1, -1)):
        with pytest.raises(AssertionError, match="hit 0 of 1"):
            async with database.transaction() as tx:
                await account._move(tx, {ann: 101}, available=available, frozen=frozen)


@pytest.mark.requirement("AC10.1")
@pytest.mark.parametrize(
    ("assignment", "constraint"),
    [
        ("balance = balance - 101, available = available - 101", "account_.*_not_negative"),
        ("available = -1, frozen = 101", "account_available_not_negative"),
        ("available = 101, frozen = -1", "account_frozen_not_negative"),
        ("frozen = frozen + 1", "account_adds_up"),
        ("currency = 'euro'", "account_currency_is_a_code"),
    ],
)
async def test_a_constraint_refuses_a_balance_below_zero_or_that_does_not_add_up(
    database: Database,
    accounts: AccountActivities,
    tenant: str,
    assignment: str,
    constraint: str,
) -> None:
    """Red when: the named CHECK is missing."""
    await accounts.deposit(deposit(tenant, 100))

    with pytest.raises(Bug, match=constraint):
        async with database.transaction() as tx:
            await tx.execute(
                text(f"UPDATE account SET {assignment} WHERE tenant = :tenant"),
                {"tenant": tenant},
            )


@pytest.mark.requirement("AC10.2")
async def test_no_column_holds_money_in_a_floating_or_unit_less_type(
    databases: dict[ServiceName, Database],
) -> None:
    """Amounts are bigint, and a table with an amount or a balance names its currency.

    Red when: a column becomes real, double precision or money, or a currency column is dropped.
    """
    async with databases["account"].snapshot() as tx:
        result = await tx.execute(
            text(
                "SELECT table_name, column_name, data_type FROM information_schema.columns"
                " WHERE table_schema = 'public'"
            )
        )
        columns = {(row.table_name, row.column_name): row.data_type for row in result}
    money_columns = {"balance", "available", "frozen", "amount_minor"}
    typed = {key: kind for key, kind in columns.items() if key[1] in money_columns}
    assert len(typed) == 5
    assert set(typed.values()) == {"bigint"}
    assert all((table, "currency") in columns for table, _ in typed)
    assert not {"real", "double precision", "money"} & set(columns.values())


@pytest.mark.requirement("AC10.3")
async def test_of_a_hundred_concurrent_payments_none_is_lost(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """There is money for seventy of them; the balance ends at what those leave.

    Red when: the account is read without its lock, or written as a value computed before it.
    """
    await accounts.deposit(deposit(tenant, 70 * 7 + 6))

    async def pay(order: str) -> bool:
        held = await ActivityEnvironment().run(accounts.freeze_balance, freeze(tenant, 7, order))
        if isinstance(held, BalanceFrozen):
            await ActivityEnvironment().run(accounts.debit_balance, debit(tenant, order))
        return isinstance(held, BalanceFrozen)

    paid = await asyncio.gather(*(pay(f"o-{n}") for n in range(100)))

    assert sum(paid) == 70
    assert await money(database, tenant) == (6, 6, 0)


@pytest.mark.requirement("T8", "AC15.5")
async def test_holds_count_against_the_balance_and_the_next_is_refused(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """Ten holds up to the balance, all at once with an eleventh: ten stand.

    Red when: a hold is checked against the balance instead of what is available.
    """
    await accounts.deposit(deposit(tenant, 1000))

    answers = await asyncio.gather(
        *(accounts.freeze_balance(freeze(tenant, 100, f"o-{n}")) for n in range(11))
    )

    assert Counter(a.kind for a in answers) == {"balance_frozen": 10, "insufficient_balance": 1}
    assert await money(database, tenant) == (1000, 0, 1000)


@pytest.mark.requirement("T8", "T32")
@pytest.mark.parametrize("end", ["refused", "cancelled", "never tried"])
async def test_a_hold_that_does_not_stand_cannot_be_confirmed(
    database: Database, accounts: AccountActivities, tenant: str, end: str
) -> None:
    """Red when: judge_confirm lets a REFUSED, CANCELLED or absent row proceed."""
    await accounts.deposit(deposit(tenant, 1000))
    if end != "never tried":
        await accounts.freeze_balance(freeze(tenant, 1001 if end == "refused" else 400))
    if end == "cancelled":
        await accounts.unfreeze_balance(unfreeze(tenant))

    with pytest.raises(ApplicationError) as raised:
        await accounts.debit_balance(debit(tenant))

    expected = "NothingTried" if end == "never tried" else NotConfirmable.__name__
    assert (raised.value.type, raised.value.non_retryable) == (expected, True)
    assert await money(database, tenant) == (1000, 1000, 0)


@pytest.mark.requirement("T32")
async def test_a_hold_is_pending_then_posted_or_voided_once_per_key(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    """Each of the three repeated: the same answer, and the money moved once.

    Red when: a repeated operation moves money, or answers with today's balances.
    """
    await accounts.deposit(deposit(tenant, 1000))

    held = [await accounts.freeze_balance(freeze(tenant, 400)) for _ in range(2)]
    assert await money(database, tenant) == (1000, 600, 400)
    posted = [await accounts.debit_balance(debit(tenant)) for _ in range(2)]
    assert await money(database, tenant) == (600, 600, 0)
    await accounts.freeze_balance(freeze(tenant, 100, "o-2"))
    voided = [await accounts.unfreeze_balance(unfreeze(tenant, "o-2")) for _ in range(2)]

    assert held == [BalanceFrozen(amount_minor=400, available_minor=600)] * 2
    assert posted == [BalanceDebited(amount_minor=400, available_minor=600, balance_minor=600)] * 2
    assert voided == [BalanceUnfrozen(amount_minor=100, available_minor=600)] * 2
    assert await money(database, tenant) == (600, 600, 0)


async def test_an_account_that_nobody_opened_is_unknown_and_so_is_another_currency(
    accounts: AccountActivities, tenant: str
) -> None:
    assert await accounts.freeze_balance(freeze(tenant, 1)) == AccountUnknown(**ANN)
    await accounts.deposit(deposit(tenant, 1000))

    dollars = freeze(tenant, 1, "o-2").model_copy(update={"currency": "USD"})

    assert await accounts.freeze_balance(dollars) == AccountUnknown(account="ann", currency="USD")


async def test_first_deposits_at_once_open_one_account_and_all_count(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    requests = [deposit(tenant, 10, f"d-{n}") for n in range(20)]

    answers = await asyncio.gather(*(accounts.deposit(r) for r in [*requests, *requests]))

    assert answers[:20] == answers[20:]
    assert sorted(a.balance_minor for a in answers[:20]) == [10 * n for n in range(1, 21)]
    assert await money(database, tenant) == (200, 200, 0)


async def test_a_refund_is_credited_once_and_answers_what_the_account_has_then(
    database: Database, accounts: AccountActivities, tenant: str
) -> None:
    await accounts.deposit(deposit(tenant, 1000))
    await accounts.freeze_balance(freeze(tenant, 400))
    await accounts.debit_balance(debit(tenant))

    answers = await asyncio.gather(
        *(accounts.credit_balance(refund(tenant, 400)) for _ in range(10))
    )

    credited = BalanceCredited(amount_minor=400, available_minor=1000, balance_minor=1000)
    assert set(answers) == {credited}
    assert await money(database, tenant) == (1000, 1000, 0)


async def test_a_refund_to_an_account_that_never_was_is_refused(
    accounts: AccountActivities, tenant: str
) -> None:
    assert await accounts.credit_balance(refund(tenant, 400)) == AccountUnknown(**ANN)


async def test_a_refund_under_the_key_of_a_deposit_is_refused(
    accounts: AccountActivities, tenant: str
) -> None:
    await accounts.deposit(deposit(tenant, 400))
    clash = refund(tenant, 400).model_copy(update={"key": deposit(tenant, 400).key})

    with pytest.raises(ApplicationError) as raised:
        await accounts.credit_balance(clash)

    assert raised.value.type == "KeyReused"


async def test_four_writers_of_the_same_keys_and_accounts_in_any_order_never_deadlock(
    database: Database, tenant: str
) -> None:
    """Each batch touches many accounts and keys that the others touch too; the money adds up."""
    names = [f"c-{n}" for n in range(8)]

    def of(name: str, request: Any) -> Any:
        return request.model_copy(update={"account": name})

    async def write(seed: int) -> None:
        shuffle = random.Random(seed)
        for n in range(6):
            mine = shuffle.sample(names, 6)
            async with database.transaction() as tx:
                paid_in = [of(c, deposit(tenant, 10, f"{c}.{seed}.{n}")) for c in mine]
                await account.deposit(tx, paid_in)
            shuffle.shuffle(mine)
            async with database.transaction() as tx:
                await account.freeze_balance(
                    tx, [of(c, freeze(tenant, 10, f"{c}.{n}")) for c in mine]
                )
            shuffle.shuffle(mine)
            async with database.transaction() as tx:
                await account.debit_balance(tx, [debit(tenant, f"{c}.{n}") for c in mine[:4]])
            async with database.transaction() as tx:
                await account.unfreeze_balance(tx, [unfreeze(tenant, f"{c}.{n}") for c in mine[2:]])

    await asyncio.gather(*(write(seed) for seed in range(4)))

    async with database.snapshot() as tx:
        off = await tx.execute(
            text(
                "SELECT a.* FROM account a WHERE a.tenant = :tenant AND ("
                " a.frozen <> (SELECT coalesce(sum(amount_minor), 0) FROM balance_hold h"
                " WHERE h.state = 'TRIED' AND h.account = a.account"
                " AND starts_with(h.key, :prefix))"
                " OR a.balance <> (SELECT coalesce(sum(amount_minor), 0) FROM balance_credit b"
                " WHERE b.account = a.account AND starts_with(b.key, :prefix))"
                " - (SELECT coalesce(sum(amount_minor), 0) FROM balance_hold h"
                " WHERE h.state = 'CONFIRMED' AND h.account = a.account"
                " AND starts_with(h.key, :prefix)))"
            ),
            {"tenant": tenant, "prefix": f"{tenant}/"},
        )
        assert list(off) == []
