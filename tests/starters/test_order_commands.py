"""Selling from the command line: the outcomes, the exit codes, and sameness."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import httpx
import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode
from typer.testing import Result

from everycent.database.reads import Reader
from everycent.domain.order import (
    BalancePayment,
    CardPayment,
    OrderStatus,
    PlaceOrder,
    RedirectPayment,
)
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.refusals import OrderDiffersError

MakeOrder = Callable[..., PlaceOrder]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class CommandLine(Protocol):
    """See conftest.py."""

    tenant: str

    async def __call__(
        self, *words: str, given: str | None = None, shop: bool = True
    ) -> Result: ...

    async def json(self, *words: str, shop: bool = True) -> Any: ...

    async def place(self, order: PlaceOrder, *words: str) -> Result: ...


@pytest.fixture(autouse=True)
async def ten_lamps(bookings: Bookings, tenant: str) -> None:
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")


# -- how orders end


async def test_a_confirmed_order_prints_its_result_and_show_reads_it_back(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    done = await everycent.place(an_order(units=2), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["captured_minor"] == 2_999
    shown = await everycent.json("order", "show", "o-1")
    assert (shown["captured_minor"], shown["units_sold"], shown["points_earned"]) == (2_999, 2, 29)
    assert [each["status"] for each in shown["payments"]] == ["CAPTURED"]
    assert sum(each["amount_minor"] for each in shown["entries"]) == 0
    assert shown["web_ui"].endswith(f"checkout%2F{everycent.tenant}%2Fo-1")
    told = await everycent("order", "show", "o-1")
    assert "CAPTURED" in told.stdout


async def test_an_order_without_stock_is_refused_with_exit_code_three(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    done = await everycent.place(an_order(units=11), "--json")
    assert done.exit_code == 3
    result = json.loads(done.stdout)
    assert (result["status"], result["captured_minor"]) == ("REJECTED", 0)
    assert result["refusals"][0]["units_free"] == 10


async def test_a_declined_order_waits_and_another_card_pays_it_once(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    """Red when: `order pay` draws a new attempt id each time it is typed."""
    declined = an_order(payment=CardPayment(card_token="tok_declined"))
    done = await everycent.place(declined, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["waits_for"] == "payment"
    first = await everycent("order", "pay", "o-1", "--card", "tok_ok", "--json")
    again = await everycent("order", "pay", "o-1", "--card", "tok_ok", "--json")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.stdout == again.stdout
    shown = await everycent.json("order", "show", "o-1")
    assert (shown["captured_minor"], len(shown["attempts"])) == (2_999, 2)


async def test_a_redirect_order_prints_the_page_and_is_confirmed_when_it_is_paid_there(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    order = an_order(payment=RedirectPayment())
    done = await everycent.place(order, "--json")
    assert done.exit_code == 0
    async with httpx.AsyncClient(trust_env=False) as browser:
        await browser.post(json.loads(done.stdout)["redirect_url"])
    await_final = await everycent("order", "pay", "o-1", "--redirect", "--request", "first")
    assert await_final.exit_code == 0
    shown = await everycent.json("order", "show", "o-1")
    assert (shown["order"]["status"], shown["captured_minor"]) == ("CONFIRMED", 2_999)


async def test_a_stored_balance_and_points_pay_an_order(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    await everycent("account", "deposit", "ada", "2500")
    await everycent("points", "grant", "ada", "499")
    order = an_order(payment=BalancePayment(account="ada"), points=499)
    assert (await everycent.place(order)).exit_code == 0
    shown = await everycent.json("order", "show", "o-1")
    assert (shown["captured_minor"], shown["points_used"]) == (2_500, 499)


async def test_an_order_can_be_cancelled_until_it_is_decided(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    await everycent.place(an_order("waits", payment=RedirectPayment()))
    assert (await everycent("order", "cancel", "waits")).exit_code == 0
    assert (await everycent("order", "cancel", "waits")).exit_code == 0
    await everycent.place(an_order("sold"))
    late = await everycent("order", "cancel", "sold")
    assert late.exit_code == 3
    assert "too late to cancel: the order is confirmed" in late.stderr
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert (stock["held"], stock["sold"]) == (0, 1)


async def test_the_list_shows_what_is_asked_for(
    everycent: CommandLine, an_order: MakeOrder
) -> None:
    await everycent.place(an_order("waits", payment=RedirectPayment()))
    await everycent.place(an_order("sold"))
    waiting = await everycent.json("order", "list", "--waits-for", "payment")
    confirmed = await everycent.json("order", "list", "--status", "CONFIRMED")
    assert [each["order_id"] for each in waiting] == ["waits"]
    assert [each["order_id"] for each in confirmed] == ["sold"]
    await everycent("order", "cancel", "waits")


@pytest.mark.requirement("AC10.2")
@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"lines": [{"sku": "LAMP", "units": 1, "amount_minor": 29.99}]},
        {"lines": [{"sku": "LAMP", "units": 1, "amount_minor": 29.0}]},
        {"lines": [{"sku": "LAMP", "units": 1, "amount_minor": "2999"}]},
        {"lines": [{"sku": "LAMP", "units": 1, "amount_minor": -1}]},
        {"lines": [{"sku": "LAMP", "units": 1.0, "amount_minor": 2999}]},
        {"currency": None},
        {"currency": "dollars"},
        {"order_id": "a/b"},
    ],
)
async def test_a_document_that_is_not_exact_is_refused_at_the_door(
    change: dict[str, Any], everycent: CommandLine, an_order: MakeOrder
) -> None:
    """Money is whole minor units with a currency; nothing else comes in.

    Red when: an amount is no strict integer, or unknown fields pass.
    """
    document = json.dumps({**an_order().model_dump(mode="json"), **change})
    done = await everycent("order", "place", "-", given=document, shop=False)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert next(iter(change)) in line
    assert await everycent.json("order", "list") == []


# -- the same order again


@pytest.mark.requirement("T10", "T11")
async def test_fifty_at_once_with_one_id_sell_once_and_hear_the_same(
    checkouts: Checkouts, reader: Reader, an_order: MakeOrder, tenant: str
) -> None:
    """Another body under the id is refused with the fields that differ; the order stays as it was.

    Red when: neither the run nor `Checkouts.place` compares whose order it is.
    """
    order, other = an_order(), an_order(amount_minor=1)
    placing = [checkouts.sell(order) for _ in range(50)]
    placing.insert(25, checkouts.sell(other))
    answers = await asyncio.gather(*placing, return_exceptions=True)
    refused = [each for each in answers if isinstance(each, BaseException)]
    replies = {
        each.result.model_dump_json()
        for each in answers
        if not isinstance(each, BaseException) and each.result
    }
    assert len(replies) == 1
    assert [type(each) for each in refused] == [OrderDiffersError]
    assert isinstance(refused[0], OrderDiffersError)
    assert refused[0].fields == ("lines",)
    [stock] = await reader.stock(tenant, "LAMP")
    file = await reader.order_file(tenant, "o-1")
    assert file is not None
    assert (stock.sold, stock.held, file.captured_minor) == (1, 0, 2_999)


@pytest.mark.requirement("T11")
async def test_the_same_order_after_its_workflow_was_deleted_prints_the_same(
    everycent: CommandLine, an_order: MakeOrder, client: Client, until: Until
) -> None:
    """Temporal forgets an order after its retention; its row does not.

    Red when: `Checkouts.place` asks Temporal before the order's row.
    """
    first = await everycent.place(an_order(), "--json")
    await _delete(client, an_order(), until)
    again = await everycent.place(an_order(), "--json")
    other = await everycent.place(an_order(units=2, amount_minor=1))
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert other.exit_code == 2
    assert "other lines" in other.stderr
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert stock["sold"] == 1


@pytest.mark.requirement("T11")
async def test_an_open_order_whose_run_was_terminated_is_taken_up_by_placing_it_again(
    everycent: CommandLine, an_order: MakeOrder, client: Client
) -> None:
    """Red when: the order is looked for among the running workflows only."""
    order = an_order(payment=CardPayment(card_token="tok_declined"))
    await everycent.place(order)
    await client.get_workflow_handle(order.workflow_id()).terminate("an operator's mistake")
    again = await everycent.place(order, "--json")
    assert json.loads(again.stdout)["waits_for"] == "payment"
    paid = await everycent("order", "pay", "o-1", "--card", "tok_ok")
    assert paid.exit_code == 0
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert (stock["sold"], stock["held"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("T2")
async def test_two_hundred_orders_race_for_ten_units_and_ten_win(
    checkouts: Checkouts, reader: Reader, an_order: MakeOrder, tenant: str
) -> None:
    """Free orders: the race is for the stock alone. Ten win, nobody else, and nothing stays held.

    Red when: `allocate` sells what is gone and no CHECK of the stock row stands behind it.
    """
    orders = [an_order(f"o-{n}", amount_minor=0, payment=None) for n in range(200)]
    ended = await asyncio.gather(*(checkouts.sell(order) for order in orders))
    won = [each for each in ended if each.status is OrderStatus.CONFIRMED]
    lost = [each for each in ended if each.status is OrderStatus.REJECTED]
    assert (len(won), len(lost)) == (10, 190)
    [stock] = await reader.stock(tenant, "LAMP")
    assert (stock.free, stock.held, stock.sold) == (0, 0, 10)


# -- bookings


async def test_a_booking_typed_twice_happens_once(everycent: CommandLine) -> None:
    """Red when: the key of a booking has anything of the moment in it."""
    first = await everycent("stock", "receive", "LAMP", "5", "--request", "r-1")
    again = await everycent("stock", "receive", "LAMP", "5", "--request", "r-1")
    other = await everycent("stock", "receive", "LAMP", "6", "--request", "r-1")
    assert (first.exit_code, again.exit_code, other.exit_code) == (0, 0, 2)
    assert first.stdout == again.stdout
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert stock["received"] == 15


async def test_stock_can_be_set_to_a_level(everycent: CommandLine) -> None:
    await everycent("stock", "set", "LAMP", "3")
    [stock] = await everycent.json("stock", "show")
    assert (stock["free"], stock["written_off"]) == (3, 7)


# -- the whole


async def test_check_finds_a_running_stack_well(everycent: CommandLine) -> None:
    done = await everycent("check", shop=False)
    assert (done.exit_code, done.stdout.count("WRONG")) == (0, 0)
    for queue in ("workflows", "sweeper", "payment-finish", "order-sweep", "points-sweep"):
        assert f"task queue everycent-{queue}: 1 worker polling" in done.stdout
    assert "ledger-sweep" not in done.stdout  # Nothing is ever held there.


async def test_audit_finds_a_shop_in_order(everycent: CommandLine, an_order: MakeOrder) -> None:
    await everycent.place(an_order())
    report = await everycent.json("audit")
    assert (report["ok"], report["broken_invariants"]) == (True, 0)
    assert report["totals"]["minor_units_captured"] == 2_999
    assert "broken invariants" in (await everycent("audit")).stdout


async def _delete(client: Client, order: PlaceOrder, until: Until) -> None:
    """Delete the order's workflow, as the retention does."""
    execution = WorkflowExecution(workflow_id=order.workflow_id())
    handle = client.get_workflow_handle(order.workflow_id())

    async def is_closed() -> bool:
        return (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING

    async def is_gone() -> bool:
        try:
            await handle.describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await until(is_closed)
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=execution)
    )
    await until(is_gone)
