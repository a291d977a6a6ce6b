"""Every writer takes its rows in one order and waits at the first that another has.

One session has the lower of two rows. The writer asks for both, the higher one first; once it waits
for that session (PostgreSQL says so), the higher row must still be free. Without the lock it would
not wait at all; in another order it would hold what the next writer needs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import (
    account,
    fence,
    inventory,
    ledger,
    order,
    payment,
    points,
    repair_case,
    withdrawal,
)
from everycent.database import provider_call as calls
from everycent.database.engine import Database
from everycent.domain.account import DebitBalance, FreezeBalance
from everycent.domain.ledger import Leg, PostTransfer
from everycent.domain.order import (
    AddAttempt,
    CardPayment,
    CloseOrder,
    Decide,
    Decision,
    Marked,
    MarkOrder,
    OpenOrder,
    OrderLine,
    OrderResult,
    OrderStatus,
    ParkStep,
    PlaceOrder,
    SettleCase,
    WaitsFor,
)
from everycent.domain.withdrawal import WithdrawOrder
from everycent.settings import PoolSettings, ServiceName, Settings
from tests.conftest import NOON, TODAY
from tests.database import test_constraints as rows
from tests.database.break_rows import a_break, close_breaks, write_breaks
from tests.database.mode_rows import a_decision, deciding

LOW, HIGH = "a", "b"
Write = Callable[[AsyncConnection, str, list[str]], Awaitable[Any]]
STATEMENT = text("SELECT query FROM pg_stat_activity WHERE pid = :pid")
BLOCKED_BY = text("SELECT pg_blocking_pids(:pid)")


class Case(NamedTuple):
    """A writer: how a row of that name is made and found, and how the writer asks for some."""

    service: ServiceName
    make: Callable[[str], str]
    where: str
    write: Write


def named(table: str, column: str, **values: Any) -> Callable[[str], str]:
    return lambda name: rows.insert(table, **{**values, column: f"'{name}'"})


def keyed(make: Callable[..., str]) -> Callable[[str], str]:
    return lambda name: make(key=f":t || '/{name}/step'")


def keys(tenant: str, names: list[str]) -> list[str]:
    return [f"{tenant}/{name}/step" for name in names]


def debit(tenant: str, names: list[str]) -> list[DebitBalance]:
    return [DebitBalance(key=key, at=NOON, opened_on=TODAY) for key in keys(tenant, names)]


def freeze(tenant: str, names: list[str]) -> list[FreezeBalance]:
    return [
        FreezeBalance(
            key=key, at=NOON, opened_on=TODAY, account="a", currency="EUR", amount_minor=1
        )
        for key in keys(tenant, names)
    ]


def placed(tenant: str, name: str) -> PlaceOrder:
    return PlaceOrder(
        tenant=tenant, order_id=name, customer="c", currency="EUR",
        lines=(OrderLine(sku="LAMP", units=1, amount_minor=1),),
        payment=CardPayment(card_token="t"),
    )  # fmt: skip


def opening(tenant: str, names: list[str], run: str = "r") -> list[OpenOrder]:
    return [OpenOrder(order=placed(tenant, n), at=NOON, driver="d", run=run) for n in names]


def park(tenant: str, names: list[str]) -> list[ParkStep]:
    return [
        ParkStep(
            tenant=tenant, order_id=name, at=NOON, case_key=key, step="s", error_class="Bug",
            error="e", owner="d",
        )
        for name, key in zip(names, keys(tenant, names), strict=True)
    ]  # fmt: skip


def of_orders(operation: Any, request: Any, **more: Any) -> Write:
    return lambda tx, t, names: operation(
        tx, [request(tenant=t, order_id=n, at=NOON, **more) for n in names]
    )


def closing(tx: AsyncConnection, tenant: str, names: list[str]) -> Awaitable[Any]:
    results = [
        OrderResult(
            tenant=tenant, order_id=n, status=OrderStatus.REJECTED, decision=Decision.ABORTED,
            reason="", refusals=(), total_minor=1, captured_minor=0, refunded_minor=0,
            points_used=0, points_earned=0, undone=(),
        )
        for n in names
    ]  # fmt: skip
    return order.close_order(
        tx, [CloseOrder(tenant=tenant, order_id=r.order_id, at=NOON, result=r) for r in results]
    )


def an_order(**more: str) -> Callable[[str], str]:
    return lambda name: rows.order(order_id=f"'{name}'", **more)


ORDERS, KEYS = "tenant = :t AND order_id = :name", "key = :t || '/' || :name || '/step'"
STOCK = named("stock", "sku", tenant=":t")
MONEY = named("account", "account", tenant=":t", currency="'EUR'")
PURSE = named("points_account", "customer", tenant=":t")
BOOKS = named("ledger_account", "account", tenant=":t", currency="'EUR'")
AT_STOCK, AT_MONEY, AT_PURSE = (
    f"tenant = :t AND {column} = :name" for column in ("sku", "account", "customer")
)
RESULT = (
    "jsonb_build_object('tenant', 't', 'order_id', 'o', 'status', 'REJECTED',"
    " 'decision', 'ABORTED', 'total_minor', 1)"
)
ENDED = an_order(decision="'ABORTED'", status="'REJECTED'", result=RESULT)

LOCKS = {
    "fence": Case(
        "account", keyed(rows.hold), f"balance_hold WHERE {KEYS}",
        lambda tx, t, n: fence.lock_for_confirm(tx, account.HOLD, debit(t, n)),
    ),
    "accounts": Case(
        "account", MONEY, f"account WHERE {AT_MONEY}",
        lambda tx, t, n: account._lock_accounts(tx, [(t, name, "EUR") for name in n]),
    ),
    "stock": Case(
        "inventory", STOCK, f"stock WHERE {AT_STOCK}",
        lambda tx, t, n: inventory._lock_stock(tx, [(t, name) for name in n]),
    ),
    "purses": Case(
        "points", PURSE, f"points_account WHERE {AT_PURSE}",
        lambda tx, t, n: points._lock_purses(tx, [(t, name) for name in n]),
    ),
    "ledger accounts": Case(
        "ledger", BOOKS, f"ledger_account WHERE {AT_MONEY}",
        lambda tx, t, n: ledger._lock(tx, [(t, name, "EUR") for name in n]),
    ),
    "payments": Case(
        "payment", keyed(rows.payment), f"payment WHERE {KEYS}",
        lambda tx, t, n: payment._lock_payments(tx, keys(t, n)),
    ),
    # These find nothing to write: only the lock makes them wait.
    "orders to decide": Case(
        "order", an_order(decision="'ABORTING'", abort_status="'REJECTED'"),
        f"shop_order WHERE {ORDERS}",
        of_orders(order.decide, Decide, to=Decision.ABORTING, run="r", status=OrderStatus.REJECTED),
    ),
    "orders to close": Case("order", ENDED, f"shop_order WHERE {ORDERS}", closing),
    "orders to pay": Case(
        "order", ENDED, f"shop_order WHERE {ORDERS}",
        of_orders(order.add_attempt, AddAttempt, payment=CardPayment(card_token="t")),
    ),
    "orders to share": Case(
        "order", an_order(), f"shop_order WHERE {ORDERS}",
        lambda tx, t, n: order._note_shared(tx, [(t, name) for name in n]),
    ),
    "cases to park": Case(
        "order", lambda name: rows.case(case_key=f":t || '/{name}/step'"),
        f"repair_case WHERE case_{KEYS}", lambda tx, t, n: repair_case.park_step(tx, park(t, n)),
    ),
    "decisions": Case("order", a_decision, f"decision WHERE {KEYS}", deciding),
    "breaks to close": Case("order", a_break, f"statement_break WHERE {KEYS}", close_breaks),
    "calls to send": Case(
        "payment",
        lambda name: rows.call(key=f":t || '/{name}/step'", provider_key=f":t || '{name}'"),
        f"provider_call WHERE {KEYS}",
        lambda tx, t, n: calls._write(tx, [(k, k, "h", NOON) for k in sorted(keys(t, n))], NOON),
    ),
}  # fmt: skip
INSERTS = {
    "fence": Case(
        "account", keyed(rows.hold), "",
        lambda tx, t, n: fence.claim_tries(tx, account.HOLD, freeze(t, n)),
    ),
    "accounts": Case(
        "account", MONEY, "",
        lambda tx, t, n: account._open_accounts(tx, [(t, name, "EUR") for name in n]),
    ),
    "stock": Case(
        "inventory", STOCK, "", lambda tx, t, n: inventory._add_skus(tx, [(t, name) for name in n])
    ),
    "purses": Case(
        "points", PURSE, "", lambda tx, t, n: points._add_customers(tx, [(t, name) for name in n])
    ),
    "ledger accounts": Case(
        "ledger", BOOKS, "",
        lambda tx, t, n: ledger._add_accounts(tx, [(t, name, "EUR") for name in n]),
    ),
    "orders": Case(
        "order", an_order(), "", lambda tx, t, n: order.open_order(tx, opening(t, n))
    ),
    "decisions": Case("order", a_decision, "", deciding),
    "breaks": Case("order", a_break, "", write_breaks),
    "withdrawn ids": Case(
        "order", an_order(), "",
        of_orders(withdrawal.withdraw_order, WithdrawOrder, by="sweeper/x"),
    ),
}  # fmt: skip


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize("name", LOCKS)
async def test_rows_are_locked_in_order(settings: Settings, tenant: str, name: str) -> None:
    """Red when: the lock is left out, or its rows come in another order."""
    case = LOCKS[name]
    async with _sessions(settings, case.service) as (holder, writer, probe):
        for made in (HIGH, LOW):  # The table has them in the wrong order.
            await holder.execute(text(case.make(made)), {"t": tenant})
        await holder.commit()
        lock = text(f"SELECT FROM {case.where} FOR UPDATE SKIP LOCKED")
        assert (await holder.execute(lock, {"t": tenant, "name": LOW})).rowcount == 1
        work = asyncio.ensure_future(case.write(writer, tenant, [HIGH, LOW]))
        await _waits_for(writer, holder, work)
        free = (await probe.execute(lock, {"t": tenant, "name": HIGH})).rowcount
        waits_in = await probe.scalar(STATEMENT, {"pid": await _pid(writer)})
        await probe.rollback()
        await holder.rollback()
        await work
    assert free == 1, "the higher row was taken before the lower one"
    assert not str(waits_in).startswith("UPDATE"), "it waited in the write, not at the lock"


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize("name", INSERTS)
async def test_rows_are_inserted_in_order(settings: Settings, tenant: str, name: str) -> None:
    """Who comes second waits for the first, makes nothing before, and then takes what is there.

    Red when: ON CONFLICT is left out, or the rows come in another order.
    """
    case = INSERTS[name]
    async with _sessions(settings, case.service) as (holder, writer, probe):
        await holder.execute(text(case.make(LOW)), {"t": tenant})
        work = asyncio.ensure_future(case.write(writer, tenant, [HIGH, LOW]))
        await _waits_for(writer, holder, work)
        await probe.execute(text("SET LOCAL lock_timeout = '100ms'"))
        taken = False
        try:
            await probe.execute(text(case.make(HIGH)), {"t": tenant})
        except DBAPIError:  # Somebody has inserted it and not committed.
            taken = True
        await probe.rollback()
        await holder.commit()
        await work
    assert not taken, "the higher row was inserted before the lower one"


@pytest.mark.parametrize("name", ["stock", "ledger accounts"])
async def test_a_row_that_is_there_is_not_waited_for(
    settings: Settings, tenant: str, name: str
) -> None:
    """Who only makes sure that a busy row exists takes its turn at the lock, not before it."""
    case = INSERTS[name]
    where = {"stock": "stock WHERE sku", "ledger accounts": "ledger_account WHERE account"}[name]
    table, _, column = where.partition(" WHERE ")
    async with _sessions(settings, case.service) as (holder, writer, _):
        await holder.execute(text(case.make(LOW)), {"t": tenant})
        await holder.commit()
        change = f"UPDATE {table} SET version = 9 WHERE tenant = :t AND {column} = :name"
        await holder.execute(text(change), {"t": tenant, "name": LOW})
        await case.write(writer, tenant, [LOW])  # The writer's lock_timeout would end a wait.


async def test_entries_are_numbered_in_the_order_of_their_balances(
    databases: dict[ServiceName, Database], tenant: str
) -> None:
    legs = tuple(
        Leg(account=name, amount_minor=minor, currency="EUR")
        for name, minor in (("cash", 5), ("sales", -5))
    )
    posts = [
        PostTransfer(key=f"{tenant}/{n}/sale", at=NOON, opened_on=TODAY, entries=legs)
        for n in range(3)
    ]
    async with databases["ledger"].transaction() as tx:
        await ledger.post_transfer(tx, posts)
        found = await tx.scalars(
            text(
                "SELECT balance_after_minor FROM entry WHERE tenant = :t AND account = 'cash'"
                " ORDER BY seq"
            ),
            {"t": tenant},
        )
        assert list(found) == [5, 10, 15]


async def test_a_case_counts_its_failures_until_a_person_ends_it(
    databases: dict[ServiceName, Database], tenant: str
) -> None:
    async def standing(tx: AsyncConnection) -> tuple[Any, ...]:
        found = await tx.execute(
            text("SELECT attempts, state, resolved_by FROM repair_case WHERE tenant = :t"),
            {"t": tenant},
        )
        return tuple(found.one())

    def later(seconds: int) -> list[ParkStep]:
        at = NOON.replace(second=seconds)
        return [parked.model_copy(update={"at": at}) for parked in park(tenant, [LOW])]

    def settle(by: str) -> list[SettleCase]:
        [key] = keys(tenant, [LOW])
        values = {"tenant": tenant, "order_id": LOW, "at": NOON, "case_key": key, "reason": "r"}
        return [SettleCase.model_validate({**values, "by": by, "by_hand": True})]

    async with databases["order"].transaction() as tx:
        await repair_case.park_step(tx, later(0))
        await repair_case.park_step(tx, later(0))  # The same failure, told twice.
        assert await standing(tx) == (1, "OPEN", None)
        await repair_case.park_step(tx, later(1))
        assert await standing(tx) == (2, "OPEN", None)
        await repair_case.settle_case(tx, settle("ann"))
        await repair_case.settle_case(tx, settle("bob"))
        await repair_case.park_step(tx, later(2))
        assert await standing(tx) == (2, "RESOLVED", "ann")


async def test_a_closed_order_waits_for_nothing(
    databases: dict[ServiceName, Database], tenant: str
) -> None:
    async with databases["order"].transaction() as tx:
        await tx.execute(text(ENDED("o")), {"t": tenant})
        mark = MarkOrder(tenant=tenant, order_id="o", at=NOON, waits_for=WaitsFor.PAYMENT)
        [marked] = await order.mark_order(tx, [mark])
    assert marked == Marked(changed=False)


@contextlib.asynccontextmanager
async def _sessions(settings: Settings, service: ServiceName) -> Any:
    """Open three sessions: two of the owner, the writer between them as the worker."""
    owner = Database(settings.owner[service], PoolSettings(size=2))
    worker = Database(settings.database[service], PoolSettings(size=1))
    try:
        async with (
            owner.engine.connect() as holder,
            worker.engine.connect() as writer,
            owner.engine.connect() as probe,
        ):
            yield holder, writer, probe
    finally:
        await owner.close()
        await worker.close()


async def _waits_for(
    writer: AsyncConnection, holder: AsyncConnection, work: "asyncio.Future[Any]"
) -> None:
    """Return when the writer waits for the holder; fail if it ends without having waited."""
    pids = [await _pid(connection) for connection in (writer, holder)]
    while True:
        blocked_by = await holder.scalar(BLOCKED_BY, {"pid": pids[0]})
        if pids[1] in (blocked_by or ()):
            return
        assert not work.done(), f"it did not wait: {work.exception() or work.result()}"
        await asyncio.sleep(0)


async def _pid(connection: AsyncConnection) -> int:
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    return int(driver.get_server_pid())
