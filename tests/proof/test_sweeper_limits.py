"""The sweeper: holds and money without an owner, and when it stops itself."""

import asyncio
import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, ScheduleActionStartWorkflow
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment

from activities.payment import PaymentActivities
from everycent.database import inventory, sweep_reads
from everycent.database.engine import Database, assert_no_transaction
from everycent.domain.inventory import ReserveStock, StockLine
from everycent.domain.order import CancelOrder, RedirectPayment
from everycent.domain.payment import AuthorisePayment, CapturePayment
from everycent.domain.sweep import Act, Sweep
from everycent.domain.sweep_pass import MOST_DONE
from everycent.domain.sweep_questions import Rows
from everycent.gateways.payment_provider import HttpPaymentProvider
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.explain import explain
from everycent.settings import ServiceName, Settings
from everycent.simulator.desk import Options
from starters.client import DATA_CONVERTER
from starters.schedules import SWEEPER_SCHEDULE, install_sweeper, pause_sweeper
from tests.proof.conftest import Vandal
from tests.proof.sweeper_site import (
    acts,
    audit_of,
    fill,
    hold_without_order,
    is_gone,
    sweep,
    sweeper,
    sweeping,
    temporal,
    terminate,
    together,
)
from tests.workflows.conftest import Shop

__all__ = ["sweeper", "temporal", "together"]
pytestmark = pytest.mark.timeout(180)


# -- holds and money without an owner


@pytest.mark.requirement("I8", "AC1.6")
async def test_a_hold_without_an_order_is_given_back_and_noted(
    shop: Shop, settings: Settings
) -> None:
    """Red when: only orders are looked for, and units stay held for nobody."""
    await fill(shop)
    await hold_without_order(shop)
    assert (await sweep(shop, hold_grace_seconds=600)).findings == ()
    report = await sweep(shop)
    assert acts(report) == {(f"{shop.tenant}/ghost/reserve", Act.CANCEL)}
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}
    [case] = await shop.cases()
    assert (case["state"], case["resolved_by"]) == ("RESOLVED", "everycent sweeper")
    assert "reservation was cancelled by sweeper/" in case["resolution"]
    assert "before: reservation TRIED, no order row, no run" in case["resolution"]
    assert (await sweep(shop)).findings == ()


@pytest.mark.requirement("I8")
async def test_a_hold_whose_order_is_placed_again_while_the_pass_looks_stays(shop: Shop) -> None:
    """Red when: a hold is ended by what the look said of it, without looking again."""
    await fill(shop)
    await hold_without_order(shop)
    order = shop.order("ghost", units=3, payment=RedirectPayment())

    async def place_again() -> None:  # Its Try is given the answer of the hold that is there.
        await shop.checkouts.place(order)

    shop.fault("order.park_step", None, order_id="ghost", after=True, hook=place_again)
    [finding] = (await sweep(shop)).findings
    assert (finding.act, finding.after) == (Act.CANCEL, "nothing: it has moved meanwhile")
    assert await shop.stock() == {"free": 497, "held": 3, "sold": 0}
    assert (await sweep(shop)).findings == ()
    await shop.checkouts.cancel(shop.tenant, "ghost", CancelOrder())
    await shop.client.get_workflow_handle(order.workflow_id()).result()
    assert await shop.stock() == {"free": 500, "held": 0, "sold": 0}


@pytest.mark.requirement("I8", "T20")
async def test_a_repair_that_failed_is_made_by_the_next_pass(shop: Shop) -> None:
    """Red when: the case that a failed repair leaves open keeps every later pass away."""
    await fill(shop)
    await hold_without_order(shop)
    shop.fault("inventory.release_stock", "Bug", order_id="ghost")
    [failed] = (await sweep(shop)).findings
    assert (failed.act, failed.repaired) == (Act.CANCEL, False)
    assert failed.after.startswith(f"not repaired, case {shop.tenant}/ghost/reserve/sweeper is")
    assert [case["state"] for case in await shop.cases()] == ["OPEN"]
    [mended] = (await sweep(shop)).findings
    assert (mended.repaired, mended.after) == (True, "reservation was cancelled")
    assert [(case["state"], case["attempts"]) for case in await shop.cases()] == [("RESOLVED", 2)]
    assert (await shop.stock())["held"] == 0


@pytest.mark.requirement("AC1.7")
async def test_a_case_is_told_as_open_only_if_it_was_opened(shop: Shop) -> None:
    """Red when: people are sent to a case that nobody could write down."""
    await fill(shop)
    await hold_without_order(shop)
    shop.fault("order.park_step", "Bug", order_id="ghost")
    [finding] = (await sweep(shop)).findings
    assert not finding.repaired
    assert finding.after == "not repaired, no case could be opened: Bug: Bug by the test"
    assert await shop.cases() == []
    assert (await shop.stock())["held"] == 3


@pytest.mark.requirement("I8", "AC1.7")
async def test_money_without_an_order_becomes_a_case_once(shop: Shop) -> None:
    """Red when: a capture that no order explains is not found, or is counted again by each pass."""
    gateway = HttpPaymentProvider(
        shop.provider, api_key=Options().api_key, guard=assert_no_transaction
    )
    payments = PaymentActivities(shop.databases["payment"], gateway)
    now = datetime.now(UTC)
    base = {"key": f"{shop.tenant}/ghost/pay/first", "at": now, "opened_on": now.date()}
    environment = ActivityEnvironment()
    await environment.run(
        payments.authorise,
        AuthorisePayment(
            amount_minor=500, currency="EUR", method="card", card_token="tok_ok", **base
        ),
    )
    await environment.run(payments.capture, CapturePayment(**base))
    async with shop.databases["payment"].snapshot() as tx:  # Of a sale, a page has the key alone.
        page = await sweep_reads.holds(tx, "payment", Rows(tenant=shop.tenant))
    assert (page.holds, page.kept, page.looked_at) == ((), (base["key"],), 1)
    for passes in range(2):
        report = await sweep(shop)
        [finding] = report.findings
        assert (finding.kind, finding.act) == (
            "capture without an order", Act.NONE if passes else Act.CASE,
        )  # fmt: skip
        assert report.left == (finding,)
    [case] = await shop.cases()
    assert (case["state"], case["attempts"], case["proposals"]) == ("OPEN", 1, ["resolve"])


@pytest.mark.requirement("AC1.6", "I8")
async def test_a_paid_order_that_was_not_deducted_is_deducted(
    busy_shop: Shop, settings: Settings, vandal: Vandal
) -> None:
    """Red when: closed orders are not looked at: what direct SQL has undone stays undone."""
    key = f"{busy_shop.tenant}/card/reserve"
    async with vandal.breaks(
        "inventory",
        "UPDATE reservation SET state = 'TRIED', end_answer = NULL, ended_at = NULL"
        " WHERE key = '{t}/card/reserve'",
        "UPDATE stock SET held = held + 2, sold = sold - 2 WHERE tenant = '{t}'",
    ):
        assert len(await audit_of(busy_shop, settings)) == 2
        report = await sweep(busy_shop)
        assert acts(report) == {(key, Act.CONFIRM)}
        assert await audit_of(busy_shop, settings) == []
        assert acts(await sweep(busy_shop)) == set()
        [case] = await busy_shop.cases()
        assert case["error"] == "reservation TRIED, order CONFIRMED"


@pytest.mark.requirement("AC1.6", "AC1.7")
async def test_a_paid_order_whose_stock_is_gone_becomes_a_case(
    busy_shop: Shop, vandal: Vandal
) -> None:
    """Red when: a reservation that is neither open nor sold is no finding."""
    async with vandal.breaks(
        "inventory",
        "UPDATE reservation SET state = 'CANCELLED' WHERE key = '{t}/card-balance/reserve'",
        "DELETE FROM reservation WHERE key = '{t}/free/reserve'",
    ):
        found = {f.key: (f.kind, f.before) for f in (await sweep(busy_shop)).acts}
        assert found == {
            f"{busy_shop.tenant}/{name}/reserve": (
                "paid, not deducted", f"reservation {state}, order CONFIRMED",
            )
            for name, state in (("card-balance", "CANCELLED"), ("free", "absent"))
        }  # fmt: skip


@pytest.mark.requirement("AC20.5")
@pytest.mark.parametrize("together", [True])
async def test_what_a_step_wrote_where_the_run_is_is_told_below_it(
    shop: Shop, settings: Settings, together: bool
) -> None:
    """Red when: a row is not put below the local activity that wrote it."""
    await fill(shop)
    await shop.sell(shop.order())
    told = await explain(settings, shop.tenant, "o-1", client=shop.client, provider=shop.provider)
    said = [event.what for event in told.events]
    held, sold = said.index("hold the stock"), said.index("sell the stock")
    assert held < said.index("reservation reserve TRIED 2 × LAMP") < sold
    assert sold < said.index("reservation reserve CONFIRMED 2 × LAMP")


# -- the breaker


@pytest.mark.requirement("I22")
async def test_a_pass_that_would_repair_too_much_stops_and_repairs_nothing(shop: Shop) -> None:
    """Red when: the limit is not looked at before the first repair."""
    await fill(shop)
    orders = [shop.order(f"o-{n}", payment=RedirectPayment()) for n in range(3)]
    for order in orders:
        await shop.checkouts.place(order)
        await terminate(shop.client, order)
    report = await sweep(shop, limit=2)
    assert report.stopped.startswith("there is more to repair than the limit of 2: is this")
    assert await shop.cases() == []
    assert not await TemporalDrivers(shop.client).living([o.workflow_id() for o in orders])
    assert len(acts(await sweep(shop, limit=3))) == 3
    for order in orders:
        await shop.checkouts.cancel(shop.tenant, order.order_id, CancelOrder())


@pytest.mark.requirement("I22")
async def test_a_pass_that_finds_very_much_can_still_say_so(shop: Shop) -> None:
    """Red when: the report grows with the shop until Temporal carries it no more."""
    await shop.receive(1000)
    now, lamp = datetime.now(UTC), (StockLine(sku="LAMP", units=1),)
    requests = [
        ReserveStock(
            key=f"{shop.tenant}/ghost-{n}/reserve", at=now, opened_on=now.date(), lines=lamp
        )
        for n in range(MOST_DONE + 100)
    ]
    async with shop.databases["inventory"].transaction() as tx:
        await inventory.reserve_stock(tx, requests)
    report = await sweep(shop, limit=MOST_DONE)
    assert report.stopped.startswith(f"there is more to repair than the limit of {MOST_DONE}")
    assert (len(report.findings), report.unlisted) == (MOST_DONE, 100)


@pytest.mark.requirement("I22")
async def test_a_pass_in_the_wrong_namespace_stops(
    shop: Shop, temporal: WorkflowEnvironment, databases: dict[ServiceName, Database]
) -> None:
    """Red when: orders whose runs are elsewhere are taken for lost: a second run would begin."""
    await fill(shop)
    orders = [shop.order(f"o-{n}", payment=RedirectPayment()) for n in range(10)]
    await asyncio.gather(*(shop.checkouts.place(order) for order in orders))
    elsewhere = await _another_namespace(temporal)
    stranger = dataclasses.replace(shop, client=elsewhere)
    async with sweeping(elsewhere, databases):
        report = await sweep(stranger)
    assert report.stopped.startswith("Temporal knows none of 10 unfinished orders")
    assert await shop.cases() == []
    assert len(await TemporalDrivers(shop.client).living([o.workflow_id() for o in orders])) == 10
    assert (await sweep(shop)).findings == ()
    for order in orders:
        await shop.checkouts.cancel(shop.tenant, order.order_id, CancelOrder())


async def _another_namespace(temporal: WorkflowEnvironment) -> Client:
    address = temporal.client.service_client.config.target_host
    await temporal.client.workflow_service.register_namespace(
        RegisterNamespaceRequest(
            namespace="elsewhere", workflow_execution_retention_period=Duration(seconds=86_400)
        )
    )
    client = await Client.connect(
        address, namespace="elsewhere", data_converter=DATA_CONVERTER, lazy=False
    )
    async with asyncio.timeout(30):
        while True:  # A new namespace is known everywhere a moment later.
            with contextlib.suppress(RPCError):
                await client.count_workflows()
                return client
            await asyncio.sleep(0.05)


@pytest.mark.requirement("AC1.7", "T20")
async def test_an_order_that_is_lost_again_and_again_is_left_to_a_person(shop: Shop) -> None:
    """Red when: every pass takes the order up again for ever, and nobody is told."""
    await fill(shop)
    order = shop.order(payment=RedirectPayment())
    await shop.checkouts.place(order)
    wanted = [Act.TAKE_UP, Act.TAKE_UP, Act.CASE, Act.NONE]
    for act in wanted:
        if not await is_gone(shop.client, order):
            with contextlib.suppress(RPCError):
                await terminate(shop.client, order)
        [finding] = (await sweep(shop, max_failures=2)).findings
        assert finding.act is act
    [case] = await shop.cases()
    assert (case["state"], case["attempts"], case["proposals"]) == ("OPEN", 3, ["retry", "resolve"])
    assert (await shop.checkouts.take_up(shop.tenant, "o-1")).waits_for == "payment"
    await shop.checkouts.cancel(shop.tenant, "o-1", CancelOrder())


# -- the schedule


@pytest.mark.requirement("I8")
async def test_a_worker_that_starts_elsewhere_takes_the_schedule_along(
    temporal: WorkflowEnvironment,
) -> None:
    """Red when: repairs go for ever to the queues of the first workers, which nobody may poll."""
    client, every = temporal.client, timedelta(hours=2)
    await install_sweeper(client, Sweep(limit=7), every)
    await pause_sweeper(client, "ada")
    handle = client.get_schedule_handle(SWEEPER_SCHEDULE)
    for moved in (True, True, False):
        await install_sweeper(client, Sweep(together=moved), keep=True)
        schedule = (await handle.describe()).schedule
        action = schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        [kept] = await client.data_converter.decode(action.args, [Sweep])
        assert kept == Sweep(together=moved, limit=7)
        assert (action.workflow, action.id) == ("sweep_orders", "sweeper/scheduled")
        assert [spec.every for spec in schedule.spec.intervals] == [every]
        assert (schedule.state.paused, schedule.state.note) == (True, "paused by ada")
    await handle.delete()
