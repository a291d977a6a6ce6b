"""The audit beside what moves: it accuses nobody who is on the way, and nobody else escapes it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from everycent.database import inventory
from everycent.database.engine import Database
from everycent.domain.inventory import ReserveStock, StockLine
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderStatus,
    Payment,
    PayOrder,
    RepairOrder,
    WaitsFor,
)
from everycent.proof.audit import OWNER, audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.invariants import PROVIDER
from everycent.proof.provider_books import ProviderEntry, SimulatorBooks
from everycent.settings import Settings
from tests.proof.test_audit import HELD, ORPHANS, broken, look
from tests.workflows.conftest import Shop

OK = CardPayment(card_token="tok_ok")
DECLINED = CardPayment(card_token="tok_declined")


class LateBooks(SimulatorBooks):
    """The simulator's books, each reading of which begins after something else has happened."""

    def __init__(self, shop: Shop, *before: Callable[[], Awaitable[object]]) -> None:
        super().__init__(shop.provider)
        self._before = list(before)
        self.invented: list[ProviderEntry] = []  # In the first reading only.

    async def entries(self, prefix: str) -> AsyncIterator[ProviderEntry]:
        if self._before:
            await self._before.pop(0)()
        while self.invented:
            yield self.invented.pop()
        async for entry in super().entries(prefix):
            yield entry


class LateDrivers(TemporalDrivers):
    """Answers at once, and tells only after something else has happened."""

    def __init__(self, shop: Shop, after: Callable[[], Awaitable[object]]) -> None:
        super().__init__(shop.client)
        self._after: Callable[[], Awaitable[object]] | None = after

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        if self._after is None:
            return await super().living(workflow_ids)
        after, self._after = self._after, None
        await after()
        return set()


async def hold_stock(shop: Shop, order_id: str, units: int) -> None:
    now = datetime.now(UTC)
    request = ReserveStock(
        key=f"{shop.tenant}/{order_id}/reserve",
        at=now,
        opened_on=now.date(),
        lines=(StockLine(sku="LAMP", units=units),),
    )
    async with shop.databases["inventory"].transaction() as tx:
        await inventory.reserve_stock(tx, [request])


async def test_an_order_sold_while_the_audit_runs_is_not_accused(
    shop: Shop, settings: Settings
) -> None:
    """The provider's books show a payment of an order that the snapshot of orders has not seen.

    Red when: what looks wrong counts at once instead of being read again.
    """
    await shop.receive(5)
    books = LateBooks(shop, lambda: shop.sell(shop.order(payment=OK)))
    report = await audit(settings, tenant=shop.tenant, provider=books)
    assert report.ok, broken(report)
    assert {r.name: r.rows_looked_at for r in report.rules}[PROVIDER] == 1
    assert report.orders_moving == 0


async def test_an_order_that_moves_while_it_is_read_again_is_read_once_more(
    shop: Shop, settings: Settings
) -> None:
    """Its row said OPEN, then it was sold, then its services were read: they are ahead of the row.

    Red when: an order is judged although its row has moved since.
    """
    await shop.receive(5)

    async def pay() -> None:
        other = PayOrder(payment=CardPayment(request_id="second", card_token="tok_ok"))
        await shop.checkouts.pay(shop.tenant, "o-1", other)
        await shop.checkouts.wait(shop.tenant, "o-1")

    books = LateBooks(shop, lambda: shop.checkouts.place(shop.order(payment=DECLINED)), pay)
    suspicion = ProviderEntry(f"{shop.tenant}/o-1/pay/first", "int_1", "captured", "EUR", 1, 0)
    books.invented.append(suspicion)
    report = await audit(settings, tenant=shop.tenant, provider=books)
    assert report.ok, broken(report)
    assert report.orders_moving == 0


async def test_an_order_closed_while_its_driver_is_looked_for_is_not_accused(
    shop: Shop, settings: Settings
) -> None:
    """Its row is read again after Temporal has said that nobody drives it.

    Red when: `_look_for_owners` believes the first answer.
    """
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=DECLINED))

    async def pay() -> None:
        other = PayOrder(payment=CardPayment(request_id="second", card_token="tok_ok"))
        await shop.checkouts.pay(shop.tenant, "o-1", other)
        await shop.checkouts.wait(shop.tenant, "o-1")

    report = await audit(settings, tenant=shop.tenant, drivers=LateDrivers(shop, pay))
    assert report.ok, broken(report)
    assert {r.name: r.rows_looked_at for r in report.rules}[OWNER] == 1


async def test_an_open_order_has_an_owner_as_long_as_its_workflow_runs(
    shop: Shop, settings: Settings
) -> None:
    """An order that waits for its customer is fine; after its workflow is terminated it is not.

    Red when: an unfinished order is not asked for at Temporal.
    """
    await shop.receive(5)
    await shop.checkouts.place(shop.order(payment=DECLINED))
    report = await look(shop, settings)
    assert report.ok, broken(report)
    handle = shop.client.get_workflow_handle(f"checkout/{shop.tenant}/o-1")
    await handle.terminate("by the test")
    found = broken(await look(shop, settings))
    assert set(found) == {OWNER}
    assert found[OWNER].first_offender == f"{shop.tenant}/o-1"
    assert f"checkout/{shop.tenant}/o-1" in found[OWNER].detail


async def test_money_that_only_the_provider_knows_of_is_found(
    shop: Shop, settings: Settings
) -> None:
    """A charge of the shop that no row of ours explains.

    Red when: the provider's books are looked up by our payments instead of being read whole.
    """
    headers = {"Authorization": "Bearer sk_test_everycent"}
    wanted = {"amount_minor": 500, "currency": "EUR", "reference": f"{shop.tenant}/ghost/pay/first"}
    created = await shop.provider.post(
        "/v1/intents", json={**wanted, "card_token": "tok_ok"},
        headers={**headers, "Idempotency-Key": f"{shop.tenant}-1"},
    )  # fmt: skip
    created.raise_for_status()
    intent = created.json()["id"]
    for number, act in enumerate(("confirm", "capture")):
        answer = await shop.provider.post(
            f"/v1/intents/{intent}/{act}",
            headers={**headers, "Idempotency-Key": f"{shop.tenant}-{act}-{number}"},
        )
        answer.raise_for_status()
    found = broken(await look(shop, settings))
    assert set(found) == {PROVIDER}
    assert found[PROVIDER].first_offender == f"{shop.tenant}/ghost/pay/first"
    assert "captured 500" in found[PROVIDER].detail


async def test_a_step_settled_by_hand_is_taken_as_done(shop: Shop, settings: Settings) -> None:
    """Books that a person answers for, with a name and a reason, are not an offence.

    Red when: `Rule.check` does not look at the cases that were settled by hand.
    """
    await shop.receive(5)
    shop.fault("ledger.post_transfer", "Bug", times=99)
    handle = await shop.start(shop.order(payment=OK))
    await shop.until(lambda: _is_parked(shop))
    report = await look(shop, settings)
    assert report.ok, broken(report)
    repair = RepairOrder(
        case_key=f"{shop.tenant}/o-1/ledger", action="resolve", by="ann", reason="booked by hand"
    )
    await shop.checkouts.repair(shop.tenant, "o-1", repair)
    assert (await handle.result()).status is OrderStatus.CONFIRMED
    report = await look(shop, settings)
    assert report.ok, broken(report)


async def _is_parked(shop: Shop) -> bool:
    return bool(await shop.cases())


@pytest.mark.requirement("AC1.1", "AC9.3")
async def test_audits_during_load_are_clean_and_find_what_is_leaked_in_it(
    shop: Shop, settings: Settings
) -> None:
    """Orders of every kind are sold, cancelled and refused while audit after audit reads them.

    Each audit is a snapshot of every counter: free + held + sold is what came in, and balance is
    available + frozen, at every instant. Then a hold of a closed order is leaked under this load.

    Red when: what looks wrong counts at once, or the services' snapshots come before the order's
    and what looks wrong is not read again.
    """
    await shop.receive(2_000)
    await shop.deposit("a-1", 10**7)
    await shop.grant_points("c-1", 10**5)
    stop = asyncio.Event()
    numbers = itertools.count()
    sellers = [asyncio.create_task(_sell_on(shop, numbers, stop)) for _ in range(8)]
    reports = [await look(shop, settings) for _ in range(4)]
    await shop.until(lambda: _is_closed(shop, "o-1"))
    await hold_stock(shop, "no-such-order", 1)
    await _reopen_hold(shop, settings)
    found = broken(await look(shop, settings))
    stop.set()
    await asyncio.gather(*sellers)

    assert [broken(report) for report in reports if not report.ok] == []
    assert any("PENDING" in report.totals.orders_by_status for report in reports)
    assert {report.orders_moving for report in reports} == {0}
    sold = [report.totals.orders_confirmed for report in reports]
    assert sold == sorted(sold)
    assert sold[0] < sold[-1]
    assert set(found) == {HELD, ORPHANS}
    assert found[HELD].first_offender == f"{shop.tenant}/o-1/reserve"
    assert found[ORPHANS].first_offender == f"{shop.tenant}/no-such-order/reserve"


async def _sell_on(shop: Shop, numbers: Iterator[int], stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _one(shop, next(numbers))


async def _one(shop: Shop, number: int) -> None:
    payments: list[Payment] = [OK, BalancePayment(account="a-1"), DECLINED]
    order = shop.order(
        f"o-{number}",
        units=10_000 if number % 6 == 1 else 1,
        amount_minor=900,
        points=10,
        payment=payments[number % 3],
    )
    placed = await shop.checkouts.place(order)
    if placed.waits_for is WaitsFor.PAYMENT:
        await shop.checkouts.cancel(shop.tenant, order.order_id, CancelOrder())
    await shop.checkouts.wait(shop.tenant, order.order_id)


async def _is_closed(shop: Shop, order_id: str) -> bool:
    order = await shop.reader.order(shop.tenant, order_id)
    return order is not None and order.result is not None


async def _reopen_hold(shop: Shop, settings: Settings) -> None:
    """Give the closed order `o-1`, which found no stock, a hold that nobody will release."""
    database = Database(settings.owner["inventory"], settings.pool)
    async with database.transaction() as tx:
        await tx.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in (
            "UPDATE reservation SET state = 'TRIED' WHERE key = :key",
            "INSERT INTO reservation_line (key, line, sku, units) VALUES (:key, 0, 'LAMP', 1)",
            "UPDATE stock SET free = free - 1, held = held + 1"
            " WHERE tenant = split_part(:key, '/', 1) AND sku = 'LAMP'",
        ):
            await tx.execute(text(statement), {"key": f"{shop.tenant}/o-1/reserve"})
    await database.close()
