"""The fence on a real PostgreSQL, shown on stored balances: money shows every doubled step."""

import asyncio
import itertools
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.account import AccountActivities
from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import (
    BalanceDebited,
    BalanceFrozen,
    BalanceUnfrozen,
    DebitBalance,
    Deposit,
    FreezeBalance,
    InsufficientBalance,
    UnfreezeBalance,
)
from everycent.domain.message import StepRequest
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    Bug,
    EverycentError,
    KeyReused,
    NotConfirmable,
    NothingTried,
)
from everycent.settings import ServiceName, Settings

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)
R = TypeVar("R", bound=StepRequest)
A = TypeVar("A")
Operation = Callable[[AsyncConnection, Sequence[R]], Awaitable[Sequence[A]]]


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["account"]


@pytest.fixture
def owner(owners: dict[ServiceName, Database]) -> Database:
    return owners["account"]


async def run(database: Database, operation: Operation[R, A], request: R) -> A:
    async with database.transaction() as tx:
        [answer] = await operation(tx, [request])
    return answer


def freeze(tenant: str, amount_minor: int = 400, order: str = "o-1") -> FreezeBalance:
    return FreezeBalance(
        key=f"{tenant}/{order}/authorise",
        at=NOON,
        opened_on=TODAY,
        account="ann",
        currency="EUR",
        amount_minor=amount_minor,
    )


def debit(tenant: str, order: str = "o-1") -> DebitBalance:
    return DebitBalance(key=f"{tenant}/{order}/authorise", at=NOON, opened_on=TODAY)


def unfreeze(tenant: str, order: str = "o-1") -> UnfreezeBalance:
    return UnfreezeBalance(
        key=f"{tenant}/{order}/authorise", at=NOON, opened_on=TODAY, reason="customer"
    )


async def fund(database: Database, tenant: str, amount_minor: int = 1000) -> None:
    request = Deposit(
        key=f"{tenant}/fund/deposit",
        at=NOON,
        opened_on=TODAY,
        account="ann",
        currency="EUR",
        amount_minor=amount_minor,
    )
    await run(database, account.deposit, request)


async def money(database: Database, tenant: str) -> tuple[int, int, int]:
    """Return (balance, available, frozen) of Ann's account."""
    async with database.snapshot() as tx:
        result = await tx.execute(
            text("SELECT balance, available, frozen FROM account WHERE tenant = :tenant"),
            {"tenant": tenant},
        )
        row = result.one()
    return row.balance, row.available, row.frozen


async def states(database: Database, tenant: str) -> list[str]:
    async with database.snapshot() as tx:
        result = await tx.execute(
            text("SELECT state FROM balance_hold WHERE starts_with(key, :prefix) ORDER BY key"),
            {"prefix": f"{tenant}/"},
        )
        return list(result.scalars())


@asynccontextmanager
async def hooked(
    owner: Database, table: str, tenant: str, event: str, what: str
) -> AsyncIterator[None]:
    """Let every INSERT or UPDATE of this tenant's rows in a table do something first."""
    tenant_of = "NEW.tenant" if table == "account" else "split_part(NEW.key, '/', 1)"
    async with owner.transaction() as tx:
        await tx.execute(
            text(
                "CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF {tenant_of} = '{tenant}' THEN {what}; END IF; RETURN NEW; END $$"
            )
        )
        await tx.execute(
            text(
                f"CREATE TRIGGER hook BEFORE {event} ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION hook()"
            )
        )
    try:
        yield
    finally:
        async with owner.transaction() as tx:
            await tx.execute(text("DROP FUNCTION hook CASCADE"))


def broken(owner: Database, table: str, tenant: str) -> AbstractAsyncContextManager[None]:
    """Let every UPDATE of this tenant's rows in a table fail, as a fault in the middle would."""
    return hooked(owner, table, tenant, "UPDATE", "RAISE EXCEPTION 'fault'")


async def wait_until_blocked(owner: Database, pid: int, sessions: int = 1) -> None:
    """Wait until other sessions wait for a lock of this one, or for one that waits for it."""
    deadline = asyncio.get_running_loop().time() + 2.5
    while asyncio.get_running_loop().time() < deadline:
        async with owner.snapshot() as tx:
            waiting = await tx.scalar(
                text(
                    "WITH RECURSIVE waiting (pid) AS (SELECT CAST(:pid AS int)"
                    " UNION SELECT a.pid FROM pg_stat_activity a JOIN waiting w"
                    " ON w.pid = ANY(pg_blocking_pids(a.pid))) SELECT count(*) - 1 FROM waiting"
                ),
                {"pid": pid},
            )
        if waiting is not None and waiting >= sessions:
            return
        await asyncio.sleep(0.01)
    pytest.fail("nobody waited")


async def pid_of(tx: AsyncConnection) -> int:
    pid = await tx.scalar(text("SELECT pg_backend_pid()"))
    assert isinstance(pid, int)
    return pid


# --- Cancel ---


@pytest.mark.requirement("AC12.1")
async def test_a_hundred_concurrent_cancels_return_the_balance_once(
    database: Database, owner: Database, tenant: str
) -> None:
    """All calls report the same success and one row stands.

    The account is kept locked until as many as there are connections are in the middle of it.

    Red when: judge_cancel lets a CANCELLED row proceed, or the cancel does not lock its row.
    """
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))

    async with owner.transaction() as tx:
        await tx.execute(
            text("SELECT FROM account WHERE tenant = :tenant FOR UPDATE"), {"tenant": tenant}
        )
        cancels = [
            asyncio.create_task(run(database, account.unfreeze_balance, unfreeze(tenant)))
            for _ in range(100)
        ]
        await wait_until_blocked(owner, await pid_of(tx), database.pool.size)
    answers = await asyncio.gather(*cancels)

    assert set(map(repr, answers)) == {
        repr(BalanceUnfrozen(amount_minor=400, available_minor=1000))
    }
    assert await money(database, tenant) == (1000, 1000, 0)
    assert await states(database, tenant) == ["CANCELLED"]


@pytest.mark.requirement("AC12.2")
@pytest.mark.parametrize("table", ["account", "balance_hold"])
async def test_a_fault_between_status_and_refund_leaves_both_or_neither(
    database: Database, owner: Database, tenant: str, table: str
) -> None:
    """Whichever of the two writes fails, the other is gone too, and the next Cancel does both.

    Red when: the money and the state are written in two transactions.
    """
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))

    async with broken(owner, table, tenant):
        with pytest.raises(DBAPIError, match="fault"):
            await run(database, account.unfreeze_balance, unfreeze(tenant))

        assert await money(database, tenant) == (1000, 600, 400)
        assert await states(database, tenant) == ["TRIED"]

    await run(database, account.unfreeze_balance, unfreeze(tenant))
    assert await money(database, tenant) == (1000, 1000, 0)
    assert await states(database, tenant) == ["CANCELLED"]


@pytest.mark.requirement("AC12.3")
async def test_cancel_of_a_cancelled_row_is_the_first_success_again(
    database: Database, tenant: str
) -> None:
    """Red when: a repeated Cancel raises, or answers what the account has now."""
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))
    first = await run(database, account.unfreeze_balance, unfreeze(tenant))
    await run(database, account.freeze_balance, freeze(tenant, order="o-2"))

    assert await run(database, account.unfreeze_balance, unfreeze(tenant)) == first
    assert await money(database, tenant) == (1000, 600, 400)


@pytest.mark.requirement("AC12.3")
async def test_cancel_of_a_confirmed_row_is_an_alarm_and_returns_nothing(
    database: Database, tenant: str
) -> None:
    """The error is a Bug (the class that raises the alarm) and Temporal is told not to retry it.

    Red when: judge_cancel lets a CONFIRMED row proceed or repeat.
    """
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))
    await run(database, account.debit_balance, debit(tenant))

    with pytest.raises(ApplicationError) as raised:
        await ActivityEnvironment().run(
            AccountActivities(database).unfreeze_balance, unfreeze(tenant)
        )

    assert (raised.value.type, raised.value.non_retryable) == (AlreadyConfirmed.__name__, True)
    assert issubclass(AlreadyConfirmed, Bug)
    assert await money(database, tenant) == (600, 600, 0)
    assert await states(database, tenant) == ["CONFIRMED"]


@pytest.mark.requirement("AC12.3", "AC13.2")
async def test_cancel_without_try_succeeds_and_leaves_a_tombstone(
    database: Database, tenant: str
) -> None:
    """Red when: a Cancel does not insert its row, or moves money for a row it made itself."""
    await fund(database, tenant)

    for _ in range(2):
        answer = await run(database, account.unfreeze_balance, unfreeze(tenant))
        assert answer == BalanceUnfrozen(amount_minor=0)

    assert await money(database, tenant) == (1000, 1000, 0)
    assert await states(database, tenant) == ["CANCELLED"]
    async with database.snapshot() as tx:
        tombstone = (
            await tx.execute(
                text("SELECT reason, request_hash, try_answer FROM balance_hold WHERE key = :key"),
                {"key": unfreeze(tenant).key},
            )
        ).one()
    assert tuple(tombstone) == ("customer", None, None)


@pytest.mark.requirement("AC12.3")
async def test_cancel_waits_for_a_writer_of_the_account_and_then_sees_its_version(
    database: Database, owner: Database, tenant: str
) -> None:
    """A version that another payment moved in between is read again, never taken for "cancelled".

    Red when: the account is read before its lock, or the Cancel compares a version it read before.
    """
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))

    async with database.transaction() as tx:
        await account.freeze_balance(tx, [freeze(tenant, order="o-2", amount_minor=100)])
        cancel = asyncio.create_task(run(database, account.unfreeze_balance, unfreeze(tenant)))
        await wait_until_blocked(owner, await pid_of(tx))

    assert await cancel == BalanceUnfrozen(amount_minor=400, available_minor=900)
    assert await money(database, tenant) == (1000, 900, 100)


@pytest.mark.requirement("AC12.4")
async def test_of_confirm_and_cancel_started_together_exactly_one_wins_each_time(
    database: Database, tenant: str
) -> None:
    """A thousand holds of one cent; what is left in the account counts the Cancels that won.

    Red when: lock_for_confirm reads its row without locking it.
    """
    rounds = 1000
    await fund(database, tenant, rounds)
    async with database.transaction() as tx:
        await account.freeze_balance(
            tx, [freeze(tenant, order=f"o-{n}", amount_minor=1) for n in range(rounds)]
        )
    gate = asyncio.Semaphore(8)

    async def race(n: int) -> frozenset[type]:
        confirm = run(database, account.debit_balance, debit(tenant, f"o-{n}"))
        cancel = run(database, account.unfreeze_balance, unfreeze(tenant, f"o-{n}"))
        async with gate:
            # The order of the two alternates: else the first task would always be first.
            both = await asyncio.gather(*((confirm, cancel) if n % 2 else (cancel, confirm)))
        return frozenset(map(type, both))

    ended = Counter(await asyncio.gather(*(race(n) for n in range(rounds))))
    won = {
        "confirm": ended.pop(frozenset({BalanceDebited, AlreadyConfirmed}), 0),
        "cancel": ended.pop(frozenset({BalanceUnfrozen, NotConfirmable}), 0),
    }

    assert ended == {}
    assert won["confirm"] > 0
    assert won["cancel"] > 0
    assert await money(database, tenant) == (won["cancel"], won["cancel"], 0)
    assert Counter(await states(database, tenant)) == {
        "CONFIRMED": won["confirm"],
        "CANCELLED": won["cancel"],
    }


@pytest.mark.requirement("AC12.5")
async def test_the_amount_returned_or_spent_comes_from_the_stored_row(
    database: Database, tenant: str
) -> None:
    """An amount smuggled into the call has no effect.

    Red when: a Confirm or Cancel takes its amount from the request.
    """
    await fund(database, tenant)
    tampered = {"at": NOON, "opened_on": TODAY, "amount_minor": 999, "account": "eve"}
    for order in ("o-1", "o-2"):
        await run(database, account.freeze_balance, freeze(tenant, order=order))

    cancelled = await run(
        database,
        account.unfreeze_balance,
        UnfreezeBalance.model_validate({**unfreeze(tenant).model_dump(), **tampered}),
    )
    confirmed = await run(
        database,
        account.debit_balance,
        DebitBalance.model_validate({**debit(tenant, "o-2").model_dump(), **tampered}),
    )

    assert isinstance(cancelled, BalanceUnfrozen)
    assert isinstance(confirmed, BalanceDebited)
    assert (cancelled.amount_minor, confirmed.amount_minor) == (400, 400)
    assert await money(database, tenant) == (600, 600, 0)


@pytest.mark.requirement("AC12.6")
@pytest.mark.parametrize(
    ("made_by", "state"),
    [
        (["cancel"], "TRIED"),
        (["try", "cancel"], "TRIED"),
        (["try", "cancel"], "CONFIRMED"),
        (["try", "confirm"], "TRIED"),
        (["try", "confirm"], "CANCELLED"),
        (["try"], "REFUSED"),
    ],
)
async def test_a_trigger_refuses_an_illegal_arrow_in_hand_written_sql(
    database: Database, owner: Database, tenant: str, made_by: list[str], state: str
) -> None:
    """Even for the owner of the table.

    Red when: the trigger `balance_hold_arrows` is dropped, or allows the arrow.
    """
    await fund(database, tenant)
    for step in made_by:
        await STEPS[step](database, tenant)

    with pytest.raises(Bug, match="balance_hold_state_moves_forward"):
        async with owner.transaction() as tx:
            await tx.execute(
                text("UPDATE balance_hold SET state = :state WHERE key = :key"),
                {"state": state, "key": freeze(tenant).key},
            )


@pytest.mark.requirement("AC12.6")
@pytest.mark.parametrize(
    ("assignment", "constraint"),
    [
        ("amount_minor = 1", "balance_hold_request_is_fixed"),
        ("request_hash = 'x'", "balance_hold_request_is_fixed"),
        ("""try_answer = '{"kind": "other"}'""", "balance_hold_answer_is_fixed"),
        ("try_answer = NULL", "balance_hold_answer_is_fixed"),
    ],
)
async def test_a_trigger_keeps_what_was_asked_and_answered(
    database: Database, owner: Database, tenant: str, assignment: str, constraint: str
) -> None:
    """Red when: the trigger stops comparing the request's columns or the stored answers."""
    await fund(database, tenant)
    await run(database, account.freeze_balance, freeze(tenant))

    with pytest.raises(Bug, match=constraint):
        async with owner.transaction() as tx:
            await tx.execute(
                text(f"UPDATE balance_hold SET {assignment} WHERE key = :key"),
                {"key": freeze(tenant).key},
            )


# --- The fence's row and the business change ---


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize("table", ["account", "balance_hold"])
async def test_a_try_leaves_its_row_and_the_frozen_money_or_neither(
    database: Database, owner: Database, tenant: str, table: str
) -> None:
    """Red when: the claim is committed on its own, or the money moves on another connection."""
    await fund(database, tenant)

    async with broken(owner, table, tenant):
        with pytest.raises(DBAPIError, match="fault"):
            await run(database, account.freeze_balance, freeze(tenant))

        assert await states(database, tenant) == []
        assert await money(database, tenant) == (1000, 1000, 0)

    assert isinstance(await run(database, account.freeze_balance, freeze(tenant)), BalanceFrozen)


@pytest.mark.requirement("AC13.3")
async def test_a_try_after_the_tombstone_is_refused_for_good_and_freezes_nothing(
    database: Database, tenant: str
) -> None:
    """Red when: judge_try lets a CANCELLED row proceed, or the boundary lets Temporal retry it."""
    await fund(database, tenant)
    await run(database, account.unfreeze_balance, unfreeze(tenant))

    with pytest.raises(ApplicationError) as raised:
        await ActivityEnvironment().run(AccountActivities(database).freeze_balance, freeze(tenant))

    assert (raised.value.type, raised.value.non_retryable) == (AlreadyCancelled.__name__, True)
    assert await money(database, tenant) == (1000, 1000, 0)


@pytest.mark.requirement("AC13.4")
async def test_three_branches_of_one_order_in_one_database_stand_apart(
    database: Database, tenant: str
) -> None:
    """Two of them are the same step of the same service: their request id tells them apart.

    Red when: the fence's key is the order (xid) alone.
    """
    await fund(database, tenant)
    keys = [f"{tenant}/o-1/{branch}" for branch in ("authorise/p-1", "authorise/p-2", "deposit")]
    for key in keys[:2]:
        held = await run(
            database, account.freeze_balance, freeze(tenant).model_copy(update={"key": key})
        )
        assert isinstance(held, BalanceFrozen)
    await run(
        database,
        account.deposit,
        Deposit.model_validate({**freeze(tenant, 5).model_dump(), "key": keys[2]}),
    )

    await run(
        database, account.unfreeze_balance, unfreeze(tenant).model_copy(update={"key": keys[0]})
    )
    await run(database, account.debit_balance, debit(tenant).model_copy(update={"key": keys[1]}))

    assert await states(database, tenant) == ["CANCELLED", "CONFIRMED"]
    assert await money(database, tenant) == (605, 605, 0)


@pytest.mark.requirement("AC13.5")
@pytest.mark.parametrize("commits", [True, False])
async def test_a_cancel_waits_for_the_try_under_way_and_then_does_what_it_left(
    database: Database, owner: Database, tenant: str, commits: bool
) -> None:
    """A Try that commits is undone; one that aborts is answered by an empty Cancel.

    Red when: the Cancel looks for the row with a SELECT instead of inserting its tombstone first.
    """
    await fund(database, tenant)

    async with database.transaction() as tx:
        await account.freeze_balance(tx, [freeze(tenant)])
        cancel = asyncio.create_task(run(database, account.unfreeze_balance, unfreeze(tenant)))
        await wait_until_blocked(owner, await pid_of(tx))
        assert not cancel.done()
        if not commits:
            await tx.rollback()

    answer = await cancel
    assert isinstance(answer, BalanceUnfrozen)
    assert answer.amount_minor == (400 if commits else 0)
    assert await money(database, tenant) == (1000, 1000, 0)
    assert await states(database, tenant) == ["CANCELLED"]
    late = await run(database, account.freeze_balance, freeze(tenant))
    assert isinstance(late, AlreadyCancelled)


@pytest.mark.requirement("AC13.5")
@pytest.mark.parametrize("commits", [True, False])
async def test_a_try_waits_for_the_cancel_under_way_and_is_refused_if_it_commits(
    database: Database, owner: Database, tenant: str, commits: bool
) -> None:
    """Red when: the losing Try reads the row in the statement that inserts, and so misses it."""
    await fund(database, tenant)

    async with database.transaction() as tx:
        await account.unfreeze_balance(tx, [unfreeze(tenant)])
        attempt = asyncio.create_task(run(database, account.freeze_balance, freeze(tenant)))
        await wait_until_blocked(owner, await pid_of(tx))
        assert not attempt.done()
        if not commits:
            await tx.rollback()

    assert isinstance(await attempt, AlreadyCancelled if commits else BalanceFrozen)
    assert await money(database, tenant) == ((1000, 1000, 0) if commits else (1000, 600, 400))


@pytest.mark.requirement("AC13.6")
async def test_a_try_that_wakes_after_its_cancel_is_refused_in_its_old_transaction(
    database: Database, tenant: str
) -> None:
    """The zombie's transaction began before the Cancel and claims after it.

    Red when: the transaction is REPEATABLE READ, or the claim is a SELECT on an old snapshot.
    """
    await fund(database, tenant)

    async with database.transaction() as zombie:
        await zombie.execute(text("SELECT count(*) FROM balance_hold"))
        await run(database, account.unfreeze_balance, unfreeze(tenant))
        [answer] = await account.freeze_balance(zombie, [freeze(tenant)])

    assert isinstance(answer, AlreadyCancelled)
    assert await money(database, tenant) == (1000, 1000, 0)


@pytest.mark.requirement("AC13.7")
async def test_the_fence_talks_to_postgresql_and_to_nothing_else(
    settings: Settings, tenant: str
) -> None:
    """Not to Redis either: every connection this process opens goes to the one server.

    Red when: any operation opens a connection to another server.
    """
    port = make_url(settings.database["account"]).port
    _connected.clear()
    fresh = Database(settings.database["account"], settings.pool)
    try:
        await fund(fresh, tenant)
        await run(fresh, account.freeze_balance, freeze(tenant))
        await run(fresh, account.unfreeze_balance, unfreeze(tenant))
        assert isinstance(
            await run(fresh, account.freeze_balance, freeze(tenant)), AlreadyCancelled
        )
    finally:
        await fresh.close()
    assert {address[1] for address in _connected} == {port}


@pytest.mark.requirement("AC13.8")
@pytest.mark.parametrize(
    ("service", "table"),
    [
        ("account", "balance_hold"),
        ("account", "balance_credit"),
        ("inventory", "reservation"),
        ("inventory", "stock_booking"),
        ("points", "points_hold"),
        ("points", "points_booking"),
    ],
)
@pytest.mark.parametrize("statement", ["DELETE FROM", "TRUNCATE"])
async def test_a_worker_cannot_remove_a_fence_row(
    databases: dict[ServiceName, Database], service: ServiceName, table: str, statement: str
) -> None:
    """No clean-up exists yet: rows and tombstones outlive every late message.

    Red when: the worker's role is granted DELETE or TRUNCATE.
    """
    with pytest.raises(DBAPIError, match="permission denied"):
        async with databases[service].transaction() as tx:
            await tx.execute(text(f"{statement} {table}"))


# --- One key ---


@pytest.mark.requirement("T10")
async def test_fifty_concurrent_tries_of_one_key_are_one_effect_and_fifty_equal_answers(
    database: Database, tenant: str
) -> None:
    """Red when: the claim is a check before the insert, or a loser computes its own answer."""
    await fund(database, tenant)

    answers = await asyncio.gather(
        *(run(database, account.freeze_balance, freeze(tenant)) for _ in range(50))
    )

    assert set(answers) == {BalanceFrozen(amount_minor=400, available_minor=600)}
    assert await money(database, tenant) == (1000, 600, 400)


@pytest.mark.requirement("T10")
async def test_another_body_under_a_taken_key_is_refused_and_writes_nothing(
    database: Database, tenant: str
) -> None:
    """Of fifty callers with two bodies one body wins; the other is told in every state of the row.

    Red when: judge_try compares no hash.
    """
    await fund(database, tenant)
    bodies = [freeze(tenant, 400), freeze(tenant, 500)]

    answers = await asyncio.gather(
        *(run(database, account.freeze_balance, bodies[n % 2]) for n in range(50))
    )

    assert Counter(type(answer) for answer in answers) == {BalanceFrozen: 25, KeyReused: 25}
    _, available, frozen = await money(database, tenant)
    assert frozen in (400, 500)
    assert available == 1000 - frozen
    loser = next(body for body in bodies if body.amount_minor != frozen)
    await run(database, account.debit_balance, debit(tenant))
    assert isinstance(await run(database, account.freeze_balance, loser), KeyReused)


async def test_a_batch_answers_each_of_its_items_and_a_repeated_key_once(
    database: Database, tenant: str
) -> None:
    await fund(database, tenant)
    await run(database, account.unfreeze_balance, unfreeze(tenant, "late"))
    batch = [
        freeze(tenant, 600, "b"),
        freeze(tenant, 300, "a"),
        freeze(tenant, 300, "a"),
        freeze(tenant, 200, "c"),
        freeze(tenant, 301, "a"),
        freeze(tenant, 1, "late"),
    ]

    async with database.transaction() as tx:
        answers = await account.freeze_balance(tx, batch)

    assert answers[:4] == [
        BalanceFrozen(amount_minor=600, available_minor=100),
        BalanceFrozen(amount_minor=300, available_minor=700),
        BalanceFrozen(amount_minor=300, available_minor=700),
        InsufficientBalance(needed_minor=200, available_minor=100),
    ]
    assert [type(answer) for answer in answers[4:]] == [KeyReused, AlreadyCancelled]
    assert await money(database, tenant) == (1000, 100, 900)


async def test_four_writers_of_the_same_new_keys_in_any_order_never_deadlock(
    database: Database, owner: Database, tenant: str
) -> None:
    """Two batches of Tries and two of Cancels, under way together: each row takes its time.

    Whichever writer is first with the first key, the others wait there and nowhere else.
    """
    await fund(database, tenant)

    async def claim(seed: int) -> None:
        orders = [f"o-{n}" for n in range(40)]
        random.Random(seed).shuffle(orders)
        async with database.transaction() as tx:
            if seed % 2:
                await account.freeze_balance(tx, [freeze(tenant, 1, order) for order in orders])
            else:
                await account.unfreeze_balance(tx, [unfreeze(tenant, order) for order in orders])

    async with hooked(owner, "balance_hold", tenant, "INSERT", "PERFORM pg_sleep(0.005)"):
        await asyncio.gather(*(claim(seed) for seed in range(4)))

    assert await states(database, tenant) == ["CANCELLED"] * 40
    assert await money(database, tenant) == (1000, 1000, 0)


async def test_an_empty_batch_does_nothing(database: Database) -> None:
    async with database.transaction() as tx:
        assert await account.freeze_balance(tx, []) == []
        assert await account.debit_balance(tx, []) == []
        assert await account.unfreeze_balance(tx, []) == []
        assert await account.deposit(tx, []) == []


async def test_a_confirm_without_a_try_is_a_bug_and_writes_nothing(
    database: Database, tenant: str
) -> None:
    assert isinstance(await run(database, account.debit_balance, debit(tenant)), NothingTried)
    assert await states(database, tenant) == []


# --- Orders of arrival ---


async def _try(database: Database, tenant: str) -> object:
    return await run(database, account.freeze_balance, freeze(tenant))


async def _confirm(database: Database, tenant: str) -> object:
    return await run(database, account.debit_balance, debit(tenant))


async def _cancel(database: Database, tenant: str) -> object:
    return await run(database, account.unfreeze_balance, unfreeze(tenant))


STEPS: dict[str, Callable[[Database, str], Awaitable[object]]] = {
    "try": _try,
    "confirm": _confirm,
    "cancel": _cancel,
}
MONEY_OF = {"CONFIRMED": (600, 600, 0), "CANCELLED": (1000, 1000, 0)}


@pytest.mark.requirement("T12")
async def test_every_order_of_try_confirm_cancel_and_their_doubles_ends_in_one_outcome(
    database: Database, tenant: str
) -> None:
    """The first end after the Try decides; whoever comes before the Try leaves it nothing.

    Red when: a Cancel that came first leaves no tombstone, or a double moves money again.
    """
    orders = sorted(set(itertools.permutations(["try", "try", "confirm", "cancel", "cancel"])))
    for n, order in enumerate(orders):
        shop = f"{tenant}-{n}"
        await fund(database, shop)
        for step in order:
            await STEPS[step](database, shop)
        confirmed = order.index("try") < order.index("confirm") < order.index("cancel")
        [state] = await states(database, shop)
        assert state == ("CONFIRMED" if confirmed else "CANCELLED"), order
        assert await money(database, shop) == MONEY_OF[state], order


@pytest.mark.requirement("T12")
async def test_try_confirm_cancel_and_their_doubles_at_once_end_in_one_outcome(
    database: Database, tenant: str
) -> None:
    """Every start order of the same five, all under way together.

    Red when: a Cancel selects before it inserts, or a Confirm does not lock.
    """
    orders = sorted(set(itertools.permutations(["try", "try", "confirm", "cancel", "cancel"])))
    for n, order in enumerate(orders):
        shop = f"{tenant}-{n}"
        await fund(database, shop)
        answers = await asyncio.gather(*(STEPS[step](database, shop) for step in order))
        [state] = await states(database, shop)
        assert await money(database, shop) == MONEY_OF[state], order
        assert any(isinstance(answer, BalanceDebited) for answer in answers) == (
            state == "CONFIRMED"
        )
        cancels = [a for step, a in zip(order, answers, strict=True) if step == "cancel"]
        assert len(set(map(type, cancels))) == 1
        assert isinstance(cancels[0], EverycentError) == (state == "CONFIRMED")


# --- The schema ---


@pytest.mark.parametrize("service", ["inventory", "account", "points"])
async def test_every_rule_is_a_named_constraint(
    owners: dict[ServiceName, Database], service: ServiceName
) -> None:
    """A name that PostgreSQL made up (`…_check`, `…_key`) tells nobody which rule was broken."""
    async with owners[service].snapshot() as tx:
        result = await tx.execute(
            text(
                "SELECT conname FROM pg_constraint JOIN pg_namespace n ON n.oid = connamespace"
                " WHERE n.nspname = 'public' AND contype IN ('c', 'u', 'f', 'x')"
            )
        )
        names = list(result.scalars())
    assert len(names) >= 10
    assert [n for n in names if n.rstrip("0123456789").endswith(("_check", "_key", "_fkey"))] == []


# An audit hook cannot be taken off again, so there is one and it only notes.
_connected: list[Any] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        _connected.append(arguments[1])


sys.addaudithook(_note)
