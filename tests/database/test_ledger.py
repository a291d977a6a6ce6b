"""The ledger on a real PostgreSQL: yes, no, repeat and race of each operation."""

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.ledger import LedgerActivities
from everycent.database import ledger
from everycent.database.engine import Database
from everycent.domain.fence import unwrap
from everycent.domain.ledger import (
    AccountBalance,
    AccountKind,
    AccountOpened,
    AccountTaken,
    AlreadyReversed,
    HoldTransfer,
    Leg,
    LimitExceeded,
    LimitRule,
    NotPosted,
    OpenAccount,
    PostTransfer,
    ReverseTransfer,
    SettleTransfer,
    TransferPending,
    TransferPosted,
    TransferVoided,
    VoidTransfer,
)
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    Bug,
    KeyReused,
    NotConfirmable,
    NothingTried,
)
from everycent.settings import ServiceName

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)
LIMITED = LimitRule.DEBITS_NOT_OVER_CREDITS


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["ledger"]


@pytest.fixture
def owner(owners: dict[ServiceName, Database]) -> Database:
    return owners["ledger"]


def legs(amount_minor: int, debit: str = "cash", credit: str = "sales") -> tuple[Leg, ...]:
    return (
        Leg(account=debit, amount_minor=amount_minor, currency="EUR"),
        Leg(account=credit, amount_minor=-amount_minor, currency="EUR"),
    )


def posting(key: str, entries: tuple[Leg, ...]) -> PostTransfer:
    return PostTransfer(key=key, at=NOON, opened_on=TODAY, entries=entries)


def holding(key: str, entries: tuple[Leg, ...]) -> HoldTransfer:
    return HoldTransfer(key=key, at=NOON, opened_on=TODAY, entries=entries)


def settling(key: str) -> SettleTransfer:
    return SettleTransfer(key=key, at=NOON, opened_on=TODAY)


def voiding(key: str) -> VoidTransfer:
    return VoidTransfer(key=key, at=NOON, opened_on=TODAY, reason="test")


def reversing(key: str, original_key: str) -> ReverseTransfer:
    return ReverseTransfer(key=key, at=NOON, opened_on=TODAY, original_key=original_key)


def opening(key: str, account: str, limit_rule: LimitRule) -> OpenAccount:
    return OpenAccount(
        key=key,
        at=NOON,
        opened_on=TODAY,
        account=account,
        currency="EUR",
        account_kind=AccountKind.LIABILITY,
        limit_rule=limit_rule,
    )


async def run(database: Database, operation: Callable[..., Any], *requests: object) -> list[Any]:
    """Run one batch in its transaction and return its answers, errors among them."""
    async with database.transaction() as tx:
        return list(await operation(tx, requests))


async def one(database: Database, operation: Callable[..., Any], request: object) -> Any:
    """Run a batch of one and return its answer, or raise."""
    [answer] = await run(database, operation, request)
    return unwrap(answer)


async def query(database: Database, statement: str, **values: object) -> list[Any]:
    async with database.snapshot() as tx:
        return list((await tx.execute(text(statement), values)).all())


async def totals(database: Database, tenant: str, account: str) -> tuple[int, int, int, int]:
    """Return an account's debits and credits posted, then pending."""
    [row] = await query(
        database,
        "SELECT debits_posted, credits_posted, debits_pending, credits_pending"
        " FROM ledger_account WHERE tenant = :tenant AND account = :account",
        tenant=tenant,
        account=account,
    )
    return tuple(row)


async def entries_of(database: Database, tenant: str) -> list[Any]:
    return await query(
        database,
        "SELECT key, account, amount_minor, balance_after_minor FROM entry"
        " WHERE tenant = :tenant ORDER BY seq",
        tenant=tenant,
    )


async def limited_wallet(database: Database, tenant: str, credit_minor: int) -> None:
    """A wallet of so much: it may not be debited for more."""
    await one(database, ledger.open_account, opening(f"{tenant}/l/open", "wallet", LIMITED))
    entries = legs(credit_minor, debit="bank", credit="wallet")
    await one(database, ledger.post_transfer, posting(f"{tenant}/l/fund", entries))


def spending(amount_minor: int) -> tuple[Leg, ...]:
    return legs(amount_minor, debit="wallet", credit="sales")


# post_transfer


@pytest.mark.requirement("T31")
async def test_a_posting_answers_with_the_balances_it_left(database: Database, tenant: str) -> None:
    """Pending amounts stand beside the posted ones, as the same rows show them.

    Red when: the answer is worked out before the posting, or leaves out what is pending.
    """
    await one(database, ledger.hold_transfer, holding(f"{tenant}/o-1/hold", legs(7)))
    answer = await one(database, ledger.post_transfer, posting(f"{tenant}/o-2/post", legs(2933)))
    assert answer.balances == (
        AccountBalance(
            account="cash",
            currency="EUR",
            debits_posted=2933,
            credits_posted=0,
            debits_pending=7,
            credits_pending=0,
            balance_minor=2933,
        ),
        AccountBalance(
            account="sales",
            currency="EUR",
            debits_posted=0,
            credits_posted=2933,
            debits_pending=0,
            credits_pending=7,
            balance_minor=-2933,
        ),
    )
    assert await totals(database, tenant, "cash") == (2933, 0, 7, 0)


@pytest.mark.requirement("T32", "AC10.4")
async def test_a_repeated_posting_gets_its_first_answer_and_posts_once(
    database: Database, tenant: str
) -> None:
    """Also in one batch with itself, and after others have posted.

    Red when: the key does not decide, or the answer is worked out anew.
    """
    request = posting(f"{tenant}/o-1/post", legs(5))
    first, twin = await run(database, ledger.post_transfer, request, request)
    await one(database, ledger.post_transfer, posting(f"{tenant}/o-2/post", legs(9)))
    assert await one(database, ledger.post_transfer, request) == first == twin
    assert await totals(database, tenant, "cash") == (14, 0, 0, 0)
    assert len(await entries_of(database, tenant)) == 4


async def test_another_posting_under_a_taken_key_is_refused(
    database: Database, tenant: str
) -> None:
    key = f"{tenant}/o-1/post"
    await one(database, ledger.post_transfer, posting(key, legs(5)))
    with pytest.raises(KeyReused):
        await one(database, ledger.post_transfer, posting(key, legs(6)))
    with pytest.raises(KeyReused):
        await one(database, ledger.hold_transfer, holding(key, legs(5)))
    assert await totals(database, tenant, "cash") == (5, 0, 0, 0)


async def test_a_posting_beyond_the_limit_is_refused_whole_and_for_good(
    database: Database, tenant: str
) -> None:
    await limited_wallet(database, tenant, 10)
    request = posting(f"{tenant}/o-1/post", spending(11))
    refused = LimitExceeded(account="wallet", currency="EUR", needed_minor=11, available_minor=10)
    assert await one(database, ledger.post_transfer, request) == refused
    top_up = posting(f"{tenant}/l/more", legs(90, debit="bank", credit="wallet"))
    await one(database, ledger.post_transfer, top_up)
    assert await one(database, ledger.post_transfer, request) == refused
    assert await totals(database, tenant, "sales") == (0, 0, 0, 0)
    assert await totals(database, tenant, "wallet") == (0, 100, 0, 0)


@pytest.mark.requirement("AC16.3", "AC10.4")
async def test_the_books_balance_at_every_instant_while_many_post(
    database: Database, tenant: str
) -> None:
    """Forty racing batches over the same accounts, read by snapshots all the while.

    Red when: the legs of a transfer are written in two transactions, or an update is lost.
    """
    accounts = ("a", "b", "c")

    async def post_batch(number: int) -> None:
        debit, credit = accounts[number % 3], accounts[(number + 1) % 3]
        entries = legs(number + 1, debit=debit, credit=credit)
        keys = [f"{tenant}/o-{number}-{n}/post" for n in range(3)]
        answers = await run(database, ledger.post_transfer, *(posting(k, entries) for k in keys))
        assert all(isinstance(answer, TransferPosted) for answer in answers)

    posting_all = asyncio.gather(*(post_batch(number) for number in range(40)))
    looks = 0
    while not posting_all.done() or not looks:
        [trial] = await query(
            database,
            "SELECT coalesce(sum(debits_posted - credits_posted), 0) AS accounts,"
            " (SELECT coalesce(sum(amount_minor), 0) FROM entry WHERE tenant = :t) AS entries"
            " FROM ledger_account WHERE tenant = :t",
            t=tenant,
        )
        assert tuple(trial) == (0, 0)
        looks += 1
    await posting_all
    moved = 3 * sum(range(1, 41))
    assert sum([(await totals(database, tenant, a))[0] for a in accounts]) == moved
    assert await broken_chains(database, tenant) == []


async def broken_chains(database: Database, tenant: str) -> list[Any]:
    """Return the entries whose balance is not the one before plus their amount."""
    return await query(
        database,
        "SELECT * FROM (SELECT key, account, balance_after_minor, sum(amount_minor) OVER"
        " (PARTITION BY account, currency ORDER BY seq) AS running"
        " FROM entry WHERE tenant = :tenant) AS chain WHERE running <> balance_after_minor",
        tenant=tenant,
    )


async def test_one_key_posted_by_many_at_once_posts_once(database: Database, tenant: str) -> None:
    request = posting(f"{tenant}/o-1/post", legs(5))
    answers = await asyncio.gather(
        *(one(database, ledger.post_transfer, request) for _ in range(12))
    )
    assert all(answer == answers[0] for answer in answers)
    assert await totals(database, tenant, "cash") == (5, 0, 0, 0)


# hold, settle, void


@pytest.mark.requirement("T8")
async def test_n_holds_up_to_the_balance_are_held_and_the_next_is_refused(
    database: Database, tenant: str
) -> None:
    """Twelve race for a balance of ten; each holds one cent.

    Red when: pending amounts are not counted, in the decision or in the account's CHECK.
    """
    await limited_wallet(database, tenant, 10)
    answers = await asyncio.gather(
        *(
            one(database, ledger.hold_transfer, holding(f"{tenant}/o-{n}/hold", spending(1)))
            for n in range(12)
        )
    )
    refused = LimitExceeded(account="wallet", currency="EUR", needed_minor=1, available_minor=0)
    assert sum(isinstance(answer, TransferPending) for answer in answers) == 10
    assert sum(answer == refused for answer in answers) == 2
    assert await totals(database, tenant, "wallet") == (0, 10, 10, 0)


@pytest.mark.requirement("T8")
async def test_the_account_itself_refuses_to_hold_more_than_it_has(
    database: Database, tenant: str
) -> None:
    """The CHECK counts what is pending, whoever writes.

    Red when: the named CHECK is missing or looks at posted amounts only.
    """
    await limited_wallet(database, tenant, 10)
    hold = text(
        "UPDATE ledger_account SET debits_pending = :held WHERE tenant = :t AND account = 'wallet'"
    )
    async with database.transaction() as tx:
        await tx.execute(hold, {"t": tenant, "held": 10})
    with pytest.raises(Bug, match="ledger_account_debits_not_over_credits"):
        async with database.transaction() as tx:
            await tx.execute(hold, {"t": tenant, "held": 11})


@pytest.mark.requirement("T32")
async def test_a_hold_is_settled_once_whatever_is_repeated(database: Database, tenant: str) -> None:
    """Hold, settle, and both again: first answers, one posting.

    Red when: a repeat posts again, or a repeated hold answers with what came after it.
    """
    hold, settle = holding(f"{tenant}/o-1/hold", legs(5)), settling(f"{tenant}/o-1/hold")
    pending = await one(database, ledger.hold_transfer, hold)
    assert await totals(database, tenant, "cash") == (0, 0, 5, 0)
    assert await entries_of(database, tenant) == []
    posted = await one(database, ledger.settle_transfer, settle)
    assert isinstance(posted, TransferPosted)
    assert await one(database, ledger.settle_transfer, settle) == posted
    assert await one(database, ledger.hold_transfer, hold) == pending
    assert isinstance(pending, TransferPending)
    assert await totals(database, tenant, "cash") == (5, 0, 0, 0)
    assert len(await entries_of(database, tenant)) == 2


@pytest.mark.requirement("T32")
async def test_a_void_gives_back_what_is_pending_once(database: Database, tenant: str) -> None:
    """Void, and again; then neither a settlement nor another hold gets through.

    Red when: the void leaves the amount pending, or gives it back twice.
    """
    hold, void = holding(f"{tenant}/o-1/hold", legs(5)), voiding(f"{tenant}/o-1/hold")
    await one(database, ledger.hold_transfer, hold)
    voided = await one(database, ledger.void_transfer, void)
    assert [balance.debits_pending for balance in voided.balances] == [0, 0]
    assert await one(database, ledger.void_transfer, void) == voided
    assert await totals(database, tenant, "cash") == (0, 0, 0, 0)
    with pytest.raises(NotConfirmable):
        await one(database, ledger.settle_transfer, settling(hold.key))
    with pytest.raises(AlreadyCancelled):
        await one(database, ledger.hold_transfer, hold)
    assert await entries_of(database, tenant) == []


@pytest.mark.requirement("T8")
async def test_a_refused_hold_cannot_be_settled_and_its_void_moves_nothing(
    database: Database, tenant: str
) -> None:
    """The refusal is stored: no later settlement turns it into money.

    Red when: a Confirm takes a refused row for a held one.
    """
    await limited_wallet(database, tenant, 10)
    hold = holding(f"{tenant}/o-1/hold", spending(11))
    assert isinstance(await one(database, ledger.hold_transfer, hold), LimitExceeded)
    with pytest.raises(NotConfirmable):
        await one(database, ledger.settle_transfer, settling(hold.key))
    assert await one(database, ledger.void_transfer, voiding(hold.key)) == TransferVoided(
        balances=()
    )
    assert await totals(database, tenant, "wallet") == (0, 10, 0, 0)


async def test_a_void_before_its_hold_is_a_tombstone(database: Database, tenant: str) -> None:
    key = f"{tenant}/o-1/hold"
    assert await one(database, ledger.void_transfer, voiding(key)) == TransferVoided(balances=())
    with pytest.raises(AlreadyCancelled):
        await one(database, ledger.hold_transfer, holding(key, legs(5)))
    with pytest.raises(NotConfirmable):
        await one(database, ledger.settle_transfer, settling(key))


async def test_what_was_never_held_cannot_be_settled(database: Database, tenant: str) -> None:
    with pytest.raises(NothingTried):
        await one(database, ledger.settle_transfer, settling(f"{tenant}/o-1/hold"))
    await one(database, ledger.post_transfer, posting(f"{tenant}/o-2/post", legs(5)))
    with pytest.raises(NotConfirmable, match="cannot be confirmed"):
        await one(database, ledger.settle_transfer, settling(f"{tenant}/o-2/post"))


async def test_what_is_posted_cannot_be_voided(database: Database, tenant: str) -> None:
    held, posted = f"{tenant}/o-1/hold", f"{tenant}/o-2/post"
    await one(database, ledger.hold_transfer, holding(held, legs(5)))
    await one(database, ledger.settle_transfer, settling(held))
    await one(database, ledger.post_transfer, posting(posted, legs(5)))
    for key in (held, posted):
        with pytest.raises(AlreadyConfirmed):
            await one(database, ledger.void_transfer, voiding(key))
    assert await totals(database, tenant, "cash") == (10, 0, 0, 0)


async def test_of_a_settlement_and_a_void_at_once_exactly_one_wins(
    database: Database, tenant: str
) -> None:
    keys = [f"{tenant}/o-{n}/hold" for n in range(10)]
    await run(database, ledger.hold_transfer, *(holding(key, legs(5)) for key in keys))
    outcomes = await asyncio.gather(
        *(
            one(database, operation, request)
            for key in keys
            for operation, request in (
                (ledger.settle_transfer, settling(key)),
                (ledger.void_transfer, voiding(key)),
            )
        ),
        return_exceptions=True,
    )
    posted = sum(isinstance(outcome, TransferPosted) for outcome in outcomes)
    voided = sum(isinstance(outcome, TransferVoided) for outcome in outcomes)
    lost = sum(isinstance(outcome, NotConfirmable | AlreadyConfirmed) for outcome in outcomes)
    assert (posted + voided, lost) == (10, 10)
    assert await totals(database, tenant, "cash") == (5 * posted, 0, 0, 0)


# reverse_transfer


@pytest.mark.requirement("AC16.3")
async def test_a_reversal_posts_the_opposite_of_what_the_rows_say(
    database: Database, tenant: str
) -> None:
    """Posted at once or held and settled: afterwards every account is back where it was.

    Red when: the legs are not negated, or come from the call.
    """
    held = f"{tenant}/o-2/hold"
    await one(database, ledger.post_transfer, posting(f"{tenant}/o-1/post", legs(5)))
    await one(database, ledger.hold_transfer, holding(held, legs(8)))
    await one(database, ledger.settle_transfer, settling(held))
    for order, original in (("o-1", f"{tenant}/o-1/post"), ("o-2", held)):
        request = reversing(f"{tenant}/{order}/reverse", original)
        answer = await one(database, ledger.reverse_transfer, request)
        assert await one(database, ledger.reverse_transfer, request) == answer
    assert [balance.balance_minor for balance in answer.balances] == [0, 0]
    assert await totals(database, tenant, "cash") == (13, 13, 0, 0)
    assert await broken_chains(database, tenant) == []


async def test_many_reversals_of_one_transfer_post_once(database: Database, tenant: str) -> None:
    original = f"{tenant}/o-1/post"
    await one(database, ledger.post_transfer, posting(original, legs(5)))
    answers = await asyncio.gather(
        *(
            one(database, ledger.reverse_transfer, reversing(f"{tenant}/o-1/reverse/{n}", original))
            for n in range(8)
        )
    )
    [winner] = [n for n, answer in enumerate(answers) if isinstance(answer, TransferPosted)]
    refused = AlreadyReversed(original_key=original, reversed_by=f"{tenant}/o-1/reverse/{winner}")
    assert answers.count(refused) == 7
    assert await totals(database, tenant, "cash") == (5, 5, 0, 0)


async def test_the_database_itself_refuses_a_second_reversal(
    database: Database, tenant: str
) -> None:
    original = f"{tenant}/o-1/post"
    insert = text("INSERT INTO reversal (key, original_key) VALUES (:key, :original)")
    async with database.transaction() as tx:
        await tx.execute(insert, {"key": f"{tenant}/o-1/reverse/a", "original": original})
    with pytest.raises(Bug, match="reversal_once_per_original"):
        async with database.transaction() as tx:
            await tx.execute(insert, {"key": f"{tenant}/o-1/reverse/b", "original": original})


async def test_what_is_not_posted_cannot_be_reversed(database: Database, tenant: str) -> None:
    held = f"{tenant}/o-1/hold"
    await one(database, ledger.hold_transfer, holding(held, legs(5)))
    answers = await run(
        database,
        ledger.reverse_transfer,
        reversing(f"{tenant}/o-1/reverse/a", held),
        reversing(f"{tenant}/o-1/reverse/b", f"{tenant}/o-1/nothing"),
    )
    assert answers == [
        NotPosted(original_key=held, state="TRIED"),
        NotPosted(original_key=f"{tenant}/o-1/nothing", state=None),
    ]
    assert await totals(database, tenant, "cash") == (0, 0, 5, 0)


async def test_a_reversal_beyond_a_limit_is_refused_and_can_be_asked_again_under_another_key(
    database: Database, tenant: str
) -> None:
    await limited_wallet(database, tenant, 10)
    spent = f"{tenant}/o-1/post"
    await one(database, ledger.post_transfer, posting(spent, spending(4)))
    refused = await one(
        database, ledger.reverse_transfer, reversing(f"{tenant}/l/unfund/a", f"{tenant}/l/fund")
    )
    assert refused == LimitExceeded(
        account="wallet", currency="EUR", needed_minor=10, available_minor=6
    )
    await one(database, ledger.reverse_transfer, reversing(f"{tenant}/o-1/reverse", spent))
    again = await one(
        database, ledger.reverse_transfer, reversing(f"{tenant}/l/unfund/b", f"{tenant}/l/fund")
    )
    assert isinstance(again, TransferPosted)
    assert await totals(database, tenant, "wallet") == (14, 14, 0, 0)


# open_account


async def test_an_account_is_opened_once_and_never_changes_its_limit(
    database: Database, tenant: str
) -> None:
    first = opening(f"{tenant}/l/open/a", "wallet", LIMITED)
    opened = await one(database, ledger.open_account, first)
    assert isinstance(opened, AccountOpened)
    assert await one(database, ledger.open_account, first) == opened
    other = opening(f"{tenant}/l/open/b", "wallet", LimitRule.NONE)
    assert await one(database, ledger.open_account, other) == AccountTaken(
        account="wallet", currency="EUR", account_kind=AccountKind.LIABILITY, limit_rule=LIMITED
    )


async def test_an_account_that_a_transfer_made_takes_a_limit_if_it_keeps_it(
    database: Database, tenant: str
) -> None:
    await one(database, ledger.post_transfer, posting(f"{tenant}/o-1/post", legs(5)))
    answers = await run(
        database,
        ledger.open_account,
        opening(f"{tenant}/l/open/a", "cash", LIMITED),
        opening(f"{tenant}/l/open/b", "sales", LIMITED),
    )
    assert answers[0] == LimitExceeded(
        account="cash", currency="EUR", needed_minor=5, available_minor=0
    )
    assert isinstance(answers[1], AccountOpened)


async def test_one_account_opened_by_many_at_once_has_one_limit(
    database: Database, tenant: str
) -> None:
    rules = [LIMITED, LimitRule.NONE, LimitRule.CREDITS_NOT_OVER_DEBITS] * 3
    answers = await asyncio.gather(
        *(
            one(database, ledger.open_account, opening(f"{tenant}/l/open/{n}", "wallet", rule))
            for n, rule in enumerate(rules)
        )
    )
    opened = [answer for answer in answers if isinstance(answer, AccountOpened)]
    assert len(opened) == 3
    assert len({answer.limit_rule for answer in opened}) == 1


# What the database refuses by itself


@pytest.mark.requirement("AC10.4")
@pytest.mark.parametrize("table", ["transfer_leg", "entry"])
async def test_an_unbalanced_set_is_refused_by_the_database(
    database: Database, owner: Database, tenant: str, table: str
) -> None:
    """By one cent, across currencies, or leg by leg: whoever inserts.

    Red when: the statement trigger is missing, or sums over all currencies.
    """
    columns = "key, leg, account, currency, amount_minor"
    more = ", balance_after_minor, posted_at" if table == "entry" else ""
    tail = ", 0, '2026-01-02T12:00Z'" if more else ""
    broken = {
        "a cent": [("EUR", 10), ("EUR", -9)],
        "currencies": [("EUR", 10), ("USD", -10)],
        "one leg": [("EUR", 10)],
    }
    for who in (database, owner):
        for name, rows in broken.items():
            values = ", ".join(
                f"('{tenant}/{name}', {n}, 'cash', '{currency}', {amount}{tail})"
                for n, (currency, amount) in enumerate(rows)
            )
            with pytest.raises(Bug, match=f"constraint {table}_balances "):
                async with who.transaction() as tx:
                    await tx.execute(text(f"INSERT INTO {table} ({columns}{more}) VALUES {values}"))
    assert await query(database, f"SELECT 1 FROM {table} WHERE tenant = :t", t=tenant) == []


CHANGES = ("UPDATE {} SET key = key", "DELETE FROM {}", "TRUNCATE {}")


@pytest.mark.requirement("AC16.1")
@pytest.mark.parametrize("table", ["entry", "transfer_leg", "reversal"])
@pytest.mark.parametrize("change", CHANGES)
async def test_the_worker_has_no_right_to_change_what_is_written(
    database: Database, table: str, change: str
) -> None:
    """The role may insert and read, no more.

    Red when: the role is granted UPDATE, DELETE or TRUNCATE on the table.
    """
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with database.transaction() as tx:
            await tx.execute(text(change.format(table)))


@pytest.mark.requirement("AC16.1")
@pytest.mark.parametrize("table", ["entry", "transfer_leg", "reversal"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_the_owner_too_cannot_change_what_is_written(
    owner: Database, table: str, change: str, role: str
) -> None:
    """A trigger refuses everybody, also a session that plays the replica.

    Red when: the trigger is missing, or does not fire ALWAYS.
    """
    async with owner.transaction() as tx:
        await tx.execute(text(f"SET LOCAL session_replication_role = {role}"))
        with pytest.raises(IntegrityError, match="it is append-only"):
            await tx.execute(text(change.format(table)))
        await tx.rollback()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("debits_posted = -1", "debits_posted_not_negative"),
        ("credits_posted = -1", "credits_posted_not_negative"),
        ("debits_pending = -1", "debits_pending_not_negative"),
        ("credits_pending = -1", "credits_pending_not_negative"),
        ("kind = 'pocket'", "kind_is_known"),
        ("limit_rule = 'some'", "limit_rule_is_known"),
        ("currency = 'eur'", "currency_is_a_code"),
        ("limit_rule = 'credits_not_over_debits'", "credits_not_over_debits"),
    ],
)
async def test_each_rule_of_an_account_stands_in_the_database(
    database: Database, tenant: str, change: str, rule: str
) -> None:
    await limited_wallet(database, tenant, 10)
    with pytest.raises(Bug, match=f"constraint ledger_account_{rule} "):
        async with database.transaction() as tx:
            await tx.execute(
                text(
                    f"UPDATE ledger_account SET {change} WHERE tenant = :t AND account = 'wallet'"
                ),
                {"t": tenant},
            )


# The activities


async def test_the_activities_run_twice_like_once(database: Database, tenant: str) -> None:
    activities, environment = LedgerActivities(database), ActivityEnvironment()
    held = f"{tenant}/o-2/hold"
    steps: list[tuple[Callable[..., Any], object]] = [
        (activities.open_account, opening(f"{tenant}/l/open", "sales", LimitRule.NONE)),
        (activities.post_transfer, posting(f"{tenant}/o-1/post", legs(5))),
        (activities.hold_transfer, holding(held, legs(8))),
        (activities.settle_transfer, settling(held)),
        (activities.reverse_transfer, reversing(f"{tenant}/o-2/reverse", held)),
        (activities.void_transfer, voiding(f"{tenant}/o-3/hold")),
    ]
    for activity, request in steps:
        first = await environment.run(activity, request)
        assert await environment.run(activity, request) == first
    assert await totals(database, tenant, "cash") == (13, 8, 0, 0)


async def test_an_activity_tells_temporal_not_to_retry_a_bug(
    database: Database, tenant: str
) -> None:
    activities = LedgerActivities(database)
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(activities.settle_transfer, settling(f"{tenant}/o-1/hold"))
    assert (caught.value.type, caught.value.non_retryable) == ("NothingTried", True)
