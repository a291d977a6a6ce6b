"""The order's row on a real PostgreSQL: opened once, decided once, ended once."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from everycent.database import order, repair_case
from everycent.database.engine import Database
from everycent.domain.order import (
    AddAttempt,
    AttemptAdded,
    AttemptRefused,
    CardPayment,
    CloseOrder,
    Decide,
    Decision,
    MarkOrder,
    OpenedOrder,
    OpenOrder,
    OrderDiffers,
    OrderLine,
    OrderResult,
    OrderStatus,
    ParkStep,
    PlaceOrder,
    SettleCase,
    Verdict,
    WaitsFor,
)
from everycent.settings import ServiceName
from tests.conftest import NOON

Pools = dict[ServiceName, Database]


def placed(tenant: str, order_id: str = "o-1", amount_minor: int = 2933) -> PlaceOrder:
    return PlaceOrder(
        tenant=tenant,
        order_id=order_id,
        customer="c-1",
        currency="EUR",
        lines=(OrderLine(sku="LAMP", units=2, amount_minor=amount_minor),),
        payment=CardPayment(card_token="tok_ok"),
    )


async def call(databases: Pools, operation: Any, *requests: Any) -> Any:
    async with databases["order"].transaction() as tx:
        answers = await operation(tx, requests)
    return answers[0] if len(requests) == 1 else answers


async def opened(databases: Pools, tenant: str, run: str = "r-1", **changes: Any) -> Any:
    request = OpenOrder(order=placed(tenant, **changes), at=NOON, driver="checkout/x", run=run)
    return await call(databases, order.open_order, request)


def wants(tenant: str, to: Decision, **changes: Any) -> Decide:
    values = {"tenant": tenant, "order_id": "o-1", "at": NOON, "to": to, "run": "r-1"}
    return Decide.model_validate({**values, "status": OrderStatus.CANCELLED, **changes})


async def test_an_order_is_opened_once_and_repeats_find_it(databases: Pools, tenant: str) -> None:
    answers = await asyncio.gather(*(opened(databases, tenant) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert isinstance(answers[0], OpenedOrder)
    assert answers[0].verdict == Verdict(decision=Decision.OPEN)
    assert [payment.request_id for payment in answers[0].attempts] == ["first"]


@pytest.mark.requirement("T34")
async def test_another_body_under_the_id_is_refused_and_changes_nothing(
    databases: Pools, tenant: str
) -> None:
    """The second order names the fields that differ; the first stays as it was.

    Red when: the stored hash is not compared.
    """
    first = await opened(databases, tenant)
    assert await opened(databases, tenant, amount_minor=1) == OrderDiffers(fields=("lines",))
    assert await opened(databases, tenant) == first


async def test_an_order_that_a_second_run_opens_is_marked_as_shared(
    databases: Pools, tenant: str
) -> None:
    assert (await opened(databases, tenant, run="r-1")).verdict.shared is False
    assert (await opened(databases, tenant, run="r-1")).verdict.shared is False
    assert (await opened(databases, tenant, run="r-2")).verdict.shared is True
    assert (await opened(databases, tenant, run="r-1")).verdict.shared is True


async def test_two_runs_that_open_an_order_in_one_batch_share_it(
    databases: Pools, tenant: str
) -> None:
    both = [OpenOrder(order=placed(tenant), at=NOON, driver="d", run=run) for run in ("a", "b")]
    answers = await call(databases, order.open_order, *both)
    assert [answer.verdict.shared for answer in answers] == [True, True]
    assert (await opened(databases, tenant, run="a")).verdict.shared is True


@pytest.mark.requirement("T29")
async def test_a_run_that_decides_without_having_opened_the_order_shares_it(
    databases: Pools, tenant: str
) -> None:
    """A run that was reset to after `open` has a new run id: it must undo what the first began.

    Red when: `decide` does not compare its run with the one that made the row.
    """
    await opened(databases, tenant, run="r-1")
    verdict = await call(databases, order.decide, wants(tenant, Decision.ABORTING, run="reset"))
    assert (verdict.decision, verdict.shared) == (Decision.ABORTING, True)


@pytest.mark.requirement("AC2.5")
async def test_of_two_drivers_one_decides_and_both_are_told_the_same(
    databases: Pools, tenant: str
) -> None:
    """A thousand orders, each raced by a commit and an abort: one decision each, told to both.

    Red when: `decide` reads the row without a lock, or its UPDATE is not guarded by the decision.
    """
    orders = [f"o-{n}" for n in range(1000)]
    await call(
        databases,
        order.open_order,
        *(
            OpenOrder(order=placed(tenant, order_id), at=NOON, driver="d", run="r-1")
            for order_id in orders
        ),
    )

    async def race(order_id: str) -> Decision:
        both = await asyncio.gather(
            call(databases, order.decide, wants(tenant, Decision.COMMITTING, order_id=order_id)),
            call(databases, order.decide, wants(tenant, Decision.ABORTING, order_id=order_id)),
        )
        assert both[0] == both[1]
        decision: Decision = both[0].decision
        return decision

    gate = asyncio.Semaphore(8)

    async def gated(order_id: str) -> Decision:
        async with gate:
            return await race(order_id)

    decided = await asyncio.gather(*(gated(order_id) for order_id in orders))
    assert set(decided) <= {Decision.COMMITTING, Decision.ABORTING}
    async with databases["order"].snapshot() as tx:
        rows = await tx.execute(
            text("SELECT order_id, decision FROM shop_order WHERE tenant = :t"), {"t": tenant}
        )
        assert {row.order_id: row.decision for row in rows} == dict(
            zip(orders, decided, strict=True)
        )


@pytest.mark.requirement("AC18.5")
@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (["COMMITTING"], "ABORTING"),
        (["COMMITTING"], "OPEN"),
        (["ABORTING"], "COMMITTING"),
        (["ABORTING"], "OPEN"),
        ([], "COMMITTED"),
        ([], "ABORTED"),
    ],
)  # fmt: skip
async def test_a_decision_against_the_arrows_is_refused_even_by_hand(
    databases: Pools, owners: Pools, tenant: str, path: list[str], bad: str
) -> None:
    """Hand-written SQL as the owner of the table meets the trigger.

    Red when: the trigger `shop_order_arrows` is dropped or lets one of these pass.
    """
    await opened(databases, tenant)
    update = text("UPDATE shop_order SET decision = :d WHERE tenant = :t")
    for decision in path:
        async with owners["order"].engine.begin() as tx:
            await tx.execute(update, {"d": decision, "t": tenant})
    with pytest.raises(IntegrityError, match="cannot go from"):
        async with owners["order"].engine.begin() as tx:
            await tx.execute(update, {"d": bad, "t": tenant})


async def test_a_refused_pivot_takes_a_commit_back_once(databases: Pools, tenant: str) -> None:
    await opened(databases, tenant)
    await call(databases, order.decide, wants(tenant, Decision.COMMITTING, attempt="first"))
    back = wants(tenant, Decision.ABORTING, pivot_refusal={"kind": "capture_refused"})
    verdict = await call(databases, order.decide, back)
    assert (verdict.decision, verdict.attempt) == (Decision.ABORTING, "first")
    assert await call(databases, order.decide, wants(tenant, Decision.COMMITTING)) == verdict


async def test_the_first_result_of_an_order_stays(databases: Pools, tenant: str) -> None:
    await opened(databases, tenant)
    await call(databases, order.decide, wants(tenant, Decision.ABORTING))

    def closes(reason: str) -> CloseOrder:
        result = OrderResult(
            tenant=tenant,
            order_id="o-1",
            status=OrderStatus.CANCELLED,
            decision=Decision.ABORTED,
            reason=reason,
            total_minor=2933,
        )
        return CloseOrder(tenant=tenant, order_id="o-1", at=NOON, result=result)

    first = await call(databases, order.close_order, closes("first"))
    assert await call(databases, order.close_order, closes("second")) == first
    assert (await opened(databases, tenant)).result == first
    mark = MarkOrder(tenant=tenant, order_id="o-1", at=NOON, waits_for=WaitsFor.REPAIR)
    assert (await call(databases, order.mark_order, mark)).changed is False


async def test_at_most_three_payments_are_written_down_however_many_ask_at_once(
    databases: Pools, tenant: str
) -> None:
    await opened(databases, tenant)

    def another(request_id: str, token: str = "tok_ok") -> AddAttempt:
        payment = CardPayment(request_id=request_id, card_token=token)
        return AddAttempt(tenant=tenant, order_id="o-1", at=NOON, payment=payment)

    answers = await asyncio.gather(
        *(call(databases, order.add_attempt, another(f"p-{n}")) for n in range(10))
    )
    added = [answer for answer in answers if isinstance(answer, AttemptAdded)]
    assert sorted(answer.number for answer in added) == [2, 3]
    repeated = await call(databases, order.add_attempt, another("first"))
    assert repeated == AttemptAdded(number=1)
    reused = await call(databases, order.add_attempt, another("first", "tok_other"))
    assert isinstance(reused, AttemptRefused)


async def test_no_payment_is_written_down_after_the_decision(databases: Pools, tenant: str) -> None:
    await opened(databases, tenant)
    await call(databases, order.decide, wants(tenant, Decision.ABORTING))
    payment = CardPayment(request_id="late", card_token="tok_ok")
    request = AddAttempt(tenant=tenant, order_id="o-1", at=NOON, payment=payment)
    answer = await call(databases, order.add_attempt, request)
    assert answer == AttemptRefused(reason="the order is aborting")


async def test_a_case_keeps_who_resolved_it_first(databases: Pools, tenant: str) -> None:
    await opened(databases, tenant)
    key = f"{tenant}/o-1/reserve"

    def park(minute: int) -> ParkStep:
        return ParkStep(
            tenant=tenant, order_id="o-1", at=NOON.replace(minute=minute), case_key=key,
            step="release stock", error_class="Bug", error="e", owner="checkout/x",
        )  # fmt: skip

    def settle(by: str) -> SettleCase:
        return SettleCase(
            tenant=tenant, order_id="o-1", at=NOON, case_key=key, by=by, reason="done", by_hand=True
        )

    for minute in (1, 1, 2):  # The second is a repeat of the first.
        assert (await call(databases, repair_case.park_step, park(minute))).settled_by_hand is False
    assert (await call(databases, repair_case.settle_case, settle("ada"))).by == "ada"
    assert (await call(databases, repair_case.settle_case, settle("bob"))).by == "ada"
    assert (await call(databases, repair_case.park_step, park(3))).settled_by_hand is True
    async with databases["order"].snapshot() as tx:
        row = (
            await tx.execute(text("SELECT * FROM repair_case WHERE case_key = :k"), {"k": key})
        ).one()
    assert (row.state, row.attempts, row.resolved_by) == ("RESOLVED", 2, "ada")


async def test_a_worker_may_not_delete_an_order(databases: Pools, tenant: str) -> None:
    await opened(databases, tenant)
    with pytest.raises(Exception, match="permission denied"):
        async with databases["order"].transaction() as tx:
            await tx.execute(text("DELETE FROM shop_order"))
