"""The checkout in the mixed mode: a TCC core, and behind its end what follows by messages.

Messages are carried by hand here, so that a test can look between the core and its extensions.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from activities.choreography import ReportReaction
from activities.messages import MessageActivities
from activities.participants import points_reactions
from everycent import clock
from everycent.database import inventory
from everycent.database.engine import Database
from everycent.domain.events import STEP_REPORTED
from everycent.domain.inventory import ReleaseStock
from everycent.domain.messaging import ReplayMessages
from everycent.domain.mode import Mode
from everycent.domain.order import (
    BalancePayment,
    CardPayment,
    Decision,
    OrderStatus,
    PlaceOrder,
    RepairOrder,
)
from everycent.proof.audit import audit
from everycent.proof.explain import explain
from everycent.proof.report import AuditReport, RuleState
from everycent.settings import ServiceName, Settings
from tests.workflows.conftest import Shop
from tests.workflows.test_checkout_faults import (
    HAPPY_STEPS,
    TRY_STEPS,
    UNDOS,
    assert_nothing_moved,
    assert_sold_once,
    purse_of,
    stocked,
)
from workers.consumer import Consumer, Reaction
from workers.relay import InboxSink, Relay
from workflows.checkout import Checkout

CORE_STEPS = tuple(name for name in HAPPY_STEPS if name != "points.grant_points")
EARNED = "order: confirmed, so its points are used and earned"
TALKING: tuple[ServiceName, ...] = ("order", "points")
BEFORE = {"available": 100 - 33, "frozen": 0, "debt": 0}


@dataclass
class Mail:
    """Carries and applies messages when it is told to; its clock is ahead of what was written.

    The runs' server skips time, so what they write may be months ahead of our own clock.
    """

    databases: Mapping[ServiceName, Database]
    relays: Mapping[ServiceName, Relay]
    consumers: Mapping[ServiceName, Consumer]
    messages: MessageActivities
    at: datetime = field(default_factory=lambda: clock.now() + timedelta(days=400))

    def now(self) -> datetime:
        return self.at

    async def settle(self) -> None:
        """Carry and apply until nothing moves any more at this instant."""
        for service in TALKING:
            async with self.databases[service].transaction() as tx:
                written = await tx.scalar(text("SELECT max(at) FROM outbox"))
            self.at = max(self.at, written or self.at)
        moved = 1
        while moved:
            moved = 0
            for service in TALKING:
                while await self.relays[service].run_pass():
                    moved += 1
                moved += await self.consumers[service].run_pass()

    async def bring(self) -> None:
        """Carry everything, and ask again what became of it."""
        await self.settle()
        self.at += timedelta(minutes=2)
        await self.settle()

    async def replay(self, key: str) -> None:
        for service in ("points", "order"):
            request = ReplayMessages(service=service, keys=(key,), at=self.now())
            assert any((await self.messages.replay(request)).model_dump().values()), service


@pytest.fixture
async def mail(settings: Settings, databases: dict[ServiceName, Database]) -> AsyncIterator[Mail]:
    async with contextlib.AsyncExitStack() as stack:
        pools = {s: Database(settings.relay[s], settings.pool) for s in TALKING}
        for pool in pools.values():
            stack.push_async_callback(pool.close)
        mail = Mail(databases, {}, {}, MessageActivities(databases))
        now = mail.now
        sinks = {f"inbox:{s}": InboxSink(pools[s], now=now) for s in TALKING}
        reactions: dict[ServiceName, Mapping[str, Reaction]] = {
            "order": {STEP_REPORTED.name: ReportReaction(now)},
            "points": points_reactions(databases["points"], now),
        }
        mail.relays = {s: Relay(s, pools[s], sinks, holder="t", now=now) for s in TALKING}
        mail.consumers = {s: Consumer(databases[s], reactions[s], now=now) for s in TALKING}
        yield mail


def mixed(shop: Shop, **changes: Any) -> PlaceOrder:
    return shop.order(mode=Mode.MIXED, **{"points": 33, **changes})


async def row_of(shop: Shop) -> dict[str, Any]:
    [row] = await shop.reader.rows(
        "order", "SELECT status, decision, mode FROM shop_order WHERE tenant = :t", t=shop.tenant
    )
    return row


async def told(shop: Shop, service: ServiceName = "order") -> list[tuple[str, str]]:
    """Return type and state of all that a service has written down for others."""
    rows = await shop.reader.rows(
        service,
        "SELECT type, state FROM outbox WHERE starts_with(key, :t) ORDER BY number",
        t=f"{shop.tenant}/",
    )
    return [(row["type"], row["state"]) for row in rows]


async def accused(shop: Shop, settings: Settings) -> list[str]:
    report: AuditReport = await audit(settings, tenant=shop.tenant)
    return [rule.name for rule in report.rules if rule.state is RuleState.BROKEN]


@contextlib.asynccontextmanager
async def broken(database: Database, table: str, rule: str) -> AsyncIterator[None]:
    """Have a table refuse what breaks the rule, as a full disk or a wrong deploy would."""
    async with database.transaction() as tx:
        await tx.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT no CHECK ({rule}) NOT VALID"))
    try:
        yield
    finally:
        async with database.transaction() as tx:
            await tx.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT no"))


@pytest.mark.requirement("AC9.1", "AC9.2")
async def test_the_core_is_whole_before_its_extension_begins_and_that_has_one_effect(
    shop: Shop, mail: Mail, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """Sold, paid and booked with the points' message still unsent; applied twice: granted once.

    Red when: the flow grants the points itself, the message is missing, or a repeat grants again.
    """
    await stocked(shop)
    result = await shop.sell(mixed(shop))
    assert (result.status, result.points_earned) == (OrderStatus.CONFIRMED, 29)
    assert "points.grant_points" not in shop.ran()
    assert await row_of(shop) == {"status": "CONFIRMED", "decision": "COMMITTED", "mode": "mixed"}
    assert await shop.charged() == [("captured", 2900, 0)]
    assert await purse_of(shop) == BEFORE
    assert await told(shop) == [("order.paid", "PENDING")]
    assert await accused(shop, settings) == []
    story = await explain(settings, shop.tenant, "o-1", client=shop.client, provider=shop.provider)
    assert "order.paid to points is on its way" in story.why
    await mail.settle()
    await assert_sold_once(shop)
    assert await told(shop) == [("order.paid", "SENT")]
    async with owners["points"].transaction() as tx:  # It comes again as if it never had.
        await tx.execute(
            text("DELETE FROM inbox WHERE starts_with(key, :t)"), {"t": f"{shop.tenant}/"}
        )
    for _ in range(2):  # Applied anew, and asked about.
        await mail.bring()
    await assert_sold_once(shop)
    assert await told(shop) == [("order.paid", "CONSUMED")]
    assert set(await told(shop, "points")) == {("step.reported", "CONSUMED")}
    assert (await row_of(shop))["status"] == "CONFIRMED"
    assert await accused(shop, settings) == []


@pytest.mark.requirement("AC9.1")
async def test_a_stored_balance_is_frozen_by_the_core_and_taken_before_anything_follows(
    shop: Shop, mail: Mail
) -> None:
    """Red when: the account is not a branch of the core, or the points do not wait for it."""
    await stocked(shop)
    await shop.deposit("a-1", 10_000)
    seen: list[tuple[int, int, list[Any]]] = []

    async def look() -> None:
        [purse] = await shop.reader.rows(
            "account", "SELECT available, frozen FROM account WHERE tenant = :t", t=shop.tenant
        )
        seen.append((purse["available"], purse["frozen"], await told(shop)))

    for step in ("order.decide", "order.close_order"):
        shop.fault(step, None, hook=look)
    assert (
        await shop.sell(mixed(shop, payment=BalancePayment(account="a-1")))
    ).status == "CONFIRMED"
    assert seen == [(7_100, 2_900, []), (7_100, 0, [])]
    await mail.bring()
    assert await purse_of(shop) == BEFORE | {"available": 100 - 33 + 29}


@pytest.mark.requirement("AC9.1", "AC2.2")
@pytest.mark.parametrize("step", CORE_STEPS)
async def test_a_lost_reply_at_any_step_of_the_core_changes_nothing(
    shop: Shop, mail: Mail, step: str
) -> None:
    """Red when: a step does its work again, or a repeated close tells the extensions again."""
    await stocked(shop)
    shop.fault(step, times=2, after=True)
    assert (await shop.sell(mixed(shop))).status is OrderStatus.CONFIRMED
    await mail.bring()
    await assert_sold_once(shop)
    assert await told(shop) == [("order.paid", "CONSUMED")]


@pytest.mark.requirement("AC9.1", "AC6.4", "AC6.6")
@pytest.mark.parametrize("together", [False])
@pytest.mark.parametrize("step", [*TRY_STEPS, "out of stock", "payment.capture"])
async def test_a_core_that_fails_is_cancelled_whole_and_nothing_follows(
    shop: Shop, mail: Mail, step: str
) -> None:
    """A Try that fails after its commit, a refusal, a refused capture: every branch is cancelled.

    Red when: a branch gets no Cancel, or points are told of an order that was not sold.
    """
    await stocked(shop)
    changes: dict[str, Any] = {"units": 50} if step == "out of stock" else {}
    if step == "payment.capture":
        changes = {"payment": CardPayment(card_token="tok_decline_capture")}
    elif not changes:
        shop.fault(step, "Bug", after=True)
    result = await shop.sell(mixed(shop, **changes))
    assert (result.status, result.decision) == (OrderStatus.REJECTED, Decision.ABORTED)
    assert {name for name in shop.ran() if name in UNDOS} == set(UNDOS)
    await mail.bring()
    await assert_nothing_moved(shop)
    assert await told(shop) == []


@pytest.mark.requirement("AC9.1")
@pytest.mark.parametrize("together", [False])
async def test_an_extension_that_fails_for_good_leaves_the_core_confirmed_and_is_repaired_apart(
    shop: Shop,
    mail: Mail,
    settings: Settings,
    owners: dict[ServiceName, Database],
) -> None:
    """The points' database takes no booking: eight tries, then a dead message and a whole order.

    The audit lets it wait for a person as long as the message is there; a replay ends it, once.

    Red when: the failure reaches the order, is dropped, or ends without anybody knowing of it.
    """
    await stocked(shop)
    order = mixed(shop)
    key = order.step_key("order.paid")
    async with broken(owners["points"], "points_booking", f"key <> '{order.step_key('earn')}'"):
        assert (await shop.sell(order)).status is OrderStatus.CONFIRMED
        for _ in range(10):
            await mail.bring()
        assert await told(shop) == [("order.paid", "DEAD")]
        assert await row_of(shop) == {
            "status": "CONFIRMED", "decision": "COMMITTED", "mode": "mixed",
        }  # fmt: skip
        assert await shop.charged() == [("captured", 2900, 0)]
        assert await purse_of(shop) == BEFORE
        assert await accused(shop, settings) == []
        story = await explain(
            settings, shop.tenant, "o-1", client=shop.client, provider=shop.provider
        )
        assert "order.paid to points was given up" in story.why
        assert story.next_commands[:2] == tuple(
            f"everycent messages replay {service} {key}" for service in ("points", "order")
        )
    await mail.replay(key)
    await mail.bring()
    await assert_sold_once(shop)
    assert await told(shop) == [("order.paid", "CONSUMED")]


@pytest.mark.requirement("AC9.2")
@pytest.mark.parametrize("together", [False])
async def test_the_event_is_written_in_the_transaction_that_confirms_the_core_or_neither_is(
    shop: Shop, mail: Mail, owners: dict[ServiceName, Database]
) -> None:
    """The outbox takes no such event: the order is not closed either, waits as a case, and ends.

    Red when: the event is written before or after the transaction of the close.
    """
    await stocked(shop)
    order = mixed(shop)
    async with broken(owners["order"], "outbox", f"key <> '{order.step_key('order.paid')}'"):
        handle = await shop.start(order)

        async def parked() -> bool:
            return bool(await shop.cases())

        await shop.until(parked)
        assert (await row_of(shop))["decision"] == "COMMITTING"
        assert await told(shop) == []
    [case] = await shop.cases()
    await handle.execute_update(
        Checkout.repair, RepairOrder(case_key=case["case_key"], by="ada", reason="it is up")
    )
    assert (await handle.result()).status is OrderStatus.CONFIRMED
    assert await told(shop) == [("order.paid", "PENDING")]
    await mail.bring()
    await assert_sold_once(shop)


@pytest.mark.requirement("AC9.2")
@pytest.mark.parametrize("together", [False])
async def test_a_lost_event_is_accused_by_the_audit(
    shop: Shop, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """Red when: an order of the mixed mode is excused for points that nobody brings any more."""
    await stocked(shop)
    await shop.sell(mixed(shop))
    async with owners["order"].transaction() as tx:
        await tx.execute(
            text("DELETE FROM outbox WHERE starts_with(key, :t)"), {"t": f"{shop.tenant}/"}
        )
    assert await accused(shop, settings) == [EARNED]


@pytest.mark.parametrize("together", [False])
async def test_stock_that_is_gone_is_refunded_and_takes_back_no_points_that_never_came(
    shop: Shop, mail: Mail, settings: Settings
) -> None:
    """Red when: the refund revokes points that would only have followed."""
    await stocked(shop)

    async def lose() -> None:
        [held] = await shop.rows("inventory", "reservation")
        request = ReleaseStock(
            key=held["key"], at=clock.now(), opened_on=held["opened_on"], reason="by mistake"
        )
        async with shop.databases["inventory"].transaction() as tx:
            await inventory.release_stock(tx, [request])

    shop.fault("payment.capture", None, hook=lose)
    result = await shop.sell(mixed(shop))
    assert (result.status, result.refunded_minor) == (OrderStatus.REFUNDED, 2900)
    await mail.bring()
    assert await purse_of(shop) == {"available": 100, "frozen": 0, "debt": 0}
    assert await told(shop) == []
    assert await accused(shop, settings) == []
